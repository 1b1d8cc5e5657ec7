//! Where the database of a state directory is, with or without a daemon.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::DEFAULT_STATE;
use crate::engine::Engine;
use crate::state::inspect::Inspector;

/// Where the root directory is when nobody says otherwise.
pub(super) const DEFAULT_ROOT: &str = "/var/lib/quilt";
/// The database in it.
const DATABASE: &str = "quilt.db";
/// Where CRI is answered when nobody says otherwise: where kubelet looks for containerd.
pub(super) const DEFAULT_LISTEN: &str = "unix:///run/containerd/containerd.sock";
/// Memory that SQLite may take in a command, whatever is asked.
const MEMORY_BYTES: u64 = 512 << 20;

/// Whose database is meant.
#[derive(clap::Args)]
pub(super) struct Place {
    /// State directory of the daemon that runs, or ran last.
    #[arg(long, default_value = DEFAULT_STATE)]
    state: PathBuf,
    /// Root directory with the database, where the state directory does not know it any more.
    #[arg(long)]
    root: Option<PathBuf>,
}

impl Place {
    /// The state directory.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// The root directory.
    pub(super) fn root(&self) -> anyhow::Result<PathBuf> {
        if let Some(root) = &self.root {
            return Ok(root.clone());
        }
        if let Some(root) = Engine::last_root(&self.state) {
            return Ok(root);
        }
        if self.state == Path::new(DEFAULT_STATE) && Path::new(DEFAULT_ROOT).is_dir() {
            return Ok(DEFAULT_ROOT.into());
        }
        bail!(
            "{} does not say where the database is: no daemon has run with it since the node \
             started (--state names another, --root the directory with the database)",
            self.state.display()
        )
    }

    /// The database file, which need not be there.
    pub(super) fn file(&self) -> anyhow::Result<PathBuf> {
        Ok(self.root()?.join(DATABASE))
    }

    /// The database file, which is there.
    pub(super) fn database(&self) -> anyhow::Result<PathBuf> {
        let file = self.file()?;
        std::fs::metadata(&file).with_context(|| {
            format!(
                "there is no database {} (a daemon makes one when it starts)",
                file.display()
            )
        })?;
        Ok(file)
    }

    /// Opens the database for reading.
    pub(super) async fn open(&self) -> anyhow::Result<Inspector> {
        let mut inspector = Inspector::open(&self.database()?).await?;
        inspector.bound_memory(MEMORY_BYTES).await?;
        Ok(inspector)
    }
}
