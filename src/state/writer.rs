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
use tokio::time::Instant;

use super::StateError;
use super::error::is_busy;
use super::storage::{Fault, Storage, TRIAL_EVERY};
use super::wake::Wakes;
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

    /// A statement about the transaction itself.
    pub(super) async fn execute(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        sqlx::query(sql)
            .execute(&mut self.connection)
            .await
            .map(drop)
    }

    /// Gives the running transaction up, if there is still one, and what it would have woken.
    pub(super) async fn abandon(&mut self) {
        self.touched.clear();
        // SQLite may have rolled back by itself; then this fails, and all is well.
        let _none_running = self.execute("ROLLBACK").await;
    }
}

type Outcome = Box<dyn FnOnce(Result<(), StateError>) + Send>;
type Operation =
    Box<dyn for<'t> FnOnce(Result<&'t mut Tx, StateError>) -> BoxFuture<'t, Applied> + Send>;

/// What a write left behind, before the commit.
struct Applied {
    keep: bool,
    /// The file failed under it: the transaction may be gone.
    fault: Option<Fault>,
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
    storage: Arc<Storage>,
}

impl Writer {
    /// Starts the task that owns the connection; it ends when every handle is gone.
    pub(super) fn start(
        connection: SqliteConnection,
        wakes: Arc<Wakes>,
        storage: Arc<Storage>,
    ) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(connection, queue, wakes, Arc::clone(&storage)));
        Self { requests, storage }
    }

    /// Runs `write` in a transaction and returns its result once that is committed.
    pub(super) async fn write<T, F>(&self, name: &'static str, write: F) -> Result<T, StateError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StateError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let storage = Arc::clone(&self.storage);
        let operation: Operation = Box::new(move |tx| {
            Box::pin(async move {
                let result = match tx {
                    Ok(tx) => write(tx)
                        .await
                        .map_err(|error| storage.explain(name, error)),
                    Err(error) => Err(error),
                };
                let keep = result.is_ok();
                let fault = result.as_ref().err().and_then(StateError::fault);
                let outcome: Outcome = Box::new(move |committed| {
                    // Nobody may be waiting any more; the write stands all the same.
                    let _ = answer.send(result.and_then(|value| committed.map(|()| value)));
                });
                Applied {
                    keep,
                    fault,
                    outcome,
                }
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

async fn run(
    connection: SqliteConnection,
    mut queue: mpsc::Receiver<Request>,
    wakes: Arc<Wakes>,
    storage: Arc<Storage>,
) {
    let mut tx = Tx {
        connection,
        touched: HashSet::new(),
        queued: false,
    };
    let mut batch = Vec::with_capacity(BATCH);
    let mut next_trial = Instant::now();
    loop {
        tokio::select! {
            received = queue.recv_many(&mut batch, BATCH) => match received {
                0 => break,
                _ => commit_batch(&mut tx, &mut batch, &storage).await,
            },
            () = tokio::time::sleep_until(next_trial), if storage.may_recover() => {
                storage.try_again(&mut tx).await;
                next_trial = Instant::now() + TRIAL_EVERY;
            }
        }
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
async fn commit_batch(tx: &mut Tx, batch: &mut Vec<Request>, storage: &Storage) {
    if let Err((attempts, error)) = begin(tx).await {
        tracing::error!(operation = batch[0].name, %error, "cannot begin a transaction");
        let fault = Fault::of(&error);
        for request in batch.drain(..) {
            let (operation, why) = (request.name, error.to_string());
            let error = match fault {
                Some(fault) => storage.failed(operation, fault, why),
                None => StateError::Begin {
                    operation,
                    attempts,
                    why,
                },
            };
            ((request.operation)(Err(error)).await.outcome)(Ok(()));
        }
        return;
    }
    let mut applied = Vec::with_capacity(batch.len());
    let fault = apply(tx, batch, storage, &mut applied).await;
    let kept = applied.iter().any(|(_, applied)| applied.keep);
    let committed = match fault {
        // SQLite may have rolled back by itself, and what follows would be outside of any
        // transaction: nothing of this batch is kept.
        Some(fault) => Err((Some(fault), "the transaction was given up".to_owned())),
        None => execute(tx, if kept { "COMMIT" } else { "ROLLBACK" })
            .await
            .map_err(|error| (Fault::of(&error), error.to_string())),
    };
    if committed.is_err() {
        tx.abandon().await;
    }
    for (operation, applied) in applied {
        (applied.outcome)(match &committed {
            Ok(()) => Ok(()),
            Err((Some(fault), why)) => Err(storage.failed(operation, *fault, why.clone())),
            Err((None, why)) => Err(StateError::Commit { why: why.clone() }),
        });
    }
}

/// Applies each request of a batch; ends early when the file fails under one, and then answers the
/// rest without having tried.
async fn apply(
    tx: &mut Tx,
    batch: &mut Vec<Request>,
    storage: &Storage,
    applied: &mut Vec<(&'static str, Applied)>,
) -> Option<Fault> {
    let single = batch.len() == 1;
    let mut fault = None;
    for request in batch.drain(..) {
        if let Some(fault) = fault {
            let why = "the write before it failed".to_owned();
            let untried = storage.failed(request.name, fault, why);
            let outcome = (request.operation)(Err(untried)).await;
            applied.push((request.name, outcome));
            continue;
        }
        if !single && let Err(error) = execute(tx, "SAVEPOINT one").await {
            tracing::error!(%error, "cannot set a savepoint");
        }
        let one = (request.operation)(Ok(&mut *tx)).await;
        fault = one.fault;
        if !single && fault.is_none() {
            let end = if one.keep {
                "RELEASE one"
            } else {
                "ROLLBACK TO one; RELEASE one"
            };
            if let Err(error) = execute(tx, end).await {
                tracing::error!(%error, "cannot end a savepoint");
                fault = Fault::of(&error);
            }
        }
        applied.push((request.name, one));
    }
    fault
}

async fn execute(tx: &mut Tx, sql: &'static str) -> Result<(), sqlx::Error> {
    tx.execute(sql).await
}

/// `BEGIN IMMEDIATE`, tried again with exponential backoff while somebody else holds the lock; an
/// error comes with the number of attempts.
async fn begin(tx: &mut Tx) -> Result<(), (u32, sqlx::Error)> {
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
            Err(error) => return Err((attempt, error)),
        }
    }
}
