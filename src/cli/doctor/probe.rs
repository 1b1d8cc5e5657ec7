//! What a probe is.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::id::random_name;

/// What a node is looked at for.
pub(super) struct Node {
    /// The configuration, or the defaults where it cannot be read.
    pub(super) config: Config,
    /// Why it cannot be read.
    pub(super) problem: Option<String>,
    /// The root directory.
    pub(super) root: PathBuf,
    /// The state directory.
    pub(super) state: PathBuf,
    /// Where CRI is answered.
    pub(super) listen: String,
}

impl Node {
    /// A directory that is there: `path` itself, or the nearest one above it.
    pub(super) fn present(path: &Path) -> &Path {
        let mut above = path.ancestors();
        above
            .find(|dir| dir.is_dir())
            .unwrap_or_else(|| Path::new("/"))
    }
}

/// What it means when something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// No pod runs.
    Required,
    /// A feature is not there, or works less well.
    Wanted,
}

/// Something that a node may offer.
pub(super) struct Probe {
    /// What it is called in answers, for scripts.
    pub(super) name: &'static str,
    /// What is there if it is.
    pub(super) what: &'static str,
    /// What it means when it is not.
    pub(super) need: Need,
    /// What that costs.
    pub(super) costs: &'static str,
    /// How it is mended.
    pub(super) mend: &'static str,
    /// Whether it means something with this configuration.
    pub(super) applies: fn(&Node) -> bool,
    /// Tries it: says in what form it is there, if there is more than one, or why it is not.
    pub(super) look: fn(&Node) -> Result<String, String>,
}

/// Of what means something everywhere.
pub(super) fn always(_node: &Node) -> bool {
    true
}

/// It is there, and there is no more to say.
pub(super) fn there<T, E: std::fmt::Display>(outcome: Result<T, E>) -> Result<String, String> {
    match outcome {
        Ok(_) => Ok(String::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// An error with all that it came from.
pub(super) fn whole(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

/// A name for what is there for no longer than a probe: that of this process, and of nothing else.
pub(super) fn passing_name() -> String {
    let own = std::process::id();
    format!("quilt-doctor-{own}-{}", &random_name()[..12])
}

/// Runs something on a thread of its own, whose namespaces end with it.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread.join().unwrap_or_else(|_| Err("it panicked".into()))
    })
}
