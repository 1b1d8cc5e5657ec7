//! What can go wrong with the database.

use std::path::PathBuf;
use std::time::Duration;

use super::storage::Trouble;

/// A failed read or write of state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file could not be opened.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// SQLite's answer.
        source: sqlx::Error,
    },
    /// A damaged file, or the mark beside it, could not be moved out of the way.
    #[error("cannot move {} out of the way", path.display())]
    SetAside {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The schema could not be brought up to date.
    #[error("cannot bring the schema of {} up to date", path.display())]
    Migrate {
        /// The database file.
        path: PathBuf,
        /// What the migration met.
        source: sqlx::migrate::MigrateError,
    },
    /// The schema is newer than this program.
    #[error(
        "the database {} has schema version {found}, and this quiltd ({}) knows versions up to \
         {known}: use the quiltd that wrote it or a newer one, or put a backup of an older \
         version back (quiltd db restore FILE)",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// An operator's SQL is nothing that may be run.
    #[error(transparent)]
    Refused(#[from] super::inspect::Refused),
    /// An operator's SQL is too long.
    #[error("the SQL is longer than {max} bytes")]
    TooLong {
        /// Most bytes.
        max: usize,
    },
    /// An operator's SQL is wrong, or reading failed.
    #[error("the query failed")]
    Query(#[source] sqlx::Error),
    /// An operator's query took too long and was stopped.
    #[error("stopped after {timeout:?}: ask for less, or for more time (--timeout)")]
    TooSlow {
        /// The time it had.
        timeout: Duration,
    },
    /// The rows of an answer could not be passed on.
    #[error("cannot write the answer")]
    Answer(#[source] std::io::Error),
    /// A file of an operator's command could not be worked with.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is in the way.
    #[error("{} is there already, and nothing is overwritten: name another file", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file is no database that may be used.
    #[error("{} cannot be used: {problems}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problems: String,
    },
    /// A statement failed.
    #[error("database: cannot {operation}")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// SQLite's answer.
        source: sqlx::Error,
    },
    /// Another process holds a lock of the database and did not let go.
    #[error("database: cannot {operation}: locked at each of {attempts} attempts")]
    Busy {
        /// What was being done.
        operation: &'static str,
        /// How often it was tried.
        attempts: u32,
        /// SQLite's last answer.
        source: sqlx::Error,
    },
    /// No transaction could be begun: most often another process holds the lock.
    #[error("database: cannot {operation}: no transaction after {attempts} attempts: {why}")]
    Begin {
        /// What was being done.
        operation: &'static str,
        /// How often it was tried.
        attempts: u32,
        /// SQLite's last answer; several writes share it, so it is text.
        why: String,
    },
    /// The transaction could not be committed; nothing of it was kept.
    #[error("database: cannot commit: {why}")]
    Commit {
        /// SQLite's answer; several writes share it, so it is text.
        why: String,
    },
    /// The file cannot be written now; nothing of the operation was kept.
    #[error(
        "cannot {operation}: the database {} cannot be written: {trouble} ({why})",
        path.display()
    )]
    Storage {
        /// What was being done.
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// What is wrong with it.
        trouble: Trouble,
        /// SQLite's answer; several writes share it, so it is text.
        why: String,
    },
    /// A row holds what no version of this program wrote.
    #[error("database: {what} holds what cannot be read: {why}")]
    Corrupt {
        /// Table and column.
        what: &'static str,
        /// Why it cannot be read.
        why: String,
    },
    /// No address of the pod network is free.
    #[error(
        "no address is free in {subnet}: of {capacity}, {used} are in use, {prepared} are reserved \
         for pods to come and {waiting} have come back and rest for a while"
    )]
    AddressesExhausted {
        /// The pod network.
        subnet: String,
        /// Addresses given out.
        used: usize,
        /// Addresses of networks that are being made for pods to come.
        prepared: usize,
        /// Addresses that have come back and are not given out again yet.
        waiting: usize,
        /// Addresses that could be given out.
        capacity: usize,
    },
    /// An address that was asked for can be no pod's.
    #[error("annotation {annotation}: {why}")]
    AddressUnfit {
        /// The annotation's name.
        annotation: &'static str,
        /// Why not.
        why: String,
    },
    /// An address that was asked for is another pod's.
    #[error("address {address} is held by pod {holder}")]
    AddressTaken {
        /// The address.
        address: String,
        /// Whose it is: namespace, name and id.
        holder: String,
    },
    /// An address that was asked for is free in a moment.
    #[error("address {address} is still being taken from who had it: try again in a moment")]
    AddressLeaving {
        /// The address.
        address: String,
    },
    /// A port of the node is another pod's.
    #[error("port {port} of the node is held by pod {holder}")]
    PortTaken {
        /// The port that was asked for.
        port: String,
        /// Whose it is: namespace, name and id.
        holder: String,
    },
    /// Plugins are to connect the pod, and there is no network that they could connect it to.
    #[error("the pod network is not ready: {0}")]
    NetworkNotReady(String),
    /// The wish cannot follow from the present state.
    #[error(transparent)]
    Impossible(#[from] crate::lifecycle::Impossible),
    /// No state machine has this change of state; nothing of the write was kept.
    #[error("{noun} {id} is {from} and cannot become {to}")]
    Transition {
        /// `sandbox`, `container`, `layer`.
        noun: &'static str,
        /// Which.
        id: String,
        /// The state it is in.
        from: String,
        /// The state it was to come to.
        to: &'static str,
    },
    /// The row the write is about is not there.
    #[error("{noun} {id} does not exist")]
    NotFound {
        /// `sandbox`, `container`, `image`.
        noun: &'static str,
        /// The id or reference asked for.
        id: String,
    },
    /// The writer has ended: the daemon is going down.
    #[error("the daemon is shutting down")]
    Closed,
}

impl StateError {
    /// What the error says of the database's file; `None` when it is about something else.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Storage { trouble, .. } => Some(*trouble),
            Self::Open { source, .. } | Self::Database { source, .. } => Trouble::of(source),
            _ => None,
        }
    }
}

/// Turns SQLite's error into one that says what was being done.
pub(super) fn during(operation: &'static str) -> impl Fn(sqlx::Error) -> StateError {
    move |source| StateError::Database { operation, source }
}

/// A failed read.
pub(super) fn read(operation: &'static str, attempts: u32, source: sqlx::Error) -> StateError {
    if is_busy(&source) {
        return StateError::Busy {
            operation,
            attempts,
            source,
        };
    }
    StateError::Database { operation, source }
}

/// How an operation ended, in a word: the label of a metric.
pub(super) fn outcome<T>(result: &Result<T, StateError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(
            StateError::NotFound { .. }
            | StateError::Impossible(_)
            | StateError::AddressesExhausted { .. }
            | StateError::AddressUnfit { .. }
            | StateError::AddressTaken { .. }
            | StateError::AddressLeaving { .. }
            | StateError::PortTaken { .. }
            | StateError::NetworkNotReady(_),
        ) => "refused",
        Err(StateError::Busy { .. } | StateError::Begin { .. }) => "busy",
        Err(_) => "error",
    }
}

/// A stored value that does not parse.
pub(super) fn corrupt<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StateError {
    move |why| StateError::Corrupt {
        what,
        why: why.to_string(),
    }
}

/// Whether a trigger refused the statement (SQLITE_CONSTRAINT_TRIGGER).
pub(super) fn is_trigger(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.as_deref() == Some("1811")
}

/// Whether SQLite says that somebody else holds the lock (SQLITE_BUSY, SQLITE_LOCKED and their
/// extended codes).
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    let primary = code
        .and_then(|code| code.parse::<u32>().ok())
        .map(|code| code & 0xff);
    matches!(primary, Some(5 | 6))
}
