//! Takes keys off the queue and has each looked at: several at a time, never one key twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::{Back, ReconcileError, cleanup, container, image, sandbox};
use crate::fault;
use crate::id::ObjectKey;
use crate::state::job::Outcome;
use crate::state::{StateError, now_ns};

/// Keys looked at side by side.
const WORKERS: usize = 32;
/// Longest pause without a look at the queue, should a wake-up ever be missed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// First pause before a job is put down again, when the database would not have it; doubled up to
/// the longest one.
const PUT_DOWN_PAUSE: Duration = Duration::from_millis(10);

/// Runs until `stop` turns true, then waits for the steps under way.
pub async fn run(back: Back, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(WORKERS));
    let mut running = JoinSet::new();
    while !*stop.borrow() {
        // A slot first: what is claimed is looked at at once.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let free = u32::try_from(slots.available_permits() + 1).unwrap_or(1);
        let (claims, next) = match back.observed.claim_jobs(free).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::error!(%error, "cannot claim jobs");
                (Vec::new(), None)
            }
        };
        let mut slot = Some(slot);
        for claim in &claims {
            let permit = match slot.take() {
                Some(permit) => permit,
                None => match Arc::clone(&slots).acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            let back = back.clone();
            let key = claim.key.clone();
            running.spawn(async move {
                look(&back, key).await;
                drop(permit);
            });
        }
        while running.try_join_next().is_some() {}
        if claims.is_empty() {
            drop(slot);
            let pause = next.map_or(LONGEST_PAUSE, until);
            tokio::select! {
                () = back.store.wakes().work() => {}
                () = tokio::time::sleep(pause) => {}
                _ = stop.changed() => {}
            }
        }
    }
    while running.join_next().await.is_some() {}
}

fn until(due_ns: i64) -> Duration {
    let left = u64::try_from(due_ns.saturating_sub(now_ns())).unwrap_or(0);
    Duration::from_nanos(left).min(LONGEST_PAUSE)
}

/// Has one key looked at until it rests, waits or fails, and puts the job down.
async fn look(back: &Back, key: ObjectKey) {
    let outcome = reconcile(back, &key).await.unwrap_or_else(|error| {
        let text = error.full_text();
        tracing::warn!(%key, error = text, "a step failed; it is tried again");
        Outcome::Failed(text)
    });
    put_down(back, key, outcome).await;
}

async fn reconcile(back: &Back, key: &ObjectKey) -> Result<Outcome, ReconcileError> {
    fault::point("job.claimed").await?;
    let outcome = match key {
        ObjectKey::Sandbox(id) => sandbox::reconcile(back, id).await,
        ObjectKey::Container(id) => container::reconcile(back, id).await,
        ObjectKey::Image(id) => image::remove(back, id).await,
        ObjectKey::Pull(reference) => image::pull(back, reference).await,
        ObjectKey::Cleanup(id) => cleanup::reconcile(back, *id).await,
    }?;
    fault::point("job.looked").await?;
    Ok(outcome)
}

/// Writes down how a look ended. A job that is not put down is never taken up again while this
/// daemon lives, so this is tried until the database has it.
async fn put_down(back: &Back, key: ObjectKey, outcome: Outcome) {
    let mut pause = PUT_DOWN_PAUSE;
    loop {
        match back.observed.finish_job(key.clone(), outcome.clone()).await {
            Ok(()) | Err(StateError::Closed) => break,
            Err(error) => tracing::error!(%key, %error, "cannot put a job down; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    // Nothing comes after it in this task: only a delay or an end means something here.
    let _ = fault::point("job.finished").await;
}
