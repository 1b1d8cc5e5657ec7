//! The queue of jobs: lanes, order, history.

use super::*;
use crate::lifecycle::job::REPORTED_AFTER;

#[tokio::test]
async fn a_hundred_slow_pulls_take_no_slot_of_a_pod() {
    let engine = engine().await;
    let pulls: Vec<_> = (0..100)
        .map(|n| ObjectKey::Pull(format!("r/i:{n}")))
        .collect();
    engine.observed.enqueue(pulls).await.expect("queued");
    let free = Free {
        pods: 4,
        pulls: 8,
        cleanup: 8,
        plugins: 8,
    };
    let (claims, next) = engine.observed.claim_jobs(free).await.expect("claims");
    assert_eq!(claims.len(), 8);
    assert_eq!(next, None, "a full lane is looked at when a slot is free");
    let pods: Vec<_> = (0..6)
        .map(|_| ObjectKey::Container(ContainerId::random()))
        .collect();
    engine.observed.enqueue(pods).await.expect("queued");
    let free = Free { pulls: 0, ..free };
    let (claims, next) = engine.observed.claim_jobs(free).await.expect("claims");
    assert_eq!(claims.len(), 4);
    assert!(
        claims
            .iter()
            .all(|claim| matches!(claim.key, ObjectKey::Container(_)))
    );
    assert_eq!(next, None, "both lanes are full");
}

#[tokio::test]
async fn what_a_client_waits_for_goes_before_cleanup() {
    let engine = engine().await;
    let cleanups = (0..5).map(ObjectKey::Cleanup).collect();
    engine.observed.enqueue(cleanups).await.expect("queued");
    let image = ObjectKey::Image("sha256:x".into());
    engine
        .observed
        .enqueue(vec![image.clone()])
        .await
        .expect("queued");
    let claimed = engine.observed.claim_jobs(Free::each(1)).await;
    let (claims, _) = claimed.expect("claims");
    assert_eq!(claims[0].key, image);
}

#[tokio::test]
async fn a_job_that_fails_again_and_again_is_reported_once_and_still_tried() {
    let engine = engine().await;
    let id = ContainerId::random();
    let key = ObjectKey::Container(id.clone());
    let told = async || {
        let events = engine.store.events(id.as_str(), 0, 100).await;
        let events = events.expect("events");
        assert!(events.iter().all(|event| event.kind == "failing"));
        let messages = events.into_iter().map(|event| event.message);
        messages.collect::<Vec<_>>()
    };
    for tries in 1..=2 * REPORTED_AFTER {
        // Asked for anew, so that it does not wait.
        let asked = engine.observed.enqueue(vec![key.clone()]);
        asked.await.expect("queued");
        assert_eq!(claim(&engine).await, std::slice::from_ref(&key));
        let failed = Outcome::Failed(format!("no luck {tries}"));
        put_down(&engine, std::slice::from_ref(&key), &failed).await;
        let messages = told().await;
        assert_eq!(messages.len(), usize::from(tries >= REPORTED_AFTER));
        let last = format!("no luck {REPORTED_AFTER}");
        assert!(messages.iter().all(|message| message.ends_with(&last)));
    }
}

#[tokio::test]
async fn every_finished_job_and_every_failed_look_is_history() {
    let engine = engine().await;
    let key = ObjectKey::Image("sha256:x".into());
    engine
        .observed
        .enqueue(vec![key.clone()])
        .await
        .expect("queued");
    for outcome in [
        Outcome::Failed("no luck".into()),
        Outcome::Again(0),
        Outcome::Failed("again".into()),
        Outcome::Failed("and again".into()),
        Outcome::Done,
    ] {
        // Asked for anew, so that it does not wait.
        engine
            .observed
            .enqueue(vec![key.clone()])
            .await
            .expect("queued");
        assert_eq!(claim(&engine).await, std::slice::from_ref(&key));
        put_down(&engine, std::slice::from_ref(&key), &outcome).await;
    }
    let history = engine.store.job_history(&key.to_string(), 10).await;
    let history = history.expect("rows");
    let seen: Vec<_> = history
        .iter()
        .map(|job| (job.status.as_str(), job.attempts, job.last_error.as_deref()))
        .collect();
    let expected = [
        ("completed", 3, None),
        ("failed", 2, Some("and again")),
        ("failed", 1, Some("again")),
        ("failed", 1, Some("no luck")),
    ];
    assert_eq!(seen, expected);
    for job in &history {
        assert_eq!((job.kind.as_str(), job.priority), ("image", 50));
        assert!(job.created_at <= job.started_at && job.started_at <= job.completed_at);
        assert!(job.queue_ns >= 0 && job.run_ns == job.completed_at - job.started_at);
    }
    let figures = engine.store.job_figures().await.expect("figures");
    let failed = figures.iter().find(|figure| figure.status == "failed");
    let failed = failed.expect("failed looks");
    assert_eq!(failed.count, 3);
    assert!((failed.mean_attempts - 4.0 / 3.0).abs() < 1e-9);
}
