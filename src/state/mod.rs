//! All state of the node: one SQLite database, and in memory only what may be lost (wake-ups,
//! credentials of running pulls, samples).
//!
//! Front and back meet here. The front gets a [`DesiredWriter`], the back an [`ObservedWriter`];
//! each can do only its own side's writes (invariant I2). Reading is free to both, from a pool of
//! connections that never wait for the writer (WAL).

pub mod cleanup;
pub mod container;
pub mod container_facts;
pub mod error;
pub mod event;
pub mod health;
pub mod image;
pub mod job;
pub mod job_history;
pub mod network;
pub mod node;
pub mod operation;
pub mod progress;
pub mod pull;
pub mod sample;
pub mod sandbox;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod transition;
pub mod wake;
#[cfg(test)]
mod walk;
mod writer;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::SqlitePool;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool as Pool, SqlitePoolOptions,
    SqliteSynchronous,
};

pub use error::StateError;
pub use writer::{DesiredWriter, ObservedWriter};

use progress::Progress;
use wake::Wakes;
use writer::Writer;

/// Connections for reading; each has a thread of its own.
const READERS: u32 = 4;
/// How long SQLite itself waits for another process that holds the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the database mapped into memory.
const MMAP_BYTES: &str = "268435456";

/// Nanoseconds since 1970 UTC.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The reading side and what is in memory. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    readers: SqlitePool,
    wakes: Arc<Wakes>,
    progress: Arc<Progress>,
    samples: Arc<sample::Samples>,
    pull_secrets: Arc<pull::PullSecrets>,
}

impl Store {
    /// Opens (or makes) the database, brings its schema up to date and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails; the error names the path.
    pub async fn open(path: &Path) -> Result<(Self, DesiredWriter, ObservedWriter), StateError> {
        let opening = |source| StateError::Open {
            path: path.to_owned(),
            source,
        };
        let options = SqliteConnectOptions::from_str("sqlite://")
            .map_err(opening)?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // NORMAL loses at most the newest commits, and only when the node loses power: then
            // every process, mount and address those commits spoke of is gone as well, and what is
            // on disk without a row is swept. A killed daemon loses nothing.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .pragma("temp_store", "memory")
            .pragma("mmap_size", MMAP_BYTES);
        let mut connection = sqlx::ConnectOptions::connect(&options)
            .await
            .map_err(opening)?;
        sqlx::migrate!("src/state/migrations")
            .run(&mut connection)
            .await
            .map_err(|source| StateError::Migrate {
                path: path.to_owned(),
                source,
            })?;
        let readers: Pool = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(READERS)
            .test_before_acquire(false)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(opening)?;
        let wakes = Arc::new(Wakes::default());
        let writer = Writer::start(connection, Arc::clone(&wakes));
        let store = Self {
            readers,
            wakes,
            progress: Arc::default(),
            samples: Arc::default(),
            pull_secrets: Arc::default(),
        };
        Ok((store, DesiredWriter(writer.clone()), ObservedWriter(writer)))
    }

    /// Wake-ups: told after each commit which objects it touched.
    #[must_use]
    pub fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// How far running work has come.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Newest usage figures.
    #[must_use]
    pub fn samples(&self) -> &sample::Samples {
        &self.samples
    }

    /// Credentials of pulls under way; never stored.
    #[must_use]
    pub fn pull_secrets(&self) -> &pull::PullSecrets {
        &self.pull_secrets
    }

    /// Number of rows of every table, for the inventory.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_rows(&self) -> Result<Vec<(String, i64)>, StateError> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_schema WHERE type = 'table'
             AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' ORDER BY name",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(error::during("list tables"))?;
        let mut counts = Vec::with_capacity(names.len());
        for name in names {
            // The name comes from the schema itself.
            // Of cleanup tasks those count that still stand for something.
            let which = if name == "cleanup_tasks" {
                "WHERE status <> 'completed'"
            } else {
                ""
            };
            let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM \"{name}\" {which}"));
            let count = sqlx::query_scalar(sql)
                .fetch_one(&self.readers)
                .await
                .map_err(error::during("count rows"))?;
            counts.push((name, count));
        }
        Ok(counts)
    }
}
