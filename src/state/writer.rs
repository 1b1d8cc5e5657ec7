//! The one connection that writes, and the group commit in front of it.
//!
//! Writes are closures sent to one task. Those that wait together are committed together: one
//! `BEGIN IMMEDIATE`, each write in its own savepoint, one `COMMIT`, then every caller hears of its
//! own outcome and the objects touched are woken. A caller that goes away cancels nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{Notify, mpsc, oneshot};

use super::StateError;
use super::checkpoint::checkpoint;
use super::error::outcome;
use super::retry::Retry;
use super::wake::Wakes;
use crate::fault;
use crate::id::ObjectKey;
use crate::metrics::Metrics;

/// Writes that may wait; beyond that a caller waits to be let in.
const QUEUE: usize = 1024;
/// Writes committed together at most.
const BATCH: usize = 64;
/// Transactions after which the log is moved into the database file: some megabytes.
const CHECKPOINT_EVERY: u32 = 256;

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
    told: bool,
}

impl Tx {
    /// Wakes whoever waits for this object, after the commit.
    pub(super) fn touch(&mut self, key: ObjectKey) {
        self.touched.insert(key);
    }

    /// Wakes whoever reads events as they come, after the commit.
    pub(super) fn told(&mut self) {
        self.told = true;
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

enum Message {
    Write(Request),
    /// Move the log into the database file, now.
    Checkpoint,
    /// Commit what is there, close the connection, and say so.
    Close(oneshot::Sender<()>),
}

/// A handle to the writer task.
#[derive(Clone)]
pub(super) struct Writer {
    messages: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Starts the task that owns the connection; it ends when it is closed or every handle is gone.
    /// `checkpoint_due` is told when the log should be moved.
    pub(super) fn start(
        connection: SqliteConnection,
        wakes: Arc<Wakes>,
        metrics: Arc<Metrics>,
        checkpoint_due: Arc<Notify>,
    ) -> Self {
        let (messages, queue) = mpsc::channel(QUEUE);
        let task = Task {
            tx: Tx {
                connection,
                incarnation: crate::id::random_name(),
                touched: HashSet::new(),
                queued: false,
                told: false,
            },
            wakes,
            metrics: Arc::clone(&metrics),
            checkpoint_due,
            since_checkpoint: 0,
        };
        tokio::spawn(task.run(queue));
        Self { messages, metrics }
    }

    /// Has the log moved into the database file between two transactions.
    pub(super) async fn checkpoint(&self) {
        // Without a writer nothing is added to the log.
        let _ = self.messages.send(Message::Checkpoint).await;
    }

    /// Commits what waits, and closes the connection. Later writes get [`StateError::Closed`].
    pub(super) async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.messages.send(Message::Close(answer)).await.is_ok() {
            let _ = answered.await;
        }
    }

    /// Runs `write` in a transaction and returns its result once that is committed.
    pub(super) async fn write<T, F>(&self, name: &'static str, write: F) -> Result<T, StateError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StateError>> + Send + 'static,
    {
        let (request, answered) = self.request(name, write);
        self.messages
            .send(request)
            .await
            .map_err(|_| StateError::Closed)?;
        answered.await.map_err(|_| StateError::Closed)?
    }

    /// A write as the task takes it, and where its result comes.
    fn request<T, F>(
        &self,
        name: &'static str,
        write: F,
    ) -> (Message, oneshot::Receiver<Result<T, StateError>>)
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StateError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (metrics, started) = (Arc::clone(&self.metrics), Instant::now());
        let operation: Operation = Box::new(move |tx| {
            Box::pin(async move {
                let result = match tx {
                    Ok(tx) => write(tx).await,
                    Err(error) => Err(error),
                };
                let keep = result.is_ok();
                let outcome: Outcome = Box::new(move |committed| {
                    let result = result.and_then(|value| committed.map(|()| value));
                    let labels = [name, outcome(&result)];
                    metrics.database.get(labels).observe(started.elapsed());
                    // Nobody may be waiting any more; the write stands all the same.
                    let _ = answer.send(result);
                });
                Applied { keep, outcome }
            })
        });
        (Message::Write(Request { name, operation }), answered)
    }

    /// Puts `write` in line at once and does not wait for it: what is written next comes after it.
    /// A failure is logged.
    pub(super) fn write_behind<F>(&self, name: &'static str, write: F)
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<(), StateError>> + Send + 'static,
    {
        let (request, answered) = self.request(name, write);
        let late = match self.messages.try_send(request) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(request)) => Some(request),
            // The daemon ends.
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        };
        let messages = self.messages.clone();
        tokio::spawn(async move {
            if let Some(request) = late
                && messages.send(request).await.is_err()
            {
                return;
            }
            drop(messages);
            if let Ok(Err(error)) = answered.await {
                tracing::warn!(operation = name, %error, "a write behind the answer failed");
            }
        });
    }
}

struct Task {
    tx: Tx,
    wakes: Arc<Wakes>,
    metrics: Arc<Metrics>,
    checkpoint_due: Arc<Notify>,
    since_checkpoint: u32,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut messages = Vec::with_capacity(BATCH);
        let mut batch = Vec::with_capacity(BATCH);
        let mut closing = None;
        while closing.is_none() && queue.recv_many(&mut messages, BATCH).await > 0 {
            let mut move_log = false;
            for message in messages.drain(..) {
                match message {
                    Message::Write(request) => batch.push(request),
                    Message::Checkpoint => move_log = true,
                    Message::Close(answer) => closing = Some(answer),
                }
            }
            if !batch.is_empty() {
                self.commit(&mut batch).await;
            }
            if move_log && let Err(error) = checkpoint(&mut self.tx.connection).await {
                tracing::warn!(%error, "cannot move the log into the database");
            }
        }
        drop(queue);
        if let Err(error) = self.tx.connection.close().await {
            tracing::warn!(%error, "closing the database");
        }
        if let Some(answer) = closing {
            let _ = answer.send(());
        }
    }

    async fn commit(&mut self, batch: &mut Vec<Request>) {
        commit_batch(&mut self.tx, batch, &self.metrics).await;
        for key in self.tx.touched.drain() {
            self.wakes.wake(&key);
        }
        if std::mem::take(&mut self.tx.queued) {
            self.wakes.wake_dispatcher();
        }
        if std::mem::take(&mut self.tx.told) {
            self.wakes.wake_readers();
        }
        self.since_checkpoint += 1;
        if self.since_checkpoint >= CHECKPOINT_EVERY {
            self.since_checkpoint = 0;
            self.checkpoint_due.notify_one();
        }
    }
}

/// Applies and commits a batch. Every outcome is told exactly once.
async fn commit_batch(tx: &mut Tx, batch: &mut Vec<Request>, metrics: &Metrics) {
    if let Err((attempts, error)) = begin(tx, metrics).await {
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
async fn begin(tx: &mut Tx, metrics: &Metrics) -> Result<(), (u32, String)> {
    if let Err(error) = fault::point("writer.begin").await {
        return Err((1, error.to_string()));
    }
    let mut retry = Retry::new("begin a transaction", metrics);
    loop {
        match execute(tx, "BEGIN IMMEDIATE").await {
            Ok(()) => return Ok(()),
            Err(error) if retry.again(&error).await => {}
            Err(error) => return Err((retry.attempts(), error.to_string())),
        }
    }
}
