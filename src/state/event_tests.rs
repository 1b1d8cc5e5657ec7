//! Events, their retention, and what callers leave behind that go away in the middle of a write.

use super::event::Subject;
use super::pull::{Secret, has_credentials};
use super::retention::{BATCH, History};
use super::*;
use crate::id::SandboxId;
use crate::lifecycle::spec::SandboxSpec;

struct Engine {
    store: Store,
    desired: DesiredWriter,
    observed: ObservedWriter,
    _dir: tempfile::TempDir,
}

async fn engine() -> Engine {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = Store::open(&dir.path().join("quilt.db")).await;
    let (store, desired, observed) = opened.expect("a database");
    Engine {
        store,
        desired,
        observed,
        _dir: dir,
    }
}

impl Engine {
    /// Adds `count` events in one transaction.
    async fn events(&self, count: u32) {
        let write = self.observed.0.write("test", move |tx| {
            Box::pin(async move {
                for _ in 0..count {
                    tx.event(Subject::Image("i"), "pulled", "").await?;
                }
                Ok(())
            })
        });
        write.await.expect("events");
    }

    async fn sequences(&self) -> Vec<(i64, i64)> {
        let all = self.store.events("", 0, 100_000).await.expect("a read");
        all.iter().map(|event| (event.sequence, event.at)).collect()
    }
}

#[tokio::test]
async fn sequences_have_no_holes_and_times_rise_with_them() {
    let engine = engine().await;
    // Many within one tick of the clock.
    engine.events(500).await;
    let all = engine.sequences().await;
    assert!(all.iter().map(|(sequence, _)| *sequence).eq(1..=500));
    assert!(all.windows(2).all(|pair| pair[0].1 < pair[1].1));
    for (sequence, at) in all.iter().step_by(100) {
        let found = engine.store.sequence_at(*at).await.expect("a read");
        assert_eq!(found, *sequence);
    }
    assert_eq!(engine.store.sequence_at(1).await.expect("a read"), 0);
}

#[tokio::test]
async fn history_is_pruned_in_batches_by_number_and_by_age() {
    let engine = engine().await;
    engine.events(BATCH * 2 + 30).await;
    let by_number = History::Events {
        kept: 20,
        before: 0,
    };
    let mut pruned = Vec::new();
    while pruned.last() != Some(&0) {
        pruned.push(engine.observed.prune(by_number).await.expect("pruned"));
    }
    assert_eq!(pruned, [u64::from(BATCH), u64::from(BATCH), 10, 0]);
    let left = engine.sequences().await;
    assert_eq!(left.len(), 20);
    let kept = engine.store.kept_events().await.expect("a read");
    assert_eq!((kept.oldest, kept.newest), (left[0].0, left[19].0));

    let by_age = History::Events {
        kept: 1000,
        before: left[15].1,
    };
    assert_eq!(engine.observed.prune(by_age).await.expect("pruned"), 15);
    assert_eq!(engine.sequences().await, left[15..]);
    let nothing = History::Operations { kept: 1 };
    assert_eq!(engine.observed.prune(nothing).await.expect("pruned"), 0);
}

#[tokio::test]
async fn streams_without_a_place_begin_now_at_first_and_then_where_the_last_one_was() {
    let engine = engine().await;
    engine.events(3).await;
    let begin = engine.store.begin_given().await.expect("a read");
    assert_eq!(begin, 3, "the first one ever");
    engine.events(3).await;
    assert_eq!(engine.store.begin_given().await.expect("a read"), 3);
    engine.store.given().advance(5);
    engine.store.given().advance(4);
    assert_eq!(engine.store.begin_given().await.expect("a read"), 5);
    engine
        .desired
        .keep_given(&engine.store)
        .await
        .expect("written");
    let fact = engine.store.fact("events_given").await.expect("a read");
    assert_eq!(fact.as_deref(), Some("5"));
}

#[tokio::test]
async fn a_pull_whose_caller_goes_away_leaves_its_secret_with_it_or_nothing() {
    let engine = engine().await;
    let secret = Secret {
        username: "user".into(),
        password: "word".into(),
        ..Default::default()
    };
    let key = engine.store.pull_secrets().key("h/r:t", &secret);
    assert!(has_credentials(&key));
    let ask = || {
        engine
            .desired
            .request_pull(&engine.store, key.clone(), secret.clone())
    };
    drop(ask());
    assert_eq!(engine.store.pull_secrets().held(), 0, "never sent");
    {
        // Sent, and given up before it is answered.
        let mut asked = Box::pin(ask());
        let polled = futures_util::poll!(asked.as_mut());
        assert!(polled.is_pending());
    }
    let request = ask().await.expect("joined");
    assert_eq!(request, 1, "one pull");
    assert_eq!(engine.store.pull_secrets().held(), 1);
    engine.store.pull_secrets().remove(&key, request);
    assert_eq!(engine.store.pull_secrets().held(), 0);
}

#[tokio::test]
async fn only_who_is_neither_claimed_nor_awaited_is_withdrawn() {
    let engine = engine().await;
    let mut ids = Vec::new();
    for name in ["abandoned", "claimed", "awaited", "asked-again"] {
        let spec = SandboxSpec {
            name: name.into(),
            ..Default::default()
        };
        let id = engine
            .desired
            .run_sandbox(SandboxId::random(), spec, None)
            .await;
        ids.push(id.expect("a sandbox"));
    }
    let before = now_ns();
    engine.desired.claim_sandbox(ids[1].clone());
    let key = crate::id::ObjectKey::Sandbox(ids[2].clone());
    let waiting = engine.store.wakes().subscribe(key);
    let spec = SandboxSpec {
        name: "asked-again".into(),
        ..Default::default()
    };
    let again = engine
        .desired
        .run_sandbox(SandboxId::random(), spec, None)
        .await;
    assert_eq!(again.expect("joined"), ids[3]);
    let withdraw = || engine.desired.withdraw_abandoned(&engine.store, before);
    assert_eq!(withdraw().await.expect("a write"), ids[..1]);
    drop(waiting);
    assert_eq!(withdraw().await.expect("a write"), ids[2..3]);
    assert!(withdraw().await.expect("a write").is_empty());
    let told = engine.store.events(ids[0].as_str(), 0, 10).await;
    let told: Vec<_> = told
        .expect("a read")
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(told, ["abandoned", "removing"]);
}
