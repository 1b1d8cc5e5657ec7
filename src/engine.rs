//! The discovery file `engine.json` in the state directory: which daemon runs here, and where it
//! answers.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the file.
const FILE: &str = "engine.json";

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

    /// Removes the file, at the daemon's end.
    pub fn remove(state: &Path) {
        if let Err(error) = std::fs::remove_file(state.join(FILE)) {
            tracing::warn!(%error, "cannot remove engine.json");
        }
    }
}
