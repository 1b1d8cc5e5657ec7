//! The one connection that writes, and the group commit in front of it.
//!
//! Writes are closures sent to one task. Those that wait together are committed together: one
//! `BEGIN IMMEDIATE`, each write in its own savepoint, one `COMMIT`, then every caller hears of its
//! own outcome and the objects touched are woken. A caller that goes away cancels nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::StateError;
use super::error::is_busy;
use super::wake::Wakes;
use crate::fault;
use crate::id::ObjectKey;

/// Writes that may wait; beyond that a caller waits to be let in.
const QUEUE: usize = 1024;
/// Writes committed together at most.
const BATCH: usize = 64;
/// Tries when another process holds the lock, and the first pause between them.
const BUSY_ATTEMPTS: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The front's pen: wishes and the jobs that follow from them.
#[derive(Clone)]
pub struct DesiredWriter(pub(super) Writer);

/// The back's pen: facts, events, and the queue's own book-keeping.
#[derive(Clone)]
pub struct ObservedWriter(pub(super) Writer);

/// One write inside the running transaction.
pub(super) struct Tx {
    pub(super) connection: SqliteConnection,
    /// The name of this daemon's life: jobs that another one claimed are due again.
    pub(super) incarnation: String,
    touched: HashSet<ObjectKey>,
    queued: bool,
}

impl Tx {
    /// Wakes whoever waits for this object, after the commit.
    pub(super) fn touch(&mut self, key: ObjectKey) {
        self.touched.insert(key);
    }

    /// Wakes the dispatcher, after the commit.
    pub(super) fn queued(&mut self) {
        self.queued = true;
    }
}

type Outcome = Box<dyn FnOnce(Result<(), StateError>) + Send>;
type Operation =
    Box<dyn for<'t> FnOnce(Result<&'t mut Tx, StateError>) -> BoxFuture<'t, Applied> + Send>;

/// What a write left behind, before the commit.
struct Applied {
    keep: bool,
    outcome: Outcome,
}

struct Request {
    name: &'static str,
    operation: Operation,
}

/// A handle to the writer task.
#[derive(Clone)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
}

impl Writer {
    /// Starts the task that owns the connection; it ends when every handle is gone.
    pub(super) fn start(connection: SqliteConnection, wakes: Arc<Wakes>) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(connection, queue, wakes));
        Self { requests }
    }

    /// Runs `write` in a transaction and returns its result once that is committed.
    pub(super) async fn write<T, F>(&self, name: &'static str, write: F) -> Result<T, StateError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StateError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let operation: Operation = Box::new(move |tx| {
            Box::pin(async move {
                let result = match tx {
                    Ok(tx) => write(tx).await,
                    Err(error) => Err(error),
                };
                let keep = result.is_ok();
                let outcome: Outcome = Box::new(move |committed| {
                    // Nobody may be waiting any more; the write stands all the same.
                    let _ = answer.send(result.and_then(|value| committed.map(|()| value)));
                });
                Applied { keep, outcome }
            })
        });
        let request = Request { name, operation };
        self.requests
            .send(request)
            .await
            .map_err(|_| StateError::Closed)?;
        answered.await.map_err(|_| StateError::Closed)?
    }
}

async fn run(connection: SqliteConnection, mut queue: mpsc::Receiver<Request>, wakes: Arc<Wakes>) {
    let mut tx = Tx {
        connection,
        incarnation: crate::id::random_name(),
        touched: HashSet::new(),
        queued: false,
    };
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        commit_batch(&mut tx, &mut batch).await;
        for key in tx.touched.drain() {
            wakes.wake(&key);
        }
        if std::mem::take(&mut tx.queued) {
            wakes.wake_dispatcher();
        }
    }
    if let Err(error) = tx.connection.close().await {
        tracing::warn!(%error, "closing the database");
    }
}

/// Applies and commits a batch. Every outcome is told exactly once.
async fn commit_batch(tx: &mut Tx, batch: &mut Vec<Request>) {
    if let Err((attempts, error)) = begin(tx).await {
        tracing::error!(operation = batch[0].name, %error, "cannot begin a transaction");
        for request in batch.drain(..) {
            let error = StateError::Begin {
                operation: request.name,
                attempts,
                why: error.clone(),
            };
            ((request.operation)(Err(error)).await.outcome)(Ok(()));
        }
        return;
    }
    let single = batch.len() == 1;
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.len());
    let mut kept = false;
    for request in batch.drain(..) {
        if !single && let Err(error) = execute(tx, "SAVEPOINT one").await {
            tracing::error!(%error, "cannot set a savepoint");
        }
        let applied = (request.operation)(Ok(&mut *tx)).await;
        kept |= applied.keep;
        if !single {
            let end = if applied.keep {
                "RELEASE one"
            } else {
                "ROLLBACK TO one; RELEASE one"
            };
            if let Err(error) = execute(tx, end).await {
                tracing::error!(%error, "cannot end a savepoint");
            }
        }
        outcomes.push(applied.outcome);
    }
    let committed = end_batch(tx, kept).await;
    if committed.is_err() {
        tx.touched.clear();
        let _ = execute(tx, "ROLLBACK").await;
    }
    for outcome in outcomes {
        outcome(match &committed {
            Ok(()) => Ok(()),
            Err(why) => Err(StateError::Commit { why: why.clone() }),
        });
    }
}

/// Commits, or rolls back when no write of the batch is to be kept.
async fn end_batch(tx: &mut Tx, kept: bool) -> Result<(), String> {
    if !kept {
        return execute(tx, "ROLLBACK")
            .await
            .map_err(|error| error.to_string());
    }
    fault::point("writer.commit")
        .await
        .map_err(|error| error.to_string())?;
    execute(tx, "COMMIT")
        .await
        .map_err(|error| error.to_string())?;
    fault::point("writer.committed")
        .await
        .map_err(|error| error.to_string())
}

async fn execute(tx: &mut Tx, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(&mut tx.connection).await.map(drop)
}

/// `BEGIN IMMEDIATE`, tried again with exponential backoff while somebody else holds the lock; an
/// error comes with the number of attempts.
async fn begin(tx: &mut Tx) -> Result<(), (u32, String)> {
    if let Err(error) = fault::point("writer.begin").await {
        return Err((1, error.to_string()));
    }
    let mut pause = BUSY_PAUSE;
    let mut attempt = 1;
    loop {
        match execute(tx, "BEGIN IMMEDIATE").await {
            Ok(()) => return Ok(()),
            Err(error) if is_busy(&error) && attempt < BUSY_ATTEMPTS => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BUSY_PAUSE_MAX);
                attempt += 1;
            }
            Err(error) => return Err((attempt, error.to_string())),
        }
    }
}
