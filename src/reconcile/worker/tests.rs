//! The lanes of the worker, over a real queue, with looks that do as the test wants.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::id::SandboxId;

/// Longer than anything takes, and shorter than two looks at a queue nobody has woken for.
const BOUND: Duration = Duration::from_secs(20);

struct Queue {
    store: Store,
    observed: ObservedWriter,
    stop: watch::Sender<bool>,
    looks: Arc<Looks>,
    _dir: tempfile::TempDir,
}

/// What was looked at.
#[derive(Default)]
struct Looks {
    /// Looks begun and under way, by key.
    seen: Mutex<HashMap<ObjectKey, (usize, usize)>>,
    changed: tokio::sync::Notify,
}

impl Looks {
    fn begin(&self, key: &ObjectKey) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, running) = seen.entry(key.clone()).or_default();
        *begun += 1;
        *running += 1;
        assert_eq!(*running, 1, "{key} is looked at twice at a time");
    }

    fn end(&self, key: &ObjectKey) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, running)) = seen.get_mut(key) {
            *running -= 1;
        }
        drop(seen);
        self.changed.notify_waiters();
    }

    /// Waits until `enough` says so of the number of looks at each key.
    async fn until(&self, enough: impl Fn(&HashMap<ObjectKey, (usize, usize)>) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if enough(&self.seen.lock().unwrap_or_else(PoisonError::into_inner)) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(BOUND, waiting).await;
        waited.expect("the keys are looked at");
    }
}

async fn queue() -> Queue {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = Store::open(&dir.path().join("quilt.db")).await;
    let (store, _, observed) = opened.expect("a database");
    Queue {
        store,
        observed,
        stop: watch::channel(false).0,
        looks: Arc::default(),
        _dir: dir,
    }
}

impl Queue {
    /// Runs the worker; `inside` is a look.
    fn work<F>(&self, inside: impl Fn(ObjectKey) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (observed, store) = (self.observed.clone(), self.store.clone());
        let (looks, stop) = (Arc::clone(&self.looks), self.stop.subscribe());
        tokio::spawn(async move {
            let putting = observed.clone();
            let look = move |key: ObjectKey| {
                looks.begin(&key);
                let (observed, looks, inside) =
                    (putting.clone(), looks.clone(), inside(key.clone()));
                async move {
                    inside.await;
                    looks.end(&key);
                    let put = observed.finish_job_later(key, Outcome::Done).await;
                    put.expect("put down");
                }
            };
            dispatch(&observed, &store, look, stop).await;
        });
    }

    async fn ask(&self, keys: Vec<ObjectKey>) {
        self.observed.enqueue(keys).await.expect("queued");
    }
}

fn pulls(count: usize) -> Vec<ObjectKey> {
    (0..count)
        .map(|number| ObjectKey::Pull(format!("example.org/{number}:1")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_was_full_goes_on_as_soon_as_it_has_emptied() {
    let queue = queue().await;
    // So many rounds that each pause for want of a wake-up would be far too long.
    let keys = pulls(12 * Lane::Pulls.slots());
    let count = keys.len();
    queue.ask(keys).await;
    queue.work(|_| std::future::ready(()));
    queue.looks.until(|seen| seen.len() == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_lane_holds_up_no_other() {
    let queue = queue().await;
    let gate = Arc::new(Semaphore::new(0));
    let closed = Arc::clone(&gate);
    queue.work(move |key| {
        let gate = Arc::clone(&closed);
        async move {
            if matches!(key, ObjectKey::Pull(_)) {
                let _passed = gate.acquire().await;
            }
        }
    });
    queue.ask(pulls(2 * Lane::Pulls.slots())).await;
    let slots = Lane::Pulls.slots();
    queue
        .ask(vec![ObjectKey::Sandbox(SandboxId::random())])
        .await;
    let pod = |key: &ObjectKey| matches!(key, ObjectKey::Sandbox(_));
    let looks = &queue.looks;
    looks
        .until(|seen| {
            seen.iter()
                .any(|(key, (_, running))| pod(key) && *running == 0)
        })
        .await;
    let begun =
        |seen: &HashMap<ObjectKey, (usize, usize)>| seen.keys().filter(|key| !pod(key)).count();
    assert!(begun(&looks.seen.lock().unwrap_or_else(PoisonError::into_inner)) <= slots);
    gate.add_permits(2 * slots);
    looks.until(|seen| begun(seen) == 2 * slots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_asked_for_during_its_look_gets_another_one_after_it() {
    let queue = queue().await;
    let gate = Arc::new(Semaphore::new(0));
    let closed = Arc::clone(&gate);
    queue.work(move |_| {
        let gate = Arc::clone(&closed);
        async move {
            if let Ok(passed) = gate.acquire().await {
                passed.forget();
            }
        }
    });
    let key = ObjectKey::Sandbox(SandboxId::random());
    queue.ask(vec![key.clone()]).await;
    // Asked for while its look stands at the gate, any number of times: one more look.
    let looks = &queue.looks;
    let begun = tokio::time::timeout(BOUND, async {
        while !looks
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&key)
        {
            tokio::task::yield_now().await;
        }
    });
    begun.await.expect("the look has begun");
    queue.ask(vec![key.clone()]).await;
    queue.ask(vec![key.clone()]).await;
    gate.add_permits(2);
    looks.until(|seen| seen.get(&key) == Some(&(2, 0))).await;
}

#[tokio::test]
async fn what_is_asked_for_right_after_a_hand_over_is_looked_at() {
    let queue = queue().await;
    queue.work(|_| std::future::ready(()));
    // So many rounds that a pause in some of them for want of a wake-up would be far too long.
    let rounds = async {
        for _ in 0..60 {
            let keys = [(); 2].map(|()| ObjectKey::Sandbox(SandboxId::random()));
            let (observed, asked) = (queue.observed.clone(), keys.clone());
            // The worker's thread waits here, and so it hears of both at the same time.
            let asking = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime.expect("a runtime").block_on(async {
                    for key in asked {
                        observed.enqueue(vec![key]).await.expect("queued");
                    }
                });
            });
            asking.join().expect("both are queued");
            let at_rest = |at: Option<&(usize, usize)>| at.is_some_and(|at| at.0 > 0 && at.1 == 0);
            let looks = &queue.looks;
            looks
                .until(|seen| keys.iter().all(|key| at_rest(seen.get(key))))
                .await;
            while queue.store.count_jobs().await.expect("a count") > 0 {
                tokio::task::yield_now().await;
            }
        }
    };
    let ended = tokio::time::timeout(BOUND, rounds).await;
    ended.expect("nobody waits for a pause");
}
