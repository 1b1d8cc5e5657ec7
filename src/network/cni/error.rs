//! What can go wrong with a plugin: which one, asked for what, and what it said.

use std::io;
use std::time::Duration;

use super::verbs::Verb;

/// "Container unknown": nothing is left to clean up (specification, well-known errors).
const UNKNOWN_CONTAINER: u64 = 3;
/// "Try again later".
const TRY_AGAIN: u64 = 11;

/// A call of a plugin that failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no such program.
    #[error("there is no plugin {plugin:?} in {dirs}")]
    NoPlugin {
        /// Its file name.
        plugin: String,
        /// Where it was looked for.
        dirs: String,
    },
    /// The program cannot be started.
    #[error("plugin {plugin:?} cannot be started")]
    Start {
        /// Its file name.
        plugin: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It did not end in time; it was killed, with what it had started.
    #[error(
        "plugin {plugin:?} did not end within {} s ({verb}) and was killed{said}",
        after.as_secs()
    )]
    TimedOut {
        /// Its file name.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// How long it was waited for.
        after: Duration,
        /// What it had to say, in brackets.
        said: String,
    },
    /// It wrote more than any answer has.
    #[error("plugin {plugin:?} answered with more than {bytes} bytes ({verb}) and was killed")]
    TooMuch {
        /// Its file name.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// The bound.
        bytes: usize,
    },
    /// It says that it failed.
    #[error("plugin {plugin:?} failed ({verb}): {text}")]
    Failed {
        /// Its file name.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// The code of its error object, if it gave one.
        code: Option<u64>,
        /// Code, message and details, or its status and what it said.
        text: String,
    },
    /// Its answer is none.
    #[error("plugin {plugin:?} gave no usable answer ({verb}): {why}")]
    BadAnswer {
        /// Its file name.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// What is wrong with it.
        why: String,
    },
    /// No version of the specification is both in the configuration and known to the plugin.
    #[error(
        "plugin {plugin:?} speaks version {speaks} of the specification, and network {network:?} \
         is written for {written}"
    )]
    NoVersion {
        /// Its file name.
        plugin: String,
        /// What it says it knows.
        speaks: String,
        /// The network.
        network: String,
        /// What its configuration allows.
        written: String,
    },
    /// A value that cannot be passed on.
    #[error("{what} {value:?} cannot be told to plugins: {why}")]
    Argument {
        /// What it is.
        what: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl CniError {
    /// Whether the plugin asks to be called again later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Failed { code, .. } if *code == Some(TRY_AGAIN))
    }

    /// Whether the plugin says that it has nothing of that pod.
    pub(super) fn says_nothing_is_left(&self) -> bool {
        matches!(self, Self::Failed { code, .. } if *code == Some(UNKNOWN_CONTAINER))
    }

    /// For the metrics.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timeout",
            Self::NoPlugin { .. } => "missing",
            Self::TooMuch { .. } | Self::BadAnswer { .. } => "bad_answer",
            _ => "failed",
        }
    }
}
