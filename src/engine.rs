//! The discovery file `engine.json` in the state directory: which daemon runs here, and where it
//! answers. Beside it the link `root`, which stays when the daemon ends: whose database the state
//! directory belongs to.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the file.
const FILE: &str = "engine.json";
/// Name of the link to the root directory.
const ROOT: &str = "root";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// The daemon's process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Where it answers CRI.
    pub endpoint: String,
    /// Where it answers admin commands.
    pub admin_socket: PathBuf,
    /// Its root directory.
    pub root: PathBuf,
    /// When it started, ns since 1970.
    pub started_at_ns: i64,
}

impl Engine {
    /// Reads the file of a state directory.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn read(state: &Path) -> io::Result<Self> {
        let text = std::fs::read(state.join(FILE))?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        let new = state.join(".engine.json.new");
        std::fs::write(
            &new,
            serde_json::to_vec_pretty(self).map_err(io::Error::other)?,
        )?;
        std::fs::rename(new, state.join(FILE))
    }

    /// Leaves word which root directory a state directory belongs to, whole or not at all.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn remember_root(state: &Path, root: &Path) -> io::Result<()> {
        let new = state.join(".root.new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(root, &new)?;
        std::fs::rename(new, state.join(ROOT))
    }

    /// The root directory of the daemon that runs, or ran last, with this state directory.
    #[must_use]
    pub fn last_root(state: &Path) -> Option<PathBuf> {
        match Self::read(state) {
            Ok(engine) => Some(engine.root),
            Err(_) => std::fs::read_link(state.join(ROOT)).ok(),
        }
    }

    /// Removes the file, at the daemon's end.
    pub fn remove(state: &Path) {
        if let Err(error) = std::fs::remove_file(state.join(FILE)) {
            tracing::warn!(%error, "cannot remove engine.json");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_known_after_the_daemon_has_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path();
        assert_eq!(Engine::last_root(state), None);
        Engine::remember_root(state, Path::new("/one")).expect("a link");
        Engine::remember_root(state, Path::new("/two")).expect("a link");
        assert_eq!(Engine::last_root(state), Some("/two".into()));
        let engine = Engine {
            pid: 1,
            version: "0".into(),
            endpoint: String::new(),
            admin_socket: PathBuf::new(),
            root: "/three".into(),
            started_at_ns: 0,
        };
        engine.write(state).expect("a file");
        assert_eq!(Engine::last_root(state), Some("/three".into()));
        Engine::remove(state);
        assert_eq!(Engine::last_root(state), Some("/two".into()));
    }
}
