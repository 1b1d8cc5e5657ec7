//! Slots that the worker offers to whoever queues a job: the writer claims what is due in the
//! transaction that queued it, and the worker needs none of its own.
//!
//! ```text
//! worker ──offers what is free──► stands ──a batch queues a job──► taken ──committed──► answered
//!    ▲                              │                                │ not committed
//!    └──────── taken back ──────────┴────────────────────────────────┴──► the worker claims itself
//! ```
//!
//! One offer stands at a time, and only its taker claims under it, so no slot is given twice.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::ObservedWriter;
use super::job::{Claim, Free};

/// What was claimed under an offer.
#[derive(Debug)]
pub struct Claimed {
    /// What was free.
    pub free: Free,
    /// Taken off the queue.
    pub claims: Vec<Claim>,
    /// When the next job is due (ns since 1970) for which there is room.
    pub next: Option<i64>,
}

impl Claimed {
    /// Whether some lane had no room for more: what is due in it was left.
    #[must_use]
    pub fn filled_a_lane(&self) -> bool {
        self.free.without(&self.claims).has_none()
    }
}

/// An offer that somebody has taken; dropped without an answer it is refused.
pub(super) struct Offer {
    pub(super) free: Free,
    pub(super) answer: oneshot::Sender<Claimed>,
}

/// The place where one offer stands.
#[derive(Default)]
pub(super) struct Offers(Mutex<Option<Offer>>);

impl Offers {
    /// Takes the offer that stands.
    pub(super) fn take(&self) -> Option<Offer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, offer: Offer) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
    }
}

/// The worker's side of an offer; dropped, it is taken back.
pub struct Standing {
    offers: Arc<Offers>,
    answer: oneshot::Receiver<Claimed>,
}

impl Standing {
    /// Waits until somebody has claimed under it; `None` if that was not committed.
    pub async fn answered(&mut self) -> Option<Claimed> {
        (&mut self.answer).await.ok()
    }

    /// Takes it back; if somebody has taken it, waits for what that one claimed: the end of a
    /// transaction.
    pub async fn withdraw(mut self) -> Option<Claimed> {
        match self.offers.take() {
            Some(_) => None,
            None => self.answered().await,
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        drop(self.offers.take());
    }
}

impl ObservedWriter {
    /// Offers slots. Only one offer may stand at a time: the last one's `Standing` is gone.
    #[must_use]
    pub fn offer_slots(&self, free: Free) -> Standing {
        let (sender, answer) = oneshot::channel();
        let offers = Arc::clone(&self.0.offers);
        offers.put(Offer {
            free,
            answer: sender,
        });
        Standing { offers, answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ObjectKey, SandboxId};
    use crate::state::Store;
    use crate::state::job::Outcome;

    async fn writer() -> (tempfile::TempDir, Store, ObservedWriter) {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = Store::open(&dir.path().join("quilt.db")).await;
        let (store, _, observed) = opened.expect("a database");
        (dir, store, observed)
    }

    fn pods(count: usize) -> Vec<ObjectKey> {
        let pods = (0..count).map(|_| ObjectKey::Sandbox(SandboxId::random()));
        pods.collect()
    }

    fn keys(claims: Vec<Claim>) -> Vec<ObjectKey> {
        claims.into_iter().map(|claim| claim.key).collect()
    }

    #[tokio::test]
    async fn who_queues_a_job_claims_it_for_the_worker() {
        let (_dir, store, observed) = writer().await;
        let mut offer = observed.offer_slots(Free::each(8));
        let wanted = pods(1);
        observed.enqueue(wanted.clone()).await.expect("queued");
        let claimed = offer.answered().await.expect("claimed");
        assert!(!claimed.filled_a_lane());
        assert_eq!((keys(claimed.claims), claimed.next), (wanted, None));
        let counts = store.job_counts(i64::MAX).await.expect("counts");
        assert_eq!(counts.len(), 1);
        assert_eq!(counts[0].state, "running");
    }

    #[tokio::test]
    async fn what_has_no_room_stays_due() {
        let (_dir, _store, observed) = writer().await;
        let mut offer = observed.offer_slots(Free::each(1));
        observed.enqueue(pods(2)).await.expect("queued");
        let claimed = offer.answered().await.expect("claimed");
        assert!(claimed.filled_a_lane());
        assert_eq!((claimed.claims.len(), claimed.next), (1, None));
        let (rest, _) = observed.claim_jobs(Free::each(8)).await.expect("claims");
        assert_eq!(rest.len(), 1);
    }

    #[tokio::test]
    async fn an_offer_that_is_taken_back_claims_nothing() {
        let (_dir, _store, observed) = writer().await;
        assert!(
            observed
                .offer_slots(Free::each(8))
                .withdraw()
                .await
                .is_none()
        );
        drop(observed.offer_slots(Free::each(8)));
        let wanted = pods(1);
        observed.enqueue(wanted.clone()).await.expect("queued");
        let (claims, _) = observed.claim_jobs(Free::each(8)).await.expect("claims");
        assert_eq!(keys(claims), wanted);
    }

    #[tokio::test]
    async fn what_was_asked_for_during_its_look_is_due_when_the_look_is_put_down() {
        let (_dir, store, observed) = writer().await;
        let wanted = pods(1);
        for asked_again in [true, false] {
            observed.enqueue(wanted.clone()).await.expect("queued");
            let (claims, _) = observed.claim_jobs(Free::each(8)).await.expect("claims");
            assert_eq!(keys(claims), wanted);
            if asked_again {
                observed.enqueue(wanted.clone()).await.expect("queued");
            }
            let put = observed.finish_job_later(wanted[0].clone(), Outcome::Done);
            put.await.expect("put down");
            let left = store.count_jobs().await.expect("a count");
            assert_eq!(left, i64::from(asked_again));
        }
    }
}
