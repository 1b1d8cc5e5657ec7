//! The state engine on a real database file.

mod jobs;
mod layer;
mod prepared;
mod sweep;

use std::collections::HashSet;

use super::container::NewContainer;
use super::container_facts::{Exit, Started};
use super::image::NewImage;
use super::job::{Free, Outcome};
use super::layer::{NewLayer, PresentLayer};
use super::operation::Finished;
use super::*;
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::address::Pool;
use crate::lifecycle::container::{Desired, State};
use crate::lifecycle::sandbox;
use crate::lifecycle::spec::{ContainerSpec, ImageMount, ImageSpec, MountSpec, SandboxSpec};

struct Engine {
    store: Store,
    desired: DesiredWriter,
    observed: ObservedWriter,
    dir: tempfile::TempDir,
}

async fn engine() -> Engine {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = Store::open(&dir.path().join("quilt.db")).await;
    let (store, desired, observed) = opened.expect("a database");
    Engine {
        store,
        desired,
        observed,
        dir,
    }
}

fn pod(name: &str) -> SandboxSpec {
    SandboxSpec {
        name: name.into(),
        namespace: "default".into(),
        uid: format!("uid-{name}"),
        ..Default::default()
    }
}

fn pool() -> Option<Pool> {
    let subnet = "10.1.2.0/24".parse().expect("a subnet");
    let gateway = "10.1.2.1".parse().expect("an address");
    Some(Pool {
        subnet,
        gateway,
        bridge: "b".into(),
        subnet6: None,
        quarantine_ns: 0,
        mtu: 1500,
        prepared: 0,
    })
}

fn done(object_id: &str) -> Finished {
    Finished {
        kind: "test",
        object_id: object_id.into(),
        started_at: now_ns(),
        duration_ns: 1,
        error: None,
        stages: vec![("all", 1)],
    }
}

fn started() -> Started {
    Started {
        pid: 7,
        start: 8,
        at: now_ns(),
        runs_as: None,
        limits: None,
    }
}

async fn claim(engine: &Engine) -> Vec<ObjectKey> {
    let claimed = engine.observed.claim_jobs(Free::each(64)).await;
    let (claims, _) = claimed.expect("claims");
    claims.into_iter().map(|claim| claim.key).collect()
}

impl Engine {
    /// The same database, opened by the next daemon.
    async fn reopened(self) -> Self {
        let Self {
            store,
            desired,
            observed,
            dir,
        } = self;
        drop((store, desired, observed));
        let opened = Store::open(&dir.path().join("quilt.db")).await;
        let (store, desired, observed) = opened.expect("a database");
        Self {
            store,
            desired,
            observed,
            dir,
        }
    }

    async fn image(&self, id: &str, chain: &[&str], tag: &str) {
        let mut parent = None;
        let mut layers = Vec::new();
        for chain_id in chain {
            layers.push(NewLayer {
                chain_id: (*chain_id).into(),
                parent: parent.replace((*chain_id).to_owned()),
                diff_id: "d".into(),
                digest: "b".into(),
            });
        }
        let expected = self.observed.expect_layers("test".into(), layers).await;
        assert!(expected.expect("rows"));
        for chain_id in chain {
            let layer = PresentLayer {
                chain_id: (*chain_id).into(),
                size_bytes: 10,
                inodes: 2,
                ..Default::default()
            };
            self.observed.layer_present(layer).await.expect("a row");
        }
        let image = NewImage {
            id: id.into(),
            manifest_digest: "m".into(),
            top_chain_id: chain.last().map(|top| (*top).to_owned()),
            spec: ImageSpec::default(),
            tags: vec![tag.into()],
            ..Default::default()
        };
        self.observed
            .image_present(image, None, done(id))
            .await
            .expect("an image");
    }

    async fn ready_pod(&self, name: &str) -> SandboxId {
        let id = self
            .desired
            .run_sandbox(SandboxId::random(), pod(name), pool())
            .await;
        let id = id.expect("a sandbox");
        let ready = self
            .observed
            .sandbox_ready(id.clone(), "boot".into(), done(id.as_str()));
        ready.await.expect("ready");
        id
    }

    async fn container(&self, sandbox_id: &SandboxId, name: &str) -> ContainerId {
        self.container_with(sandbox_id, name, &[]).await
    }

    /// A container of the image 1 that mounts other images.
    async fn container_with(
        &self,
        sandbox_id: &SandboxId,
        name: &str,
        volumes: &[&str],
    ) -> ContainerId {
        let image = |id: &&str| MountSpec {
            image: Some(ImageMount {
                image_id: (*id).into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let new = NewContainer {
            id: ContainerId::random(),
            sandbox_id: sandbox_id.clone(),
            image_id: "sha256:1".into(),
            spec: ContainerSpec {
                name: name.into(),
                mounts: volumes.iter().map(image).collect(),
                ..Default::default()
            },
        };
        self.desired
            .create_container(new)
            .await
            .expect("a container")
    }

    async fn running(&self, id: &ContainerId) {
        let created = self
            .observed
            .container_created(id.clone(), "/u".into(), done("c"));
        created.await.expect("created");
        let wish = self
            .desired
            .lower_container(id.clone(), Desired::Running, None);
        wish.await.expect("a wish");
        self.observed
            .container_starting(id.clone())
            .await
            .expect("starting");
        let running = self
            .observed
            .container_running(id.clone(), started(), done("c"));
        running.await.expect("running");
    }
}

#[tokio::test]
async fn parallel_pods_get_addresses_of_their_own() {
    let engine = engine().await;
    let wishes = (0..50).map(|n| {
        engine
            .desired
            .run_sandbox(SandboxId::random(), pod(&format!("p{n}")), pool())
    });
    let ids = futures_util::future::join_all(wishes).await;
    assert!(ids.iter().all(Result::is_ok));
    let given = engine.store.allocations().await.expect("addresses");
    let addresses: HashSet<_> = given.iter().map(|allocation| allocation.address).collect();
    assert_eq!(addresses.len(), 50);
}

#[tokio::test]
async fn the_same_pod_asked_for_at_once_is_one_pod() {
    let engine = engine().await;
    let wishes = (0..10).map(|_| {
        engine
            .desired
            .run_sandbox(SandboxId::random(), pod("p"), pool())
    });
    let ids = futures_util::future::join_all(wishes).await;
    let ids: HashSet<_> = ids.into_iter().map(|id| id.expect("a sandbox")).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_stopped_pod_is_not_started_again_but_a_failed_one_makes_room() {
    let engine = engine().await;
    let id = engine.ready_pod("p").await;
    engine
        .desired
        .lower_sandbox(id.clone(), sandbox::Desired::Stopped)
        .await
        .expect("a wish");
    let again = engine
        .desired
        .run_sandbox(SandboxId::random(), pod("p"), None)
        .await;
    let Err(StateError::Impossible(impossible)) = again else {
        panic!("{again:?}")
    };
    assert_eq!(impossible.id, id.as_str());

    let failing = engine
        .desired
        .run_sandbox(SandboxId::random(), pod("q"), None)
        .await;
    let failing = failing.expect("a sandbox");
    engine
        .observed
        .sandbox_failed(failing.clone(), done("q"))
        .await
        .expect("failed");
    let other = engine
        .desired
        .run_sandbox(SandboxId::random(), pod("q"), None)
        .await;
    assert_ne!(other.expect("a new sandbox"), failing);
}

#[tokio::test]
async fn a_write_that_fails_takes_no_neighbour_with_it() {
    let engine = engine().await;
    let sandbox = engine.ready_pod("p").await;
    let missing = (0..5).map(|_| {
        let new = NewContainer {
            id: ContainerId::random(),
            sandbox_id: sandbox.clone(),
            image_id: "sha256:missing".into(),
            spec: ContainerSpec::default(),
        };
        engine.desired.create_container(new)
    });
    let pods = (0..5).map(|n| {
        engine
            .desired
            .run_sandbox(SandboxId::random(), pod(&n.to_string()), None)
    });
    let (failed, kept) = tokio::join!(
        futures_util::future::join_all(missing),
        futures_util::future::join_all(pods)
    );
    assert!(
        failed
            .iter()
            .all(|result| matches!(result, Err(StateError::NotFound { .. })))
    );
    for id in kept {
        let id = id.expect("a sandbox");
        assert!(engine.store.sandbox(&id).await.expect("a read").is_some());
    }
}

#[tokio::test]
async fn an_exit_is_recorded_once_even_before_its_start_is() {
    let engine = engine().await;
    engine.image("sha256:1", &["a"], "t").await;
    let sandbox = engine.ready_pod("p").await;
    let id = engine.container(&sandbox, "quick").await;
    engine
        .observed
        .container_created(id.clone(), "/u".into(), done("c"))
        .await
        .expect("created");
    engine
        .observed
        .container_starting(id.clone())
        .await
        .expect("starting");
    let began = started();
    let exit = Exit {
        code: 3,
        at: now_ns(),
        reason: "Error",
        error: None,
        ran: true,
    };
    let first = engine
        .observed
        .container_exited(id.clone(), exit.clone())
        .await;
    assert!(first.expect("recorded"));
    // The shim tells again, and the launch that was overtaken comes in late.
    let again = engine
        .observed
        .container_exited(id.clone(), Exit { code: 9, ..exit })
        .await;
    assert!(!again.expect("not recorded"));
    let late = engine
        .observed
        .container_running(id.clone(), began, done("c"));
    late.await.expect("kept out");
    let container = engine
        .store
        .container(&id)
        .await
        .expect("a read")
        .expect("a row");
    assert_eq!(
        (container.state, container.exit_code),
        (State::Exited, Some(3))
    );
    assert!(container.started_at.is_some() && container.started_at <= container.exited_at);
    let events = engine
        .store
        .events(id.as_str(), 0, 100)
        .await
        .expect("events");
    assert_eq!(
        events.iter().filter(|event| event.kind == "exited").count(),
        1
    );
}

/// Asks for one image to be looked at.
async fn ask(engine: &Engine, key: &ObjectKey) {
    let queued = engine.observed.enqueue(vec![key.clone()]);
    queued.await.expect("queued");
}

#[tokio::test]
async fn a_job_asked_for_while_it_runs_comes_back() {
    let engine = engine().await;
    let key = ObjectKey::Image("sha256:x".into());
    let key = std::slice::from_ref(&key);
    ask(&engine, &key[0]).await;
    assert_eq!(claim(&engine).await, key);
    // Nobody else gets it meanwhile.
    ask(&engine, &key[0]).await;
    assert!(claim(&engine).await.is_empty());
    put_down(&engine, key, &Outcome::Done).await;
    assert_eq!(claim(&engine).await, key);
    put_down(&engine, key, &Outcome::Failed("why".into())).await;
    let claimed = engine.observed.claim_jobs(Free::each(8)).await;
    let (claims, next) = claimed.expect("claims");
    let backs_off = claims.is_empty() && next.is_some_and(|due| due > now_ns());
    assert!(backs_off, "{claims:?} {next:?}");
}

#[tokio::test]
async fn what_a_dead_daemon_had_claimed_is_due_again_and_what_a_live_one_has_is_not() {
    let engine = engine().await;
    let key = ObjectKey::Image("sha256:x".into());
    let key = std::slice::from_ref(&key);
    ask(&engine, &key[0]).await;
    assert_eq!(claim(&engine).await, key);
    let reclaimed = engine.observed.reclaim_jobs().await.expect("reclaimed");
    assert_eq!(reclaimed, 0, "a live daemon's claim is its own");
    assert!(claim(&engine).await.is_empty(), "it runs");
    let engine = engine.reopened().await;
    let early = claim(&engine).await;
    assert!(early.is_empty(), "nobody has reclaimed it yet");
    let reclaimed = engine.observed.reclaim_jobs().await.expect("reclaimed");
    assert_eq!(reclaimed, 1);
    assert_eq!(claim(&engine).await, key);
}

#[tokio::test]
async fn layers_stay_as_long_as_an_image_or_a_container_stands_on_them() {
    let engine = engine().await;
    engine.image("sha256:1", &["a", "b"], "one").await;
    engine.image("sha256:2", &["a", "c"], "two").await;
    let sandbox = engine.ready_pod("p").await;
    let id = engine.container(&sandbox, "c").await;
    engine.running(&id).await;
    for image in ["sha256:1", "sha256:2"] {
        assert!(
            engine
                .desired
                .remove_image(image.into())
                .await
                .expect("a wish")
        );
        engine
            .observed
            .image_removed(image.into())
            .await
            .expect("removed");
    }
    let present = async |chain_id: &str| engine.store.has_layer(chain_id).await.expect("a read");
    assert!(
        present("a").await && present("b").await,
        "the container stands on them"
    );
    assert!(!present("c").await);
    let chain = engine.store.layer_chain("b").await.expect("a chain");
    assert_eq!(chain, ["b", "a"]);
    let (bytes, inodes) = engine.store.layer_usage().await.expect("usage");
    assert_eq!((bytes, inodes), (30, 6), "what leaves still takes room");
}

#[tokio::test]
async fn layers_of_a_mounted_image_stay_until_the_writable_layer_is_gone() {
    let engine = engine().await;
    engine.image("sha256:1", &["a"], "one").await;
    engine.image("sha256:2", &["b", "c"], "two").await;
    let sandbox = engine.ready_pod("p").await;
    let mounted = ["sha256:2", "sha256:2"];
    let id = engine.container_with(&sandbox, "c", &mounted).await;
    let volumes = engine.store.image_volumes(&id).await.expect("a read");
    assert_eq!(volumes, [("sha256:2".into(), Some("c".into()))].into());
    // Its name moves to another image, so it has none.
    engine.image("sha256:3", &["a"], "two").await;
    assert!(
        engine
            .store
            .image("sha256:2")
            .await
            .expect("a read")
            .is_some()
    );
    let wished = engine.desired.remove_image("sha256:2".into()).await;
    assert!(wished.expect("a wish"));
    let removed = engine.observed.image_removed("sha256:2".into()).await;
    removed.expect("removed");
    let present = async |chain_id: &str| engine.store.has_layer(chain_id).await.expect("a read");
    assert!(present("b").await && present("c").await);
    let gone = engine.observed.0.write("remove a snapshot", move |tx| {
        Box::pin(async move { tx.delete_snapshot(id.as_str()).await })
    });
    gone.await.expect("removed");
    assert!(present("a").await && !present("b").await && !present("c").await);
}

#[tokio::test]
async fn a_container_is_not_made_with_an_image_that_is_gone() {
    let engine = engine().await;
    engine.image("sha256:1", &["a"], "one").await;
    let sandbox = engine.ready_pod("p").await;
    let new = NewContainer {
        id: ContainerId::random(),
        sandbox_id: sandbox,
        image_id: "sha256:1".into(),
        spec: ContainerSpec {
            mounts: vec![MountSpec {
                image: Some(ImageMount {
                    image_id: "sha256:2".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        },
    };
    let refused = engine.desired.create_container(new).await;
    let error = refused.expect_err("refused").to_string();
    assert!(error.contains("sha256:2"), "{error}");
    let counts = engine.store.count_rows().await.expect("counts");
    let left: Vec<_> = counts
        .into_iter()
        .filter(|(table, count)| {
            ["containers", "snapshots", "image_volumes"].contains(&table.as_str()) && *count > 0
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_reader_does_not_wait_for_a_writer() {
    let engine = engine().await;
    let id = engine.ready_pod("p").await;
    let (open, opened) = tokio::sync::oneshot::channel::<()>();
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let writing = engine.observed.0.write("hold the lock", move |_| {
        Box::pin(async move {
            let _ = open.send(());
            let _ = closed.await;
            Ok(())
        })
    });
    let reading = async {
        opened.await.expect("the transaction is open");
        let read = engine.store.sandbox(&id).await.expect("a read");
        let _ = close.send(());
        read
    };
    let (written, read) = tokio::join!(writing, reading);
    written.expect("written");
    assert!(read.is_some());
}

#[tokio::test]
async fn a_store_that_nobody_has_any_more_is_closed() {
    let Engine {
        store,
        desired,
        observed,
        dir,
    } = engine().await;
    let is_open = || {
        let open = std::fs::read_dir("/proc/self/fd").expect("descriptors");
        let file = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry?.path());
        let mut files = open.filter_map(|entry| file(entry).ok());
        files.any(|file| file.starts_with(dir.path()))
    };
    assert!(is_open());
    drop((store, desired, observed));
    let closed = async {
        while is_open() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let bound = std::time::Duration::from_secs(20);
    tokio::time::timeout(bound, closed).await.expect("closed");
}

#[tokio::test]
async fn a_reboot_takes_everything_down_and_keeps_the_records() {
    let engine = engine().await;
    engine.image("sha256:1", &["a"], "t").await;
    let sandbox = engine.ready_pod("p").await;
    let id = engine.container(&sandbox, "c").await;
    engine.running(&id).await;
    assert_eq!(
        engine
            .observed
            .forget_other_boots("boot".into())
            .await
            .expect("same"),
        0
    );
    assert_eq!(
        engine
            .observed
            .forget_other_boots("other".into())
            .await
            .expect("other"),
        1
    );
    let container = engine
        .store
        .container(&id)
        .await
        .expect("a read")
        .expect("a row");
    assert_eq!(
        (container.state, container.exit_code),
        (State::Exited, Some(255))
    );
    let pods = engine
        .store
        .sandboxes(&Default::default())
        .await
        .expect("a list");
    assert_eq!((pods.len(), pods[0].state), (1, sandbox::State::Stopped));
    assert!(pods[0].address.is_none());
}

/// Puts down every claimed job with this outcome.
async fn put_down(engine: &Engine, keys: &[ObjectKey], outcome: &Outcome) {
    for key in keys {
        let finished = engine.observed.finish_job(key.clone(), outcome.clone());
        finished.await.expect("put down");
    }
}

#[tokio::test]
async fn history_is_kept_by_age_and_by_number_and_forgotten_in_batches() {
    let engine = engine().await;
    let keys: Vec<_> = (0..50).map(ObjectKey::Cleanup).collect();
    engine.observed.enqueue(keys.clone()).await.expect("queued");
    assert_eq!(claim(&engine).await.len(), 50);
    put_down(&engine, &keys, &Outcome::Done).await;
    let prune = async |before, rows, batch| {
        let pruned = engine.observed.prune_job_history(before, rows, batch);
        pruned.await.expect("pruned")
    };
    assert_eq!(prune(0, 50, 100).await, 0, "neither old nor too many");
    assert_eq!(
        prune(0, 20, 8).await,
        8,
        "a batch is all that one write does"
    );
    assert_eq!(prune(0, 20, 100).await, 22);
    let left = engine.store.job_history("", 100).await.expect("rows");
    assert_eq!(left.len(), 20);
    assert_eq!(
        prune(now_ns(), 1000, 100).await,
        20,
        "all are older than now"
    );
}

#[tokio::test]
async fn a_job_that_takes_long_is_reported_once_and_runs_on() {
    let engine = engine().await;
    let pod = engine.ready_pod("slow").await;
    let key = ObjectKey::Sandbox(pod.clone());
    assert_eq!(claim(&engine).await, std::slice::from_ref(&key));
    for _ in 0..2 {
        engine
            .observed
            .job_overdue(key.clone())
            .await
            .expect("told");
    }
    assert!(claim(&engine).await.is_empty(), "it is not run twice");
    let counts = engine.store.job_counts(now_ns()).await.expect("counts");
    assert_eq!((counts[0].state.as_str(), counts[0].count), ("overdue", 1));
    let events = engine
        .store
        .events(pod.as_str(), 0, 100)
        .await
        .expect("events");
    let told = events.iter().filter(|event| event.kind == "overdue");
    assert_eq!(told.count(), 1);
}

#[tokio::test]
async fn an_impossible_change_is_an_error_that_says_from_where_to_where() {
    let engine = engine().await;
    let pod = engine.ready_pod("down").await;
    let stopped = engine.observed.sandbox_stopped(pod.clone(), done("s"));
    stopped.await.expect("stopped");
    let again = engine
        .observed
        .sandbox_ready(pod.clone(), "boot".into(), done("s"));
    let error = again.await.expect_err("it is down");
    let StateError::Transition { noun, id, from, to } = &error else {
        panic!("{error}");
    };
    assert_eq!((*noun, id.as_str()), ("sandbox", pod.as_str()));
    assert_eq!((from.as_str(), *to), ("stopped", "ready"));
    let events = engine
        .store
        .events(pod.as_str(), 0, 100)
        .await
        .expect("events");
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["created", "ready", "stopped"],
        "nothing of the refused write is kept"
    );
    let gone = engine
        .observed
        .sandbox_ready(SandboxId::random(), "b".into(), done("s"));
    let error = gone.await.expect_err("it is not there");
    assert!(matches!(error, StateError::NotFound { .. }), "{error}");
}
