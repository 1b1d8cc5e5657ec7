//! All state of the node: one SQLite database, and in memory only what may be lost (wake-ups,
//! credentials of running pulls, samples).
//!
//! Front and back meet here. The front gets a [`DesiredWriter`], the back an [`ObservedWriter`];
//! each can do only its own side's writes (invariant I2). Reading is free to both, from a pool of
//! connections that never wait for the writer (WAL).

pub mod attachment;
mod checkpoint;
pub mod claim;
pub mod cleanup;
pub mod container;
pub mod container_facts;
pub mod container_update;
mod copy;
pub mod error;
pub mod event;
#[cfg(test)]
mod event_tests;
pub mod figures;
pub mod health;
pub mod image;
pub mod image_document;
pub mod image_lookup;
pub mod image_volume;
pub mod inspect;
pub mod job;
pub mod job_history;
pub mod layer;
pub mod named;
pub mod network;
pub mod node;
pub mod offer;
pub mod opening;
pub mod operation;
pub mod policy;
pub mod port;
pub mod prepared;
pub mod progress;
pub mod pull;
pub mod pull_progress;
mod readers;
mod reboot;
pub mod rebuild;
pub mod retention;
mod retry;
pub mod salvage;
pub mod sample;
pub mod sandbox;
mod sandbox_init;
mod sandbox_update;
mod sandbox_wish;
pub mod schema;
pub mod snapshot;
mod specs;
mod sql;
mod storage;
pub mod sweep;
#[cfg(test)]
mod tests;
mod transition;
pub mod upkeep;
pub mod wake;
#[cfg(test)]
mod walk;
mod writer;

use std::future::Future;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};
use tokio::sync::Notify;

pub use error::StateError;
pub use storage::Trouble;
pub use writer::{DesiredWriter, ObservedWriter};

use crate::lifecycle::spec::{ContainerSpec, SandboxSpec};
use crate::metrics::Metrics;
use crate::sys::sqlite::SharedConnection;
use checkpoint::Checkpointer;
use progress::Progress;
use readers::Readers;
use retry::Retry;
use specs::Specs;
use storage::Storage;
use wake::Wakes;
use writer::Writer;

/// Connections for rare reads, for each side; each has a thread of its own. The front's are its
/// own, so that a call never stands behind the back's lists.
const READERS: u32 = 2;
/// Longest wait for a connection to read with.
const READER_PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for reads under way when the database is closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long SQLite itself waits for another process that holds the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Compiled statements that a connection keeps.
const STATEMENTS: usize = 512;
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
    direct: Arc<Readers>,
    readers: SqlitePool,
    back_readers: SqlitePool,
    storage: Arc<Storage>,
    wakes: Arc<Wakes>,
    progress: Arc<Progress>,
    samples: Arc<sample::Samples>,
    container_specs: Arc<Specs<ContainerSpec>>,
    sandbox_specs: Arc<Specs<SandboxSpec>>,
    pull_secrets: Arc<pull::PullSecrets>,
    sweeps: Arc<health::Sweeps>,
    given: Arc<event::Given>,
    metrics: Arc<Metrics>,
    closing: Arc<Closing>,
}

/// What has to be closed in order.
struct Closing {
    writer: Writer,
    checkpointer: Mutex<Option<Checkpointer>>,
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
        let metrics = Arc::new(Metrics::default());
        let options = options(path).map_err(opening)?;
        // Shared with statements that run at once.
        let shared = options.clone().serialized(true);
        let mut connection = connect(&shared, &metrics).await.map_err(opening)?;
        migrate(path, &mut connection, &metrics).await?;
        let connection = SharedConnection::new(connection, STATEMENTS).await;
        let connection = connection.map_err(opening)?;
        let checkpoints = connect(&options, &metrics).await.map_err(opening)?;
        let reading = options.clone().read_only(true).create_if_missing(false);
        let direct = Readers::open(path).map_err(opening)?;
        let readers = pool(reading.clone()).await.map_err(opening)?;
        let back_readers = pool(reading).await.map_err(opening)?;
        let wakes = Arc::new(Wakes::default());
        let due = Arc::new(Notify::new());
        let storage = Arc::new(Storage::new(path));
        let writer = Writer::start(
            connection,
            Arc::clone(&wakes),
            Arc::clone(&metrics),
            Arc::clone(&storage),
            Arc::clone(&due),
        )
        .map_err(|error| opening(error.into()))?;
        let checkpointer = Checkpointer::start(checkpoints, due, writer.clone());
        let store = Self {
            direct: Arc::new(direct),
            readers,
            back_readers,
            storage,
            wakes,
            progress: Arc::default(),
            samples: Arc::default(),
            container_specs: Arc::default(),
            sandbox_specs: Arc::default(),
            pull_secrets: Arc::default(),
            sweeps: Arc::default(),
            given: Arc::default(),
            metrics,
            closing: Arc::new(Closing {
                writer: writer.clone(),
                checkpointer: Mutex::new(Some(checkpointer)),
            }),
        };
        Ok((store, DesiredWriter(writer.clone()), ObservedWriter(writer)))
    }

    /// The same store, reading through the back's connections.
    #[must_use]
    pub fn for_back(&self) -> Self {
        Self {
            readers: self.back_readers.clone(),
            ..self.clone()
        }
    }

    /// Closes the database: the readers first, for the last connection to be closed moves the log
    /// into the database file and removes it, and only one that writes can do that. Whoever reads
    /// or writes from now on gets an error.
    pub async fn close(&self) {
        self.direct.close();
        let readers = async {
            self.readers.close().await;
            self.back_readers.close().await;
        };
        if tokio::time::timeout(CLOSE_PATIENCE, readers).await.is_err() {
            tracing::warn!("somebody still reads the database; its log stays for the next start");
        }
        let held = &self.closing.checkpointer;
        let checkpointer = held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(checkpointer) = checkpointer {
            checkpointer.close().await;
        }
        self.closing.writer.close().await;
    }

    /// Runs a read: counted, timed, and tried again while somebody holds a lock.
    async fn read<T, F, R>(&self, operation: &'static str, query: F) -> Result<T, StateError>
    where
        F: Fn() -> R,
        R: Future<Output = Result<T, sqlx::Error>>,
    {
        let _reading = self.metrics.readers.enter();
        let started = Instant::now();
        let result = retry::while_busy(operation, &self.metrics, query).await;
        let result = result.map_err(|(attempts, source)| error::read(operation, attempts, source));
        let labels = [operation, error::outcome(&result)];
        self.metrics.database.get(labels).observe(started.elapsed());
        result
    }

    /// The same for a read that runs at once, on this thread.
    async fn look<T>(
        &self,
        operation: &'static str,
        query: impl Fn(&Connection) -> Result<T, sqlx::Error> + Send + Sync,
    ) -> Result<T, StateError> {
        self.read(operation, || self.direct.read(&query)).await
    }

    /// What is counted in memory.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Why the database cannot be written just now; `None` when it can.
    #[must_use]
    pub fn storage_problem(&self) -> Option<String> {
        self.storage.problem()
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

    /// What the sweeps have found.
    #[must_use]
    pub fn sweeps(&self) -> &health::Sweeps {
        &self.sweeps
    }

    /// Number of rows of every table, for the inventory.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_rows(&self) -> Result<Vec<(String, i64)>, StateError> {
        let names: Vec<String> = self
            .read("list tables", || {
                sqlx::query_scalar(
                    "SELECT name FROM sqlite_schema WHERE type = 'table'
             AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' ORDER BY name",
                )
                .fetch_all(&self.readers)
            })
            .await?;
        let mut counts = Vec::with_capacity(names.len());
        for name in names {
            // The name comes from the schema itself.
            // Of cleanup tasks those count that still stand for something.
            let which = if name == "cleanup_tasks" {
                "WHERE status <> 'completed'"
            } else {
                ""
            };
            let sql = format!("SELECT count(*) FROM \"{name}\" {which}");
            let count = self
                .read("count rows", || {
                    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.as_str())).fetch_one(&self.readers)
                })
                .await?;
            counts.push((name, count));
        }
        Ok(counts)
    }
}

fn options(path: &Path) -> Result<SqliteConnectOptions, sqlx::Error> {
    let options = SqliteConnectOptions::from_str("sqlite://")?
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
        .pragma("mmap_size", MMAP_BYTES)
        // The checkpointer's work, not that of whoever happens to commit.
        .pragma("wal_autocheckpoint", "0")
        // Room for every statement there is: to compile one again costs more than to run it.
        .statement_cache_capacity(STATEMENTS)
        // Each is measured by operation instead.
        .disable_statement_logging();
    Ok(options)
}

async fn connect(
    options: &SqliteConnectOptions,
    metrics: &Metrics,
) -> Result<SqliteConnection, sqlx::Error> {
    let connected = retry::while_busy("open the database", metrics, || options.connect());
    connected.await.map_err(|(_, source)| source)
}

async fn migrate(
    path: &Path,
    connection: &mut SqliteConnection,
    metrics: &Metrics,
) -> Result<(), StateError> {
    schema::refuse_newer(connection, path).await?;
    let mut retry = Retry::new("migrate the schema", metrics);
    loop {
        match schema::MIGRATOR.run(&mut *connection).await {
            Ok(()) => return Ok(()),
            Err(MigrateError::Execute(error)) if retry.again(&error).await => {}
            Err(source) => {
                return Err(StateError::Migrate {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Connections for one side. They are kept for good: to open one again takes milliseconds, and its
/// prepared statements with it.
async fn pool(options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    SqlitePoolOptions::new()
        .min_connections(READERS)
        .max_connections(READERS)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .acquire_timeout(READER_PATIENCE)
        .connect_with(options)
        .await
}
