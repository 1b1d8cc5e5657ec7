//! The verbs, asked of a whole network (specification, section 3).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::child::{Plugins, Question};
use super::error::CniError;
use super::list::{NetworkList, Plugin};
use super::request::{self, Attachment, INTERFACE};
use super::result::{harmless, supported_versions};
use super::version::SpecVersion;

/// Versions of a plugin that are named when none fits.
const SHOWN: usize = 10;

/// What a plugin may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Connect a pod.
    Add,
    /// Disconnect it.
    Del,
    /// Look whether it is connected as it was.
    Check,
    /// Forget pods that are not there any more.
    Gc,
    /// Say whether pods can be connected.
    Status,
    /// Say which versions are known.
    Version,
}

impl Verb {
    /// As plugins are told it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call that was made, for whoever counts and tells.
#[derive(Debug, Clone)]
pub struct Call {
    /// The plugin's program.
    pub plugin: String,
    /// What it was asked for.
    pub verb: Verb,
    /// How long it took.
    pub took: Duration,
    /// `ok`, or why not, in one word.
    pub outcome: &'static str,
    /// What it said on standard error.
    pub said: String,
}

/// What a request is about.
struct Words {
    variables: Vec<(&'static str, OsString)>,
    input: Vec<u8>,
}

impl Plugins {
    async fn call(
        &self,
        plugin: &Plugin,
        verb: Verb,
        words: Words,
        calls: &mut Vec<Call>,
    ) -> Result<Vec<u8>, CniError> {
        let begun = Instant::now();
        let question = Question {
            plugin: plugin.kind.clone(),
            verb,
            variables: words.variables,
            input: words.input,
        };
        let ended = self.ask(question).await;
        calls.push(Call {
            plugin: plugin.kind.clone(),
            verb,
            took: begun.elapsed(),
            outcome: ended
                .outcome
                .as_ref()
                .map_or_else(CniError::outcome, |_| "ok"),
            said: ended.said,
        });
        ended.outcome
    }

    /// Connects a pod: every plugin in order, each given the result of the one before. Returns the
    /// last one's result. After an error, whatever was done is undone by [`Plugins::delete`].
    ///
    /// # Errors
    /// The first plugin's that fails; those after it are not asked.
    pub async fn add(
        &self,
        list: &NetworkList,
        attachment: &Attachment<'_>,
        calls: &mut Vec<Call>,
    ) -> Result<Value, CniError> {
        let mut previous: Option<Value> = None;
        for plugin in &list.plugins {
            let words = Words {
                variables: variables(attachment),
                input: request::of_attachment(list, plugin, attachment, previous.as_ref()),
            };
            let answer = self.call(plugin, Verb::Add, words, calls).await?;
            let bad = |why: String| CniError::BadAnswer {
                plugin: plugin.kind.clone(),
                verb: Verb::Add,
                // It repeats what the plugin has said.
                why: harmless(why.as_bytes()),
            };
            let result: Value =
                serde_json::from_slice(&answer).map_err(|error| bad(error.to_string()))?;
            super::addresses(&result).map_err(bad)?;
            previous = Some(result);
        }
        Ok(previous.unwrap_or_default())
    }

    /// Disconnects a pod: every plugin in reverse, each given the result of ADD if there is one.
    ///
    /// # Errors
    /// The first plugin's that fails; those before it are not asked, and it has to be done again.
    pub async fn delete(
        &self,
        list: &NetworkList,
        attachment: &Attachment<'_>,
        result: Option<&Value>,
        calls: &mut Vec<Call>,
    ) -> Result<(), CniError> {
        // Earlier versions do not know of it.
        let result = result.filter(|_| list.version.has_check());
        for plugin in list.plugins.iter().rev() {
            let words = Words {
                variables: variables(attachment),
                input: request::of_attachment(list, plugin, attachment, result),
            };
            match self.call(plugin, Verb::Del, words, calls).await {
                Err(error) if error.says_nothing_is_left() => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Looks whether a pod is connected as ADD has left it: every plugin in order. Where the
    /// version has no CHECK, or the network forbids it, nothing is asked and nothing is wrong.
    ///
    /// # Errors
    /// The first plugin's that finds something wrong, or fails.
    pub async fn check(
        &self,
        list: &NetworkList,
        attachment: &Attachment<'_>,
        result: &Value,
        calls: &mut Vec<Call>,
    ) -> Result<(), CniError> {
        if list.disable_check || !list.version.has_check() {
            return Ok(());
        }
        for plugin in &list.plugins {
            let words = Words {
                variables: variables(attachment),
                input: request::of_attachment(list, plugin, attachment, Some(result)),
            };
            self.call(plugin, Verb::Check, words, calls).await?;
        }
        Ok(())
    }

    /// Has every plugin forget what is of no pod in `valid`. Meanwhile no pod may be connected or
    /// disconnected. Returns what failed; the others were asked all the same.
    pub async fn collect(
        &self,
        list: &NetworkList,
        valid: &[String],
        calls: &mut Vec<Call>,
    ) -> Vec<CniError> {
        let mut errors = Vec::new();
        if list.disable_gc || !list.version.has_gc_and_status() {
            return errors;
        }
        for plugin in &list.plugins {
            let words = Words {
                variables: Vec::new(),
                input: request::of_collection(list, plugin, valid),
            };
            let called = self.call(plugin, Verb::Gc, words, calls).await;
            errors.extend(called.err());
        }
        errors
    }

    /// Asks every plugin whether pods can be connected. Where the version has no STATUS, they can.
    ///
    /// # Errors
    /// The first plugin's that says no.
    pub async fn status(&self, list: &NetworkList, calls: &mut Vec<Call>) -> Result<(), CniError> {
        if !list.version.has_gc_and_status() {
            return Ok(());
        }
        for plugin in &list.plugins {
            let words = Words {
                variables: Vec::new(),
                input: request::of_status(list, plugin),
            };
            self.call(plugin, Verb::Status, words, calls).await?;
        }
        Ok(())
    }

    /// Finds all programs of a network, and the newest version that its configuration allows and
    /// all of them speak; one that does not say has to take what comes.
    ///
    /// # Errors
    /// When a program is missing, or there is no such version.
    pub async fn agree(
        &self,
        list: &mut NetworkList,
        calls: &mut Vec<Call>,
    ) -> Result<(), CniError> {
        let mut possible: BTreeSet<SpecVersion> = list.versions.clone();
        for plugin in &list.plugins {
            let plugins = self.clone();
            let kind = plugin.kind.clone();
            let found = tokio::task::spawn_blocking(move || plugins.find(&kind).map(drop));
            found.await.unwrap_or(Ok(()))?;
            let Some(spoken) = self.versions(plugin, calls).await else {
                continue;
            };
            let both: BTreeSet<_> = possible
                .iter()
                .filter(|version| spoken.iter().any(|known| known == version.as_str()))
                .copied()
                .collect();
            if both.is_empty() {
                let speaks: Vec<_> = spoken.into_iter().take(SHOWN).collect();
                return Err(CniError::NoVersion {
                    plugin: plugin.kind.clone(),
                    speaks: harmless(speaks.join(", ").as_bytes()),
                    network: list.name.clone(),
                    written: joined(&possible),
                });
            }
            possible = both;
        }
        if let Some(newest) = possible.last() {
            list.version = *newest;
        }
        Ok(())
    }

    async fn versions(&self, plugin: &Plugin, calls: &mut Vec<Call>) -> Option<Vec<String>> {
        // Some programs want to see these although the verb has no use for them.
        let variables = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
        let newest = SpecVersion::V1_1_0;
        let words = Words {
            variables: variables.map(|name| (name, "dummy".into())).into(),
            input: format!("{{\"cniVersion\":\"{newest}\"}}").into_bytes(),
        };
        let answer = self.call(plugin, Verb::Version, words, calls).await.ok()?;
        supported_versions(&answer)
    }
}

fn joined(versions: &BTreeSet<SpecVersion>) -> String {
    let versions: Vec<_> = versions.iter().map(|version| version.as_str()).collect();
    versions.join(", ")
}

/// The environment of ADD, DEL and CHECK.
fn variables(attachment: &Attachment<'_>) -> Vec<(&'static str, OsString)> {
    let netns = attachment.netns.map(|path| path.as_os_str().to_owned());
    vec![
        ("CNI_CONTAINERID", attachment.container_id.into()),
        ("CNI_NETNS", netns.unwrap_or_default()),
        ("CNI_IFNAME", INTERFACE.into()),
        ("CNI_ARGS", attachment.arguments.into()),
    ]
}
