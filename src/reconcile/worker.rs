//! Takes keys off the queue and has each looked at: several at a time, never one key twice. Each
//! lane (`lifecycle::job`) has slots of its own, so that pulls and cleanup, which may be slow,
//! never keep a pod waiting.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::{
    Back, ReconcileError, attachment, caught, cleanup, container, image, prepared, sandbox,
};
use crate::fault;
use crate::id::ObjectKey;
use crate::lifecycle::job::{Kind, Lane};
use crate::state::job::{Free, Outcome};
use crate::state::offer::Claimed;
use crate::state::{ObservedWriter, StateError, Store, now_ns};

/// Longest pause without a look at the queue, should a wake-up ever be missed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause before jobs are claimed again, when the database would not have it.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);
/// First pause before a job is put down again, when the database would not have it; doubled up to
/// the longest one.
const PUT_DOWN_PAUSE: Duration = Duration::from_millis(10);
/// A pause that is shorter than this begins at once, ns.
const SOON_NS: i64 = 1_000_000_000;
/// Between two looks at whether finished jobs are to be forgotten.
const PRUNE_PERIOD: Duration = Duration::from_secs(10);
/// Finished jobs that are forgotten in one transaction.
const PRUNE_BATCH: u32 = 500;

/// How jobs are run and remembered.
#[derive(Debug, Clone, Copy)]
pub struct JobRules {
    /// How long finished jobs and failed looks are kept.
    pub history: Duration,
    /// How many of them at most.
    pub history_rows: u32,
    /// After how long a job that still runs is reported.
    pub long_running: Duration,
}

/// The slots of each lane.
struct Slots {
    pods: Arc<Semaphore>,
    pulls: Arc<Semaphore>,
    cleanup: Arc<Semaphore>,
    plugins: Arc<Semaphore>,
}

impl Slots {
    fn new() -> Self {
        let of = |lane: Lane| Arc::new(Semaphore::new(lane.slots()));
        Self {
            pods: of(Lane::Pods),
            pulls: of(Lane::Pulls),
            cleanup: of(Lane::Cleanup),
            plugins: of(Lane::Plugins),
        }
    }

    fn of(&self, lane: Lane) -> &Arc<Semaphore> {
        match lane {
            Lane::Pods => &self.pods,
            Lane::Pulls => &self.pulls,
            Lane::Cleanup => &self.cleanup,
            Lane::Plugins => &self.plugins,
        }
    }

    /// Only [`run`] takes slots, so what is free here can be taken.
    fn free(&self) -> Free {
        let of = |lane| u32::try_from(self.of(lane).available_permits()).unwrap_or(u32::MAX);
        Free {
            pods: of(Lane::Pods),
            pulls: of(Lane::Pulls),
            cleanup: of(Lane::Cleanup),
            plugins: of(Lane::Plugins),
        }
    }

    async fn take(&self, key: &ObjectKey) -> Option<OwnedSemaphorePermit> {
        let slots = Arc::clone(self.of(Kind::of(key).lane()));
        slots.acquire_owned().await.ok()
    }
}

/// Runs until `stop` turns true, then waits for the steps under way.
pub async fn run(back: Back, rules: JobRules, stop: watch::Receiver<bool>) {
    let (observed, store) = (back.observed.clone(), back.store.clone());
    let look = |key| {
        let back = back.clone();
        async move { look(&back, key, rules.long_running).await }
    };
    dispatch(&observed, &store, look, stop).await;
}

/// Has keys looked at, each lane's within its slots.
async fn dispatch<L, F>(
    observed: &ObservedWriter,
    store: &Store,
    look: L,
    mut stop: watch::Receiver<bool>,
) where
    L: Fn(ObjectKey) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Slots::new();
    let mut running = JoinSet::new();
    let mut handed = None;
    let mut again = false;
    loop {
        let mut ended = false;
        while running.try_join_next().is_some() {
            ended = true;
        }
        let was_handed = handed.is_some();
        let claimed = match handed.take() {
            Some(claimed) => Some(claimed),
            None if *stop.borrow() => break,
            None => claim(observed, slots.free()).await,
        };
        // As it was for the claim: what did not fit then is still due.
        let full = claimed.as_ref().is_some_and(Claimed::filled_a_lane);
        // All that was due and had room has been claimed: each claim is a transaction, and one that
        // finds nothing is paid for by whoever writes next.
        let pause = match &claimed {
            Some(claimed) => claimed.next.map_or(LONGEST_PAUSE, until),
            None => CLAIM_PAUSE,
        };
        for claim in claimed.into_iter().flat_map(|claimed| claimed.claims) {
            let Some(slot) = slots.take(&claim.key).await else {
                return;
            };
            let look = look(claim.key);
            running.spawn(async move {
                look.await;
                drop(slot);
            });
        }
        // What has woken us, or a look that has ended, may have come after what was handed over.
        if std::mem::take(&mut again) || (was_handed && ended && full) {
            continue;
        }
        let mut offer = observed.offer_slots(slots.free());
        let mut answer = None;
        tokio::select! {
            claimed = offer.answered() => answer = Some(claimed),
            () = store.wakes().work() => {}
            // In a lane that was full something may be due.
            Some(_) = running.join_next(), if full => {}
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        handed = match answer {
            Some(claimed) => claimed,
            None => {
                let claimed = offer.withdraw().await;
                again = claimed.is_some();
                claimed
            }
        };
    }
    while running.join_next().await.is_some() {}
}

/// Claims what is due; `None` when the database would not have it.
async fn claim(observed: &ObservedWriter, free: Free) -> Option<Claimed> {
    match observed.claim_jobs(free).await {
        Ok((claims, next)) => Some(Claimed { free, claims, next }),
        Err(error) => {
            tracing::error!(%error, "cannot claim jobs");
            None
        }
    }
}

fn until(due_ns: i64) -> Duration {
    let left = u64::try_from(due_ns.saturating_sub(now_ns())).unwrap_or(0);
    Duration::from_nanos(left).min(LONGEST_PAUSE)
}

/// Has one key looked at until it rests, waits or fails, and puts the job down.
async fn look(back: &Back, key: ObjectKey, long_running: Duration) {
    let outcome = outcome(back, &key, long_running).await;
    put_down(back, key, outcome).await;
}

async fn outcome(back: &Back, key: &ObjectKey, long_running: Duration) -> Outcome {
    // A panic is a failed look, and nobody else's business.
    let looking = AssertUnwindSafe(caught::inside(reconcile(back, key))).catch_unwind();
    let mut looking = std::pin::pin!(looking);
    let result = match tokio::time::timeout(long_running, &mut looking).await {
        Ok(result) => result,
        Err(_) => {
            report(back, key, long_running).await;
            looking.await
        }
    };
    match result {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            let text = error.full_text();
            tracing::warn!(%key, error = text, "a step failed; it is tried again");
            Outcome::Failed(text)
        }
        Err(panic) => {
            let text = format!("the step panicked: {}", said(panic.as_ref()));
            tracing::error!(%key, error = text, "a step died; it is tried again");
            Outcome::Failed(text)
        }
    }
}

async fn reconcile(back: &Back, key: &ObjectKey) -> Result<Outcome, ReconcileError> {
    fault::point("job.claimed").await?;
    let outcome = match key {
        ObjectKey::Sandbox(id) => sandbox::reconcile(back, id).await,
        ObjectKey::Container(id) => container::reconcile(back, id).await,
        ObjectKey::Image(id) => image::remove(back, id).await,
        ObjectKey::Pull(reference) => image::pull(back, reference).await,
        ObjectKey::Cleanup(id) => cleanup::reconcile(back, *id).await,
        ObjectKey::Prepared => prepared::reconcile(back).await,
        ObjectKey::Attachment(id) => attachment::reconcile(back, id).await,
    }?;
    fault::point("job.looked").await?;
    Ok(outcome)
}

/// Says that a job runs longer than it should. It goes on: to run it twice would be worse.
async fn report(back: &Back, key: &ObjectKey, after: Duration) {
    tracing::warn!(%key, after_s = after.as_secs(), "a job takes long");
    if let Err(error) = back.observed.job_overdue(key.clone()).await {
        tracing::error!(%key, %error, "cannot report a job that takes long");
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words")
}

/// Whether nothing is to happen soon: then the word that a look has ended goes with somebody else's
/// write.
fn may_wait(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done => true,
        Outcome::Again(pause_ns) => *pause_ns >= SOON_NS,
        Outcome::Failed(_) => false,
    }
}

/// Writes down how a look ended. A job that is not put down is never taken up again while this
/// daemon lives, so this is tried until the database has it.
async fn put_down(back: &Back, key: ObjectKey, outcome: Outcome) {
    let mut pause = PUT_DOWN_PAUSE;
    loop {
        let (key_too, outcome) = (key.clone(), outcome.clone());
        let finished = if may_wait(&outcome) {
            back.observed.finish_job_later(key_too, outcome).await
        } else {
            back.observed.finish_job(key_too, outcome).await
        };
        match finished {
            Ok(()) | Err(StateError::Closed) => break,
            Err(error) => tracing::error!(%key, %error, "cannot put a job down; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    // Nothing comes after it in this task: only a delay or an end means something here.
    let _ = fault::point("job.finished").await;
}

/// Forgets finished jobs that are old or too many, a few in each transaction, off everybody's path,
/// and takes back what another daemon had claimed; runs until `stop` turns true.
pub async fn prune(back: Back, rules: JobRules, mut stop: watch::Receiver<bool>) {
    let age = i64::try_from(rules.history.as_nanos()).unwrap_or(i64::MAX);
    while !*stop.borrow() {
        let before = now_ns().saturating_sub(age);
        let pruned = back
            .observed
            .prune_job_history(before, rules.history_rows, PRUNE_BATCH);
        // There are none unless rows came from elsewhere: nobody would ever put them down.
        let (pruned, reclaimed) = tokio::join!(pruned, back.observed.reclaim_jobs());
        match reclaimed {
            Ok(0) => {}
            Ok(jobs) => tracing::warn!(jobs, "jobs of another daemon are due again"),
            Err(error) => tracing::warn!(%error, "cannot look for jobs of another daemon"),
        }
        match pruned {
            // There is more, and others may write in between.
            Ok(gone) if gone == u64::from(PRUNE_BATCH) => continue,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot forget finished jobs"),
        }
        tokio::select! {
            () = tokio::time::sleep(PRUNE_PERIOD) => {}
            _ = stop.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
