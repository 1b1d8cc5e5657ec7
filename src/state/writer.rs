//! The one connection that writes, and the group commit in front of it.
//!
//! Writes are closures sent to one thread. Those that wait together are committed together: one
//! `BEGIN IMMEDIATE`, each write in its own savepoint, one `COMMIT`, then every caller hears of its
//! own outcome and the objects touched are woken. A caller that goes away cancels nothing. What
//! nobody waits for is left lying for some milliseconds, so that it goes with another write.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep_until;

use super::StateError;
use super::checkpoint::checkpoint;
use super::error::{during, outcome};
use super::offer::{Claimed, Offer, Offers};
use super::retry::Retry;
use super::sql;
use super::storage::{Storage, TRIAL_EVERY, Trouble};
use super::wake::Wakes;
use crate::fault;
use crate::id::ObjectKey;
use crate::metrics::Metrics;
use crate::sys::sqlite::SharedConnection;

/// Writes that may wait; beyond that a caller waits to be let in.
const QUEUE: usize = 1024;
/// Writes committed together at most.
const BATCH: usize = 64;
/// How long what nobody waits for may wait for company.
const LATER: Duration = Duration::from_millis(10);
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
    pub(super) connection: SharedConnection,
    /// The name of this daemon's life: jobs that another one claimed are due again.
    pub(super) incarnation: String,
    touched: HashSet<ObjectKey>,
    /// Keys that were queued since they were last claimed or put down.
    pub(super) asked: HashSet<ObjectKey>,
    /// Keys that the running transaction claims, and those of one that may or may not have been
    /// committed: nobody looks at them until they have been claimed once more.
    pub(super) claimed: Vec<ObjectKey>,
    pub(super) doubtful: Vec<ObjectKey>,
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

    /// A statement about the transaction itself.
    pub(super) fn execute(&self, sql: &'static str) -> Result<(), sqlx::Error> {
        sql::run(self.connection.direct(), sql, []).map(drop)
    }

    /// Gives the running transaction up, if there is still one, and what it would have woken.
    pub(super) fn abandon(&mut self) {
        self.touched.clear();
        self.asked.clear();
        self.doubtful.append(&mut self.claimed);
        // SQLite may have rolled back by itself; then this fails, and all is well.
        let _none_running = self.execute("ROLLBACK");
    }
}

type Outcome = Box<dyn FnOnce(Result<(), StateError>) + Send>;
type Operation =
    Box<dyn for<'t> FnOnce(Result<&'t mut Tx, StateError>) -> BoxFuture<'t, Applied> + Send>;

/// What a write left behind, before the commit.
struct Applied {
    keep: bool,
    /// The file failed under it: the transaction may be gone.
    trouble: Option<Trouble>,
    outcome: Outcome,
}

struct Request {
    name: &'static str,
    operation: Operation,
}

enum Message {
    Write(Request),
    /// A write that may wait for company, unless this key has been asked for.
    Later(Request, Option<ObjectKey>),
    /// Move the log into the database file, now.
    Checkpoint,
    /// Commit what is there, close the connection, and say so.
    Close(oneshot::Sender<()>),
}

/// A handle to the writer's thread.
#[derive(Clone)]
pub(super) struct Writer {
    messages: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
    storage: Arc<Storage>,
    pub(super) offers: Arc<Offers>,
}

impl Writer {
    /// Starts the thread that owns the connection; it ends when it is closed or every handle is
    /// gone. It is a thread because statements are run at once and a commit may wait for the disk.
    /// `checkpoint_due` is told when the log should be moved.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(super) fn start(
        connection: SharedConnection,
        wakes: Arc<Wakes>,
        metrics: Arc<Metrics>,
        storage: Arc<Storage>,
        checkpoint_due: Arc<Notify>,
    ) -> std::io::Result<Self> {
        let (messages, queue) = mpsc::channel(QUEUE);
        let offers = Arc::new(Offers::default());
        let task = Task {
            tx: Tx {
                connection,
                incarnation: crate::id::random_name(),
                touched: HashSet::new(),
                asked: HashSet::new(),
                claimed: Vec::new(),
                doubtful: Vec::new(),
                queued: false,
                told: false,
            },
            wakes,
            metrics: Arc::clone(&metrics),
            storage: Arc::clone(&storage),
            offers: Arc::clone(&offers),
            checkpoint_due,
            since_checkpoint: 0,
            next_trial: tokio::time::Instant::now(),
            due: None,
        };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("quilt-writer".into())
            .spawn(move || runtime.block_on(task.run(queue)))?;
        Ok(Self {
            messages,
            metrics,
            storage,
            offers,
        })
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
        self.send(Message::Write(request)).await?;
        answered.await.map_err(|_| StateError::Closed)?
    }

    /// The same for a write that may wait for another one to go with, unless `unless_asked` is
    /// queued or has been since it was claimed.
    pub(super) async fn write_later<T, F>(
        &self,
        name: &'static str,
        unless_asked: Option<ObjectKey>,
        write: F,
    ) -> Result<T, StateError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StateError>> + Send + 'static,
    {
        let (request, answered) = self.request(name, write);
        self.send(Message::Later(request, unless_asked)).await?;
        answered.await.map_err(|_| StateError::Closed)?
    }

    async fn send(&self, message: Message) -> Result<(), StateError> {
        let sent = self.messages.send(message).await;
        sent.map_err(|_| StateError::Closed)
    }

    /// A write as the task takes it, and where its result comes.
    fn request<T, F>(
        &self,
        name: &'static str,
        write: F,
    ) -> (Request, oneshot::Receiver<Result<T, StateError>>)
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StateError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (metrics, started) = (Arc::clone(&self.metrics), Instant::now());
        let storage = Arc::clone(&self.storage);
        let operation: Operation = Box::new(move |tx| {
            Box::pin(async move {
                let result = match tx {
                    Ok(tx) => write(tx).await.map_err(|error| storage.explain(error)),
                    Err(error) => Err(error),
                };
                let keep = result.is_ok();
                let trouble = result.as_ref().err().and_then(StateError::trouble);
                let outcome: Outcome = Box::new(move |committed| {
                    let result = result.and_then(|value| committed.map(|()| value));
                    let labels = [name, outcome(&result)];
                    metrics.database.get(labels).observe(started.elapsed());
                    // Nobody may be waiting any more; the write stands all the same.
                    let _ = answer.send(result);
                });
                Applied {
                    keep,
                    trouble,
                    outcome,
                }
            })
        });
        (Request { name, operation }, answered)
    }

    /// Puts `write` in line at once and does not wait for it: what is written next comes after it,
    /// and it may wait for that. A failure is logged.
    pub(super) fn write_behind<F>(&self, name: &'static str, write: F)
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<(), StateError>> + Send + 'static,
    {
        let (request, answered) = self.request(name, write);
        let late = match self.messages.try_send(Message::Later(request, None)) {
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
    storage: Arc<Storage>,
    offers: Arc<Offers>,
    checkpoint_due: Arc<Notify>,
    since_checkpoint: u32,
    next_trial: tokio::time::Instant,
    /// When what waits for company is committed without any.
    due: Option<tokio::time::Instant>,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut messages = Vec::with_capacity(BATCH);
        let mut batch = Vec::with_capacity(BATCH);
        let mut closing = None;
        while closing.is_none() && self.receive(&mut queue, &mut messages, batch.len()).await {
            let (mut move_log, mut now) = (false, false);
            for message in messages.drain(..) {
                match message {
                    Message::Write(request) => {
                        batch.push(request);
                        now = true;
                    }
                    Message::Later(request, unless_asked) => {
                        batch.push(request);
                        now |= unless_asked.is_some_and(|key| self.tx.asked.contains(&key));
                    }
                    Message::Checkpoint => move_log = true,
                    Message::Close(answer) => closing = Some(answer),
                }
            }
            if now || closing.is_some() || batch.len() >= BATCH || self.is_due() {
                self.commit(&mut batch).await;
            } else if self.due.is_none() && !batch.is_empty() {
                self.due = Some(tokio::time::Instant::now() + LATER);
            }
            if move_log && let Err(error) = checkpoint(&mut self.tx.connection).await {
                tracing::warn!(%error, "cannot move the log into the database");
            }
        }
        drop(queue);
        self.commit(&mut batch).await;
        if let Err(error) = self.tx.connection.close().await {
            tracing::warn!(%error, "closing the database");
        }
        if let Some(answer) = closing {
            let _ = answer.send(());
        }
    }

    fn is_due(&self) -> bool {
        self.due
            .is_some_and(|due| due <= tokio::time::Instant::now())
    }

    /// Waits for messages, or until those that wait are due; meanwhile, while the file is in
    /// trouble, tries whether it still is. `false` says that nobody is left to send any.
    async fn receive(
        &mut self,
        queue: &mut mpsc::Receiver<Message>,
        messages: &mut Vec<Message>,
        waiting: usize,
    ) -> bool {
        loop {
            let due = self.due.unwrap_or(self.next_trial);
            tokio::select! {
                biased;
                received = queue.recv_many(messages, BATCH - waiting) => return received > 0,
                () = sleep_until(due), if self.due.is_some() => return true,
                () = sleep_until(self.next_trial), if self.storage.may_recover() => {
                    self.storage.try_again(&mut self.tx).await;
                    self.next_trial = tokio::time::Instant::now() + TRIAL_EVERY;
                    self.wake();
                }
            }
        }
    }

    fn wake(&mut self) {
        for key in self.tx.touched.drain() {
            self.wakes.wake(&key);
        }
        if std::mem::take(&mut self.tx.queued) {
            self.wakes.wake_dispatcher();
        }
        if std::mem::take(&mut self.tx.told) {
            self.wakes.wake_readers();
        }
    }

    async fn commit(&mut self, batch: &mut Vec<Request>) {
        self.due = None;
        if batch.is_empty() {
            return;
        }
        self.commit_batch(batch).await;
        self.wake();
        self.since_checkpoint += 1;
        if self.since_checkpoint >= CHECKPOINT_EVERY {
            self.since_checkpoint = 0;
            self.checkpoint_due.notify_one();
        }
    }
}

/// Why a transaction could not be begun or ended, and what that says of the file.
struct Failed {
    trouble: Option<Trouble>,
    why: String,
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self {
            trouble: Trouble::of(&error),
            why: error.to_string(),
        }
    }
}

impl From<fault::Fault> for Failed {
    fn from(error: fault::Fault) -> Self {
        Self {
            trouble: None,
            why: error.to_string(),
        }
    }
}

impl Task {
    /// Applies and commits a batch. Every outcome is told exactly once.
    async fn commit_batch(&mut self, batch: &mut Vec<Request>) {
        let (tx, storage) = (&mut self.tx, &self.storage);
        if let Err((attempts, failed)) = begin(tx, &self.metrics).await {
            return refuse(batch, storage, attempts, &failed).await;
        }
        let mut applied = Vec::with_capacity(batch.len());
        let mut trouble = apply(tx, batch, storage, &mut applied).await;
        let kept = applied.iter().any(|(_, applied)| applied.keep);
        let mut claimed = None;
        if kept && trouble.is_none() {
            match claim_offered(tx, &self.offers) {
                Ok(done) => claimed = done,
                Err(error) => {
                    tracing::error!(%error, "cannot claim jobs");
                    trouble = storage.explain(error).trouble();
                }
            }
        }
        let committed = match trouble {
            // SQLite may have rolled back by itself, and what follows would be outside of any
            // transaction: nothing of this batch is kept.
            Some(trouble) => Err(Failed {
                trouble: Some(trouble),
                why: "the transaction was given up".into(),
            }),
            None => end_batch(tx, kept).await,
        };
        if committed.is_err() {
            tx.abandon();
        }
        tx.claimed.clear();
        if committed.is_ok()
            && let Some((answer, claimed)) = claimed
        {
            // Should nobody take it, the daemon ends, and the next one finds the jobs.
            let _ = answer.send(claimed);
        }
        for (operation, applied) in applied {
            (applied.outcome)(match &committed {
                Ok(()) => Ok(()),
                Err(Failed { trouble, why }) => Err(match trouble {
                    Some(trouble) => storage.failed(operation, *trouble, why.clone()),
                    None => StateError::Commit { why: why.clone() },
                }),
            });
        }
    }
}

/// Answers a batch for which no transaction could be begun.
async fn refuse(batch: &mut Vec<Request>, storage: &Storage, attempts: u32, failed: &Failed) {
    let error = &failed.why;
    let operation = batch.first().map(|request| request.name);
    tracing::error!(operation, error, "cannot begin a transaction");
    for request in batch.drain(..) {
        let (operation, why) = (request.name, failed.why.clone());
        let error = match failed.trouble {
            Some(trouble) => storage.failed(operation, trouble, why),
            None => StateError::Begin {
                operation,
                attempts,
                why,
            },
        };
        ((request.operation)(Err(error)).await.outcome)(Ok(()));
    }
}

/// When a job was queued and the worker offers slots: claims what is due, in the transaction that
/// queued it. The worker hears of it after the commit.
fn claim_offered(
    tx: &mut Tx,
    offers: &Offers,
) -> Result<Option<(oneshot::Sender<Claimed>, Claimed)>, StateError> {
    if !tx.queued {
        return Ok(None);
    }
    let Some(Offer { free, answer }) = offers.take() else {
        return Ok(None);
    };
    tx.execute("SAVEPOINT one").map_err(during("claim jobs"))?;
    let claimed = tx.claim_jobs(free);
    end_one(tx, claimed.is_ok()).map_err(during("claim jobs"))?;
    let (claims, next) = claimed?;
    // It needs no other word.
    tx.queued = false;
    let claimed = Claimed { free, claims, next };
    Ok(Some((answer, claimed)))
}

/// Applies each request of a batch; when the file fails under one, the rest is answered untried.
async fn apply(
    tx: &mut Tx,
    batch: &mut Vec<Request>,
    storage: &Storage,
    applied: &mut Vec<(&'static str, Applied)>,
) -> Option<Trouble> {
    let single = batch.len() == 1;
    let mut trouble = None;
    for request in batch.drain(..) {
        if let Some(trouble) = trouble {
            let why = "the write before it failed".to_owned();
            let untried = storage.failed(request.name, trouble, why);
            let outcome = (request.operation)(Err(untried)).await;
            applied.push((request.name, outcome));
            continue;
        }
        if !single && let Err(error) = tx.execute("SAVEPOINT one") {
            tracing::error!(%error, "cannot set a savepoint");
        }
        let one = (request.operation)(Ok(&mut *tx)).await;
        trouble = one.trouble;
        if !single
            && trouble.is_none()
            && let Err(error) = end_one(tx, one.keep)
        {
            tracing::error!(%error, "cannot end a savepoint");
            trouble = Trouble::of(&error);
        }
        applied.push((request.name, one));
    }
    trouble
}

/// Ends the savepoint of one write.
fn end_one(tx: &Tx, keep: bool) -> Result<(), sqlx::Error> {
    if !keep {
        tx.execute("ROLLBACK TO one")?;
    }
    tx.execute("RELEASE one")
}

/// Commits, or rolls back when no write of the batch is to be kept.
async fn end_batch(tx: &mut Tx, kept: bool) -> Result<(), Failed> {
    if !kept {
        return Ok(tx.execute("ROLLBACK")?);
    }
    fault::point("writer.commit").await?;
    tx.execute("COMMIT")?;
    Ok(fault::point("writer.committed").await?)
}

/// `BEGIN IMMEDIATE`, tried again with exponential backoff while somebody else holds the lock; an
/// error comes with the number of attempts.
async fn begin(tx: &mut Tx, metrics: &Metrics) -> Result<(), (u32, Failed)> {
    if let Err(error) = fault::point("writer.begin").await {
        return Err((1, error.into()));
    }
    let mut retry = Retry::new("begin a transaction", metrics);
    loop {
        match tx.execute("BEGIN IMMEDIATE") {
            Ok(()) => return Ok(()),
            Err(error) if retry.again(&error).await => {}
            Err(error) => return Err((retry.attempts(), error.into())),
        }
    }
}
