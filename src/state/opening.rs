//! What becomes of the database's file at a start, before anything in it is believed.
//!
//! ```text
//!  sound ────────────────────────────────────────────► open
//!  missing or empty, and nothing on disk to bring back ► open (a first start)
//!  missing or empty, and there is ───────────────────► rebuild
//!  damaged, or marked at run time ───────────────────► set aside, rebuild
//!  cannot be read, or is no file ────────────────────► refuse: a disk that fails is no damage
//! ```
//!
//! A file that a newer version wrote is sound; `Store::open` refuses it. Nothing is ever deleted or
//! overwritten: what is set aside keeps its side files, under a name with the time. A mark beside
//! the file says "rebuild"; it is there before the file is touched and goes when the rebuild is
//! committed, so that a crash in between begins it again.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use super::storage::Trouble;
use super::{StateError, Store};

/// Tables that say what is there; they are checked before the start, all others after it.
const STATE_TABLES: [&str; 19] = [
    "sandboxes",
    "containers",
    "process_monitors",
    "network_allocations",
    "network_attachments",
    "network_state",
    "port_mappings",
    "address_quarantine",
    "prepared_networks",
    "layers",
    "images",
    "image_references",
    "image_documents",
    "pulls",
    "pull_layers",
    "snapshots",
    "image_volumes",
    "jobs",
    "cleanup_tasks",
];
/// Tables that only tell what happened; they may be long.
const HISTORY_TABLES: [&str; 2] = ["events", "operations"];
/// A file up to this size is checked whole: it takes a few milliseconds.
const WHOLE_BYTES: u64 = 2 * 1024 * 1024;
/// Longest wait for another process that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Most complaints that are repeated.
const COMPLAINTS: usize = 3;

/// What was found out about the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Absent,
    /// It has no bytes.
    Empty,
    /// SQLite reads it, and the state in it holds together.
    Sound,
    /// It is no database, or one that does not hold together; why.
    Damaged(String),
    /// It could not be looked at; why, and what to do.
    Unusable(String),
}

/// All that the decision depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The file.
    pub found: Found,
    /// What the mark says, if there is one.
    pub mark: Option<String>,
    /// Whether a write-ahead log is there.
    pub side_files: bool,
    /// Whether pods, containers or images have left records on disk.
    pub leftovers: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Use the file; a missing one is made.
    Open,
    /// Begin a new one and bring back what can be.
    Rebuild {
        /// What is wrong with the old one.
        why: String,
        /// Whether there is an old one, to be kept.
        set_aside: bool,
    },
    /// Do not start.
    Refuse(String),
}

/// The decision.
#[must_use]
pub fn decide(facts: Facts) -> Opening {
    let Facts {
        found,
        mark,
        side_files,
        leftovers,
    } = facts;
    let exists = found != Found::Absent || side_files;
    let rebuild = |why: String| Opening::Rebuild {
        why,
        set_aside: exists,
    };
    match (found, mark) {
        (Found::Unusable(why), _) => Opening::Refuse(why),
        (_, Some(why)) | (Found::Damaged(why), None) => rebuild(why),
        (Found::Sound, None) => Opening::Open,
        (Found::Absent, None) if leftovers => rebuild("it is missing".into()),
        (Found::Empty, None) if leftovers => rebuild("it is empty".into()),
        // A log without its database belongs to one that is gone.
        (Found::Absent | Found::Empty, None) if side_files => {
            rebuild("only its write-ahead log is there".into())
        }
        (Found::Absent | Found::Empty, None) => Opening::Open,
    }
}

/// Looks at the file without changing it.
pub async fn examine(path: &Path, leftovers: bool) -> Facts {
    Facts {
        found: find(path).await,
        mark: Mark::of(path).read(),
        side_files: side_file(path, "-wal").exists(),
        leftovers,
    }
}

async fn find(path: &Path) -> Found {
    let size = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Found::Absent,
        Err(error) => return unusable(path, &error.to_string()),
        Ok(metadata) if !metadata.is_file() => return unusable(path, "it is no regular file"),
        Ok(metadata) => metadata.len(),
    };
    if size == 0 {
        return Found::Empty;
    }
    match check(path, size).await {
        Ok(complaints) if complaints.is_empty() => Found::Sound,
        Ok(complaints) => Found::Damaged(complaints.join("; ")),
        Err(error) if Trouble::of(&error) == Some(Trouble::Damaged) => {
            Found::Damaged(error.to_string())
        }
        Err(error) => unusable(path, &error.to_string()),
    }
}

fn unusable(path: &Path, why: &str) -> Found {
    Found::Unusable(format!(
        "the database {} cannot be used: {why}. It is left as it is: mend its disk, its mode or \
         its place, and start again",
        path.display()
    ))
}

async fn check(path: &Path, size: u64) -> Result<Vec<String>, sqlx::Error> {
    // Read-only: a writer that closes a damaged file may throw its log away.
    let mut connection = connect(path, true).await?;
    let checked = complaints(&mut connection, size).await;
    let closed = connection.close().await;
    let complaints = checked?;
    closed?;
    Ok(complaints)
}

async fn connect(path: &Path, read_only: bool) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::from_str("sqlite://")?
        .filename(path)
        .read_only(read_only)
        .busy_timeout(BUSY_TIMEOUT);
    sqlx::ConnectOptions::connect(&options).await
}

async fn complaints(
    connection: &mut SqliteConnection,
    size: u64,
) -> Result<Vec<String>, sqlx::Error> {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table'")
            .fetch_all(&mut *connection)
            .await?;
    let has = |name: &str| tables.iter().any(|table| table == name);
    if !has("_sqlx_migrations") {
        // A first start that was killed before the schema was there leaves no table at all.
        return Ok(if tables.is_empty() {
            Vec::new()
        } else {
            vec!["it does not say which schema it has".into()]
        });
    }
    let schema: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success")
        .fetch_one(&mut *connection)
        .await?;
    if schema == 0 {
        return Ok(vec!["it does not say which schema it has".into()]);
    }
    let missing = STATE_TABLES.iter().find(|table| !has(table));
    if let Some(table) = missing {
        return Ok(vec![format!("its table {table} is missing")]);
    }
    let mut complaints = Vec::new();
    if size <= WHOLE_BYTES {
        complaints.extend(integrity(connection, None).await?);
        return Ok(complaints);
    }
    for table in STATE_TABLES {
        complaints.extend(integrity(connection, Some(table)).await?);
    }
    complaints.truncate(COMPLAINTS);
    Ok(complaints)
}

/// What `PRAGMA integrity_check` says against a table, or against the whole.
pub(super) async fn integrity(
    connection: &mut SqliteConnection,
    table: Option<&'static str>,
) -> Result<Vec<String>, sqlx::Error> {
    let sql = match table {
        // A table's name from the list above.
        Some(table) => format!("PRAGMA integrity_check('{table}')"),
        None => format!("PRAGMA integrity_check({COMPLAINTS})"),
    };
    let lines: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_all(connection)
        .await?;
    Ok(lines
        .into_iter()
        .filter(|line| line != "ok")
        .take(COMPLAINTS)
        .collect())
}

impl Store {
    /// Checks what the start had no time for. Damage is reported as any other that a write meets:
    /// it shows in Status, and the next start sets the file aside.
    pub async fn check_history(&self) {
        for table in HISTORY_TABLES {
            let checked = async {
                let mut connection = self.readers.acquire().await?;
                integrity(&mut connection, Some(table)).await
            };
            let complaints = match checked.await {
                Ok(complaints) => complaints,
                Err(error) if Trouble::of(&error) == Some(Trouble::Damaged) => {
                    vec![error.to_string()]
                }
                Err(error) => {
                    tracing::warn!(table, %error, "cannot check a table");
                    continue;
                }
            };
            if !complaints.is_empty() {
                let why = complaints.join("; ");
                // The error is remembered; there is nobody to hand it to.
                let _error = self
                    .storage
                    .failed("check the history", Trouble::Damaged, why);
            }
        }
    }
}

/// Moves the file and its side files out of the way, and says where to.
///
/// # Errors
/// When they cannot be renamed; the file is then where it was.
pub async fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let now = utc().await?;
    for attempt in 0_u32..1000 {
        let extension = match attempt {
            0 => format!(".damaged-{now}"),
            attempt => format!(".damaged-{now}-{attempt}"),
        };
        let aside = side_file(path, &extension);
        if side_file(&aside, "-wal").exists() {
            continue;
        }
        match renameat_with(CWD, path, CWD, &aside, RenameFlags::NOREPLACE) {
            // Without the file itself its side files alone are kept.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::EXIST) => continue,
            Err(errno) => return Err(not_set_aside(path, errno)),
        }
        for side in ["-wal", "-shm"] {
            let from = side_file(path, side);
            let to = side_file(&aside, side);
            match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(not_set_aside(&from, errno)),
            }
        }
        return Ok(aside);
    }
    Err(not_set_aside(path, Errno::EXIST))
}

fn not_set_aside(path: &Path, errno: Errno) -> StateError {
    StateError::SetAside {
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// The time as a part of a file's name.
async fn utc() -> Result<String, StateError> {
    let asked = async {
        let mut memory = SqliteConnection::connect("sqlite::memory:").await?;
        sqlx::query_scalar("SELECT strftime('%Y%m%dT%H%M%SZ', 'now')")
            .fetch_one(&mut memory)
            .await
    };
    asked.await.map_err(super::error::during("tell the time"))
}

/// Brings what is committed into the file itself and onto the disk.
///
/// # Errors
/// When the file cannot be written.
pub async fn settle(path: &Path) -> Result<(), StateError> {
    let written = async {
        let mut connection = connect(path, false).await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut connection)
            .await?;
        connection.close().await
    };
    written
        .await
        .map_err(super::error::during("write the log back"))
}

fn side_file(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(extension);
    PathBuf::from(name)
}

/// A file beside the database that says "rebuild", and why.
#[derive(Debug)]
pub struct Mark(PathBuf);

impl Mark {
    /// The one of this database.
    #[must_use]
    pub fn of(database: &Path) -> Self {
        Self(side_file(database, ".rebuild"))
    }

    /// What it says; `None` when there is none.
    #[must_use]
    pub fn read(&self) -> Option<String> {
        match std::fs::read_to_string(&self.0) {
            Ok(text) => Some(text.chars().take(1000).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("marked, and the mark cannot be read: {error}")),
        }
    }

    /// Leaves it, unless there is one. Where not even that can be written the next start finds the
    /// damage by itself.
    pub fn leave(&self, why: &str) {
        use std::io::Write as _;
        let options = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&self.0);
        match options.and_then(|mut file| file.write_all(why.as_bytes())) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                tracing::error!(%error, mark = %self.0.display(), "cannot mark the database");
            }
            _ => {}
        }
    }

    /// Takes it away: the rebuild is on disk.
    ///
    /// # Errors
    /// When it cannot be removed; the next start would then rebuild once more.
    pub fn remove(&self) -> Result<(), StateError> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StateError::SetAside {
                    path: self.0.clone(),
                    source: error,
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
