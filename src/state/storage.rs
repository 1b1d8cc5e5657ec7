//! Whether the database's file can be written, and what is said while it cannot.
//!
//! ```text
//!           a write meets a full disk, a read-only file system, an I/O error
//!  works ───────────────────────────────────────────────────────────────────► in trouble
//!    ▲                                                                            │
//!    └──────────────── there is room, and a trial write was committed ────────────┘
//!                      (tried every second, and only while in trouble)
//! ```
//!
//! Reading goes on all the while. A file that is damaged does not mend by itself: it is marked, and
//! the next start sets it aside and rebuilds what it can (`state::opening`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::StateError;
use super::error::during;
use super::node;
use super::opening::Mark;
use super::writer::Tx;

/// Between two trials while the file cannot be written.
pub(super) const TRIAL_EVERY: Duration = Duration::from_secs(1);
/// Room without which no trial is made: a single page may find a place where nothing else does.
const ROOM_BYTES: u64 = 1024 * 1024;

/// Why the file cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No space is left (SQLITE_FULL).
    Full,
    /// The file or its file system is read-only (SQLITE_READONLY).
    ReadOnly,
    /// The kernel refuses (SQLITE_IOERR, SQLITE_CANTOPEN).
    Io,
    /// The file holds what SQLite never wrote (SQLITE_CORRUPT, SQLITE_NOTADB).
    Damaged,
}

impl Trouble {
    /// What SQLite's error says of the file; `None` when it is about something else.
    pub(super) fn of(error: &sqlx::Error) -> Option<Self> {
        let code = error.as_database_error().and_then(|e| e.code())?;
        // Extended codes carry the primary one in their lowest byte (sqlite.org/rescode.html).
        match code.parse::<u32>().ok()? & 0xff {
            8 => Some(Self::ReadOnly),
            10 | 14 => Some(Self::Io),
            11 | 26 => Some(Self::Damaged),
            13 => Some(Self::Full),
            _ => None,
        }
    }

    /// What is wrong and what is to be done.
    fn advice(self) -> &'static str {
        match self {
            Self::Full => "the disk is full; free some space, then it goes on by itself",
            Self::ReadOnly => {
                "it is read-only; make its file system writable, then it goes on by itself"
            }
            Self::Io => {
                "its disk refuses; look at the kernel's log. Once it works again, it goes on by \
                 itself"
            }
            Self::Damaged => {
                "it is damaged; restart the daemon, which sets it aside and rebuilds what it can"
            }
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.advice())
    }
}

/// The file that is written, and whether it can be.
pub(super) struct Storage {
    path: PathBuf,
    trouble: watch::Sender<Option<(Trouble, String)>>,
}

impl Storage {
    /// A file that works.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            trouble: watch::Sender::new(None),
        }
    }

    /// What is wrong with the file, for people; `None` when it works.
    pub(super) fn problem(&self) -> Option<String> {
        let trouble = self.trouble.borrow();
        trouble.as_ref().map(|(_, text)| text.clone())
    }

    /// Whether a trial may end what is wrong.
    pub(super) fn may_recover(&self) -> bool {
        let trouble = self.trouble.borrow();
        trouble
            .as_ref()
            .is_some_and(|(trouble, _)| *trouble != Trouble::Damaged)
    }

    /// Names the file in an error that is about the file, and remembers what is wrong with it.
    pub(super) fn explain(&self, error: StateError) -> StateError {
        match error {
            StateError::Database { operation, source } => match Trouble::of(&source) {
                Some(trouble) => self.failed(operation, trouble, source.to_string()),
                None => StateError::Database { operation, source },
            },
            error => error,
        }
    }

    /// The same for a statement of the transaction itself.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        trouble: Trouble,
        why: String,
    ) -> StateError {
        let error = StateError::Storage {
            operation,
            path: self.path.clone(),
            trouble,
            why,
        };
        let text = error.to_string();
        self.trouble.send_if_modified(|present| {
            let known = present.as_ref().map(|(known, _)| *known);
            // Damage is the worst that can be said, and stays said.
            if known == Some(trouble) || known == Some(Trouble::Damaged) {
                return false;
            }
            tracing::error!(error = text, "the database cannot be written");
            *present = Some((trouble, text.clone()));
            true
        });
        if trouble == Trouble::Damaged {
            Mark::of(&self.path).leave(&text);
        }
        error
    }

    fn works(&self) {
        if self.trouble.send_replace(None).is_some() {
            tracing::warn!(path = %self.path.display(), "the database can be written again");
        }
    }

    fn has_room(&self) -> bool {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        rustix::fs::statvfs(dir).map_or(true, |fs| {
            fs.f_bavail.saturating_mul(fs.f_frsize) >= ROOM_BYTES
        })
    }

    /// Writes something small, in a transaction of its own. When that is committed the trouble is
    /// over, and jobs that failed meanwhile are due at once.
    pub(super) async fn try_again(&self, tx: &mut Tx) {
        if !self.has_room() {
            return;
        }
        match trial(tx).await {
            Ok(()) => self.works(),
            Err(error) => {
                tracing::debug!(%error, "the database cannot be written yet");
                tx.abandon();
            }
        }
    }
}

async fn trial(tx: &mut Tx) -> Result<(), StateError> {
    tx.execute("BEGIN IMMEDIATE").map_err(during("begin"))?;
    let now = super::now_ns().to_string();
    tx.set_fact(node::LAST_TRIAL, &now).await?;
    tx.hasten_failed_jobs().await?;
    tx.execute("COMMIT").map_err(during("commit"))
}

#[cfg(test)]
mod tests;
