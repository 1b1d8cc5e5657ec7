//! Looking after the database file: checking it, copying it while the daemon writes, putting a copy
//! back, and doing away with it.
//!
//! Whoever calls [`restore`] or [`reset`] holds the lock of the root directory: no daemon lives.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use super::inspect::{Inspector, is_interrupt};
use super::{StateError, schema};
use crate::causes::with_causes;

/// Findings of each kind that are listed.
const FINDINGS: u32 = 100;
/// Former databases kept beside the present one.
const KEPT: u32 = 100;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The schema's version; 0 when there is none.
    pub version: i64,
    /// What is wrong; nothing, most often.
    pub problems: Vec<String>,
}

/// Checks a database: its pages, its references, its schema's version.
///
/// # Errors
/// When it takes longer than `timeout`. What is wrong with the file is a finding, not an error.
pub async fn check(path: &Path, timeout: Duration) -> Result<Findings, StateError> {
    let mut findings = Findings {
        version: 0,
        problems: Vec::new(),
    };
    let mut inspector = match Inspector::open_any(path).await {
        Ok(inspector) => inspector,
        Err(error) => {
            findings.problems.push(with_causes(&error));
            return Ok(findings);
        }
    };
    inspector.stop_after(timeout).await?;
    let looked = look(&mut inspector, &mut findings).await;
    inspector.close().await;
    match looked {
        Ok(()) => Ok(findings),
        Err(error) if is_interrupt(&error) => Err(StateError::TooSlow { timeout }),
        Err(error) => {
            findings
                .problems
                .push(format!("it cannot be read: {error}"));
            Ok(findings)
        }
    }
}

async fn look(inspector: &mut Inspector, findings: &mut Findings) -> Result<(), sqlx::Error> {
    let connection = inspector.connection();
    let sql = sqlx::AssertSqlSafe(format!("PRAGMA integrity_check({FINDINGS})"));
    let lines: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *connection).await?;
    findings
        .problems
        .extend(lines.into_iter().filter(|line| line != "ok"));
    findings.version = schema::version(connection).await?;
    schema_problems(connection, findings).await?;
    let broken: Vec<(String, Option<i64>, String)> =
        sqlx::query_as("SELECT \"table\", rowid, parent FROM pragma_foreign_key_check LIMIT ?")
            .bind(FINDINGS)
            .fetch_all(connection)
            .await?;
    for (table, row, parent) in broken {
        let row = row.map_or_else(String::new, |row| format!(" {row}"));
        let problem = format!("row{row} of {table} refers to a row of {parent} that is not there");
        findings.problems.push(problem);
    }
    Ok(())
}

async fn schema_problems(
    connection: &mut SqliteConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    if findings.version == 0 {
        let problem = "it is no database of quiltd: it has no schema version";
        findings.problems.push(problem.into());
        return Ok(());
    }
    let known = schema::newest_known();
    if findings.version > known {
        findings.problems.push(format!(
            "its schema version is {}, and this quiltd ({}) knows versions up to {known}",
            findings.version,
            env!("CARGO_PKG_VERSION")
        ));
    }
    let applied: Vec<(i64, Vec<u8>, bool)> =
        sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")
            .fetch_all(connection)
            .await?;
    for (version, checksum, success) in applied {
        let ours = schema::MIGRATOR.iter().find(|m| m.version == version);
        if !success {
            let problem = format!("its step to schema version {version} was not finished");
            findings.problems.push(problem);
        } else if ours.is_some_and(|ours| *ours.checksum != *checksum) {
            let problem = format!("its schema version {version} is not the one this quiltd knows");
            findings.problems.push(problem);
        }
    }
    Ok(())
}

/// Copies a database to a new file, as it is at one moment, while the daemon goes on writing. The
/// copy is checked, on disk, and readable by its owner alone. Returns its size in bytes.
///
/// # Errors
/// When the file is there already, the copy cannot be written, or it takes longer than `timeout`.
pub async fn backup(path: &Path, file: &Path, timeout: Duration) -> Result<u64, StateError> {
    if fs::symlink_metadata(file).is_ok() {
        return Err(StateError::Exists {
            path: file.to_owned(),
        });
    }
    let name = file.file_name().ok_or_else(|| StateError::File {
        what: "write",
        path: file.to_owned(),
        source: io::ErrorKind::InvalidFilename.into(),
    })?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = Partial(file.with_file_name(partial));
    let mut inspector = Inspector::open(path).await?;
    let copied = partial.fill(&mut inspector, timeout).await;
    inspector.close().await;
    let bytes = copied?;
    sound(&partial.0, timeout).await?;
    // Not std::fs::rename, which would overwrite a file that came meanwhile.
    let renamed = rustix::fs::renameat_with(
        rustix::fs::CWD,
        &partial.0,
        rustix::fs::CWD,
        file,
        rustix::fs::RenameFlags::NOREPLACE,
    );
    match renamed {
        Ok(()) => sync_directory_of(file).map(|()| bytes),
        Err(rustix::io::Errno::EXIST) => Err(StateError::Exists {
            path: file.to_owned(),
        }),
        Err(error) => Err(failed("write", file)(error.into())),
    }
}

/// A copy on its way; it goes unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    /// Copies the whole database into the file. What stood there is replaced.
    async fn fill(&self, source: &mut Inspector, timeout: Duration) -> Result<u64, StateError> {
        remove(&self.0)?;
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.0)
            .map_err(failed("write", &self.0))?;
        let target = self
            .0
            .to_str()
            .ok_or_else(|| failed("write", &self.0)(io::Error::other("its name is not UTF-8")))?;
        source.stop_after(timeout).await?;
        // The file read from stays read-only; `query_only` would forbid to write the other one.
        let allow = sqlx::query("PRAGMA query_only = off").execute(source.connection());
        allow
            .await
            .map_err(super::error::during("copy the database"))?;
        sqlx::query("VACUUM INTO ?")
            .bind(target)
            .execute(source.connection())
            .await
            .map_err(|error| {
                if is_interrupt(&error) {
                    StateError::TooSlow { timeout }
                } else {
                    StateError::Database {
                        operation: "copy the database",
                        source: error,
                    }
                }
            })?;
        file.sync_all().map_err(failed("sync", &self.0))?;
        file.metadata()
            .map(|meta| meta.len())
            .map_err(failed("look at", &self.0))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Most often it has its final name by now.
        let _ = fs::remove_file(&self.0);
    }
}

/// Refuses a database with which anything is wrong.
async fn sound(path: &Path, timeout: Duration) -> Result<i64, StateError> {
    let Findings { version, problems } = check(path, timeout).await?;
    if problems.is_empty() {
        return Ok(version);
    }
    Err(StateError::Unfit {
        path: path.to_owned(),
        problems: problems.join("; "),
    })
}

/// What became of a database that was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Its schema's version; the daemon brings it forward when it starts.
    pub version: i64,
    /// Where the database that was there before is now; `None` when there was none.
    pub kept: Option<PathBuf>,
    /// `false` when what was put back is what was there already.
    pub changed: bool,
}

/// Puts a copy of `file` in the place of the database `path`, whose former self is kept. At every
/// moment there is either the old database or the new one, whole.
///
/// # Errors
/// When `file` is no sound Quilt database of a version known here; then nothing has changed.
pub async fn restore(path: &Path, file: &Path, timeout: Duration) -> Result<Restored, StateError> {
    let same = |other: &Path| match (fs::metadata(path), fs::metadata(other)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    if same(file) {
        return Err(failed("restore", file)(io::Error::other(
            "it is the database itself",
        )));
    }
    // 1. A copy in the same directory, made by SQLite, which takes along a log beside the file.
    let version = sound(file, timeout).await?;
    let copy = Partial(beside(path, ".restoring"));
    let mut source = Inspector::open(file).await?;
    let copied = copy.fill(&mut source, timeout).await;
    source.close().await;
    copied?;
    sound(&copy.0, timeout).await?;
    // 2. Everything of the present database into its one file, so that no log of it is left to be
    //    taken for one of the new file. What cannot be read keeps its log under another name.
    let present = fs::symlink_metadata(path).is_ok();
    let readable = present && intact(path, timeout).await? && checkpoint(path).await?;
    if readable && equal(path, &copy.0)? {
        return Ok(Restored {
            version,
            kept: None,
            changed: false,
        });
    }
    // 3. A second name for the present database. One that a broken-off restore gave it is as good.
    let kept = present.then(|| keep(path, same)).transpose()?;
    // 4. Logs away.
    let log = beside(path, "-wal");
    match &kept {
        Some(kept) if !readable && log.exists() => {
            let aside = beside(kept, "-wal");
            fs::rename(&log, &aside).map_err(failed("rename", &log))?;
        }
        _ => {
            remove(&log)?;
        }
    }
    remove(&beside(path, "-shm"))?;
    sync_directory_of(path)?;
    // 5. The new one in its place; what was wrong with the old one is not wrong with it.
    fs::rename(&copy.0, path).map_err(failed("replace", path))?;
    remove(&beside(path, ".rebuild"))?;
    sync_directory_of(path)?;
    Ok(Restored {
        version,
        kept,
        changed: true,
    })
}

/// Whether every page can be read. Found out read-only: SQLite throws away a log that it cannot
/// make sense of when a writer closes a database.
async fn intact(path: &Path, timeout: Duration) -> Result<bool, StateError> {
    let Ok(mut inspector) = Inspector::open_any(path).await else {
        return Ok(false);
    };
    inspector.stop_after(timeout).await?;
    let answer: Result<String, _> = sqlx::query_scalar("PRAGMA integrity_check(1)")
        .fetch_one(inspector.connection())
        .await;
    inspector.close().await;
    match answer {
        Err(error) if is_interrupt(&error) => Err(StateError::TooSlow { timeout }),
        answer => Ok(answer.is_ok_and(|answer| answer == "ok")),
    }
}

/// Writes what is in the log into the database file; `false` when the file cannot be read.
async fn checkpoint(path: &Path) -> Result<bool, StateError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(Duration::from_secs(5));
    let Ok(mut connection) = SqliteConnection::connect_with(&options).await else {
        return Ok(false);
    };
    let result: Result<(i64, i64, i64), _> = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(&mut connection)
        .await;
    let _ = connection.close().await;
    match result {
        Ok((0, ..)) => Ok(true),
        Ok(_) => Err(failed("restore", path)(io::Error::other(
            "another process reads the present database; end it first",
        ))),
        Err(_) => Ok(false),
    }
}

/// Gives the present database a second name that nothing has.
fn keep(path: &Path, same: impl Fn(&Path) -> bool) -> Result<PathBuf, StateError> {
    for number in 0..KEPT {
        let name = match number {
            0 => beside(path, ".bak"),
            number => beside(path, &format!(".bak.{number}")),
        };
        if same(&name) {
            return Ok(name);
        }
        match fs::hard_link(path, &name) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("make", &name)(error)),
        }
    }
    let name = beside(path, ".bak");
    Err(failed("make", &name)(io::Error::other(format!(
        "there are {KEPT} of them; move some away"
    ))))
}

/// Removes the database and what SQLite keeps beside it; returns what was there. Former databases
/// (`.bak`) stay.
///
/// # Errors
/// When a file cannot be removed.
pub fn reset(path: &Path) -> Result<Vec<PathBuf>, StateError> {
    let mut removed = Vec::new();
    // The database first: SQLite throws away a log that has none, but takes a database whose log
    // is missing for whole.
    for suffix in ["", "-wal", "-shm", "-journal", ".restoring", ".rebuild"] {
        let file = beside(path, suffix);
        if remove(&file)? {
            removed.push(file);
        }
    }
    sync_directory_of(path)?;
    Ok(removed)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> StateError {
    move |source| StateError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Removes a file; `false` when there was none.
fn remove(path: &Path) -> Result<bool, StateError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn sync_directory_of(path: &Path) -> Result<(), StateError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync", dir))
}

/// Whether two files have the same content. No connection may be open to either: closing a file
/// gives up SQLite's locks on it.
fn equal(one: &Path, other: &Path) -> Result<bool, StateError> {
    let open = |path: &Path| File::open(path).map_err(failed("read", path));
    let (mut a, mut b) = (open(one)?, open(other)?);
    let length = |file: &File| file.metadata().map(|meta| meta.len()).ok();
    if length(&a) != length(&b) {
        return Ok(false);
    }
    let mut buffers = (vec![0_u8; 65536], vec![0_u8; 65536]);
    loop {
        let read = a.read(&mut buffers.0).map_err(failed("read", one))?;
        if read == 0 {
            return Ok(true);
        }
        b.read_exact(&mut buffers.1[..read])
            .map_err(failed("read", other))?;
        if buffers.0[..read] != buffers.1[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests;
