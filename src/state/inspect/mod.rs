//! Reading the database from outside the daemon: the operator's commands. They do it in a process
//! of their own, whether a daemon runs or not: a read-only connection never waits for the writer
//! nor holds it up (WAL), and whatever a query does to memory or time it does to the command alone.
//! (A daemon could not stop a single slow function call, nor survive SQLite running out of memory.)

mod gate;
#[cfg(test)]
mod tests;
mod value;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Column, Connection, Executor, SqlSafeStr, Statement};

pub use gate::{Refused, SQL_MAX};
pub use value::Value;

use super::{StateError, schema};

/// How long a reader waits where SQLite makes it wait at all (a recovery of the WAL under way).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Steps of SQLite's machine between two looks at the clock: some 10 µs.
const STEPS: i32 = 1000;
/// A statement that does not stop when told to (one long function call) is left alone after this.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How much a query may cost.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Time until the last row.
    pub timeout: Duration,
    /// Rows of the answer.
    pub rows: u64,
    /// Bytes of all values of the answer.
    pub bytes: u64,
}

impl Bounds {
    /// No bound but time.
    #[must_use]
    pub fn time(timeout: Duration) -> Self {
        Self {
            timeout,
            rows: u64::MAX,
            bytes: u64::MAX,
        }
    }
}

/// Whether the answer was all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every row was told.
    Whole,
    /// There are more rows; so many were told.
    Cut(u64),
}

/// Where rows go as they come.
pub trait Sink {
    /// The names of the columns, before the first row.
    ///
    /// # Errors
    /// When they cannot be written; the query ends.
    fn columns(&mut self, names: &[String]) -> io::Result<()>;
    /// A row.
    ///
    /// # Errors
    /// When it cannot be written; the query ends.
    fn row(&mut self, values: Vec<Value>) -> io::Result<()>;
}

/// An answer in memory.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Rows {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Their values, row by row.
    pub rows: Vec<Vec<Value>>,
}

impl Sink for Rows {
    fn columns(&mut self, names: &[String]) -> io::Result<()> {
        names.clone_into(&mut self.columns);
        Ok(())
    }

    fn row(&mut self, values: Vec<Value>) -> io::Result<()> {
        self.rows.push(values);
        Ok(())
    }
}

/// A database that is only looked at.
pub struct Inspector {
    connection: SqliteConnection,
    path: PathBuf,
    version: i64,
}

impl Inspector {
    /// Opens a database for reading. A live daemon does not mind.
    ///
    /// # Errors
    /// When there is none, it is damaged at its very beginning, or newer than this program.
    pub async fn open(path: &Path) -> Result<Self, StateError> {
        let mut opened = Self::open_any(path).await?;
        opened.version = schema::refuse_newer(&mut opened.connection, path).await?;
        Ok(opened)
    }

    /// Opens a database of whatever version.
    pub(super) async fn open_any(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Open {
            path: path.to_owned(),
            source,
        };
        if let Err(error) = std::fs::metadata(path) {
            return Err(failed(sqlx::Error::Io(error)));
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("temp_store", "memory")
            .pragma("trusted_schema", "off")
            .pragma("query_only", "on");
        let mut connection = sqlx::ConnectOptions::connect(&options)
            .await
            .map_err(failed)?;
        // SQLite opens a file when it is first read.
        sqlx::query("SELECT count(*) FROM sqlite_schema")
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            version: 0,
        })
    }

    /// Bounds the memory of SQLite in the whole process: only for a process that does nothing else.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub async fn bound_memory(&mut self, bytes: u64) -> Result<(), StateError> {
        let sql = sqlx::AssertSqlSafe(format!("PRAGMA hard_heap_limit = {bytes}"));
        sqlx::query(sql)
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(super::error::during("bound the memory"))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The schema's version.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Makes all that follows see one state of the database, until this value goes.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn hold_still(&mut self) -> Result<(), StateError> {
        sqlx::raw_sql("BEGIN; SELECT count(*) FROM sqlite_schema;")
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(super::error::during("begin to read"))
    }

    /// Names of all tables, without SQLite's own.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn tables(&mut self) -> Result<Vec<String>, StateError> {
        sqlx::query_scalar(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%'
             ESCAPE '\\' ORDER BY name",
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(super::error::during("list tables"))
    }

    /// Runs one reading statement with its parameters (`?1` …) and tells `sink` its rows.
    ///
    /// # Errors
    /// When the statement is not one that reads, is wrong, takes too long, or `sink` fails.
    pub async fn query(
        &mut self,
        sql: &str,
        parameters: &[Value],
        bounds: Bounds,
        sink: &mut impl Sink,
    ) -> Result<End, StateError> {
        if sql.len() > SQL_MAX {
            return Err(StateError::TooLong { max: SQL_MAX });
        }
        gate::one_query(sql)?;
        let too_slow = || StateError::TooSlow {
            timeout: bounds.timeout,
        };
        self.stop_after(bounds.timeout).await?;
        let running = run(&mut self.connection, sql, parameters, bounds, sink);
        match tokio::time::timeout(bounds.timeout.saturating_add(STOP_PATIENCE), running).await {
            Ok(Err(StateError::Query(error))) if is_interrupt(&error) => Err(too_slow()),
            Ok(result) => result,
            Err(_) => Err(too_slow()),
        }
    }

    /// [`Self::query`] into memory.
    ///
    /// # Errors
    /// As there.
    pub async fn rows(
        &mut self,
        sql: &str,
        parameters: &[Value],
        bounds: Bounds,
    ) -> Result<(Rows, End), StateError> {
        let mut rows = Rows::default();
        let end = self.query(sql, parameters, bounds, &mut rows).await?;
        Ok((rows, end))
    }

    /// Interrupts whatever still runs after `timeout`.
    pub(super) async fn stop_after(&mut self, timeout: Duration) -> Result<(), StateError> {
        let deadline = Instant::now().checked_add(timeout);
        let mut handle = self
            .connection
            .lock_handle()
            .await
            .map_err(StateError::Query)?;
        handle.set_progress_handler(STEPS, move || {
            deadline.is_none_or(|deadline| Instant::now() < deadline)
        });
        Ok(())
    }

    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// Closes the file.
    pub(super) async fn close(self) {
        // What was only read cannot be lost.
        let _ = self.connection.close().await;
    }
}

async fn run(
    connection: &mut SqliteConnection,
    sql: &str,
    parameters: &[Value],
    bounds: Bounds,
    sink: &mut impl Sink,
) -> Result<End, StateError> {
    let text = || sqlx::AssertSqlSafe(sql.to_owned()).into_sql_str();
    let prepared = connection
        .prepare(text())
        .await
        .map_err(StateError::Query)?;
    let names = names(prepared.columns().iter().map(Column::name));
    sink.columns(&names).map_err(StateError::Answer)?;
    let mut query = sqlx::query(text()).persistent(false);
    for parameter in parameters {
        query = match parameter.clone() {
            Value::Null => query.bind(None::<i64>),
            Value::Integer(number) => query.bind(number),
            Value::Real(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Blob(bytes) => query.bind(bytes),
        };
    }
    let mut stream = query.fetch(connection);
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    while let Some(row) = stream.try_next().await.map_err(StateError::Query)? {
        let values = Value::of_row(&row).map_err(StateError::Query)?;
        bytes = values
            .iter()
            .fold(bytes, |sum, value| sum.saturating_add(value.weight()));
        if rows == bounds.rows || bytes > bounds.bytes {
            return Ok(End::Cut(rows));
        }
        sink.row(values).map_err(StateError::Answer)?;
        rows += 1;
    }
    Ok(End::Whole)
}

/// Names that differ, as the keys of a JSON object must: the second `a` is called `a_2`.
fn names<'a>(given: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in given {
        let mut unique = name.to_owned();
        let mut count = 1_u32;
        while names.contains(&unique) {
            count += 1;
            unique = format!("{name}_{count}");
        }
        names.push(unique);
    }
    names
}

/// Whether SQLite stopped because it was told to (SQLITE_INTERRUPT).
pub(super) fn is_interrupt(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| code & 0xff == 9)
}
