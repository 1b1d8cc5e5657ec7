//! What the sweep reads and writes: owners, cleanup tasks, lost layers, the end of a pod's init.

use super::*;
use crate::lifecycle::difference::{ContainerIs, PodIs};
use crate::state::cleanup::{CleanupTask, Resource};
use crate::state::sandbox::SandboxFilter;

fn task(resource: Resource, path: &str, owner: &str) -> CleanupTask {
    CleanupTask {
        resource,
        path: path.into(),
        owner: owner.into(),
    }
}

/// Status, attempts and error of the only task.
async fn seen(engine: &Engine) -> (String, i64, Option<String>) {
    sqlx::query_as("SELECT status, attempts, error FROM cleanup_tasks")
        .fetch_one(&engine.store.readers)
        .await
        .expect("one task")
}

#[tokio::test]
async fn a_task_shows_how_often_it_was_tried_and_what_went_wrong() {
    let engine = engine().await;
    let orphan = task(Resource::Mounts, "/run/q/rootfs", "");
    let again = || engine.observed.remove_orphans(vec![orphan.clone()]);
    again().await.expect("a task");
    assert_eq!(seen(&engine).await, ("pending".into(), 0, None));
    let id = engine.store.pending_cleanups().await.expect("tasks")[0];
    engine.observed.cleanup_begun(id).await.expect("begun");
    assert_eq!(seen(&engine).await, ("in_progress".into(), 1, None));
    let busy = "it is busy".to_owned();
    let failed = engine.observed.cleanup_failed(id, busy.clone());
    failed.await.expect("failed");
    assert_eq!(
        seen(&engine).await,
        ("failed".into(), 1, Some(busy.clone()))
    );
    // The next sweep finds it again: still the same task.
    again().await.expect("a task");
    assert_eq!(seen(&engine).await, ("pending".into(), 1, Some(busy)));
    engine.observed.cleanup_begun(id).await.expect("begun");
    let completed = engine.observed.cleanup_completed(id, orphan.clone());
    completed.await.expect("completed");
    assert_eq!(seen(&engine).await, ("completed".into(), 2, None));
    // Another one of the same name begins anew.
    again().await.expect("a task");
    assert_eq!(seen(&engine).await, ("pending".into(), 0, None));
}

#[tokio::test]
async fn what_has_an_owner_is_never_removed() {
    let engine = engine().await;
    engine.image("sha256:1", &["a"], "one").await;
    let pod = engine.ready_pod("p").await;
    let container = engine.container(&pod, "c").await;
    engine.running(&container).await;
    let (pod, container) = (pod.as_str(), container.as_str());
    let link = format!("q{}", &pod[..12]);
    let owned = [
        task(Resource::Network, &link, ""),
        task(Resource::Bridge, "b", ""),
        task(Resource::Layer, "a", ""),
        task(Resource::Rootfs, container, container),
        task(Resource::ContainerFiles, container, container),
        task(Resource::SandboxFiles, pod, pod),
        task(Resource::Mounts, "/run/q/sandboxes/x/shm", pod),
        task(Resource::Cgroup, "/x", container),
        task(Resource::Cgroup, "/x", pod),
    ];
    for task in owned {
        let unclaimed = engine.store.is_unclaimed(&task).await.expect("a read");
        assert!(!unclaimed, "{task:?}");
        let nobodys = CleanupTask {
            path: "nobody".into(),
            owner: "nobody".into(),
            ..task
        };
        let unclaimed = engine.store.is_unclaimed(&nobodys).await.expect("a read");
        assert!(unclaimed, "{nobodys:?}");
    }
    let known = engine.store.known().await.expect("rows");
    assert_eq!(known.sandboxes.get(pod), Some(&PodIs::Up));
    let running = (pod.to_owned(), ContainerIs::Running);
    assert_eq!(known.containers.get(container), Some(&running));
    assert_eq!(known.links.get(&link).map(String::as_str), Some("b"));
    assert_eq!(known.images["sha256:1"], ["a"]);
}

#[tokio::test]
async fn a_lost_layer_takes_along_the_images_above_it_and_no_others() {
    let engine = engine().await;
    engine.image("sha256:1", &["a", "b"], "one").await;
    engine.image("sha256:2", &["a"], "two").await;
    engine.image("sha256:3", &["c"], "three").await;
    let images = async || {
        let images = engine.store.images().await.expect("a read");
        images.into_iter().map(|image| image.id).collect::<Vec<_>>()
    };
    let lost = async |chain_id: &str| {
        let lost = engine.observed.layer_lost(chain_id.into()).await;
        lost.expect("a write");
    };
    lost("b").await;
    assert_eq!(images().await, ["sha256:2", "sha256:3"]);
    lost("a").await;
    assert_eq!(images().await, ["sha256:3"]);
    for (layer, present) in [("a", false), ("b", false), ("c", true)] {
        let found = engine.store.has_layer(layer).await.expect("a read");
        assert_eq!(found, present, "{layer}");
    }
    // The next pull writes the same rows and completes them.
    engine.image("sha256:1", &["a", "b"], "one").await;
    assert_eq!(images().await, ["sha256:1", "sha256:3"]);
}

#[tokio::test]
async fn the_end_of_a_pods_init_counts_once_and_only_while_it_is_wanted() {
    let engine = engine().await;
    let pod = engine.ready_pod("p").await;
    let observed = &engine.observed;
    observed
        .sandbox_init(pod.clone(), 7, 8)
        .await
        .expect("a row");
    let ended = |pid| observed.sandbox_init_ended(pod.clone(), pid, "killed".into());
    let row = async || {
        let row = engine.store.sandbox(&pod).await.expect("a read");
        row.expect("a sandbox")
    };
    ended(6).await.expect("a write");
    assert!(!row().await.init_ended, "another one's end");
    for _ in 0..2 {
        ended(7).await.expect("a write");
        assert!(row().await.init_ended);
    }
    let events = engine.store.events(pod.as_str(), 0, 10).await;
    let kinds: Vec<_> = events
        .expect("events")
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds, ["created", "ready", "init_ended"]);
    let ready = SandboxFilter {
        ready: Some(true),
        ..Default::default()
    };
    let listed = engine.store.sandboxes(&ready).await.expect("a list");
    assert!(listed.is_empty(), "it shows as not ready");
    let again = engine
        .desired
        .run_sandbox(SandboxId::random(), super::pod("p"), pool());
    assert!(again.await.is_err(), "a retry is told to run a new one");

    let stopping = engine.ready_pod("q").await;
    observed
        .sandbox_init(stopping.clone(), 7, 8)
        .await
        .expect("a row");
    let lowered = engine
        .desired
        .lower_sandbox(stopping.clone(), sandbox::Desired::Stopped);
    lowered.await.expect("a wish");
    let ended = observed.sandbox_init_ended(stopping.clone(), 7, "killed".into());
    ended.await.expect("a write");
    let row = engine.store.sandbox(&stopping).await.expect("a read");
    assert!(
        !row.expect("a sandbox").init_ended,
        "it was ended with its pod"
    );
}
