//! The state engine on a real database file.

mod sweep;

use std::collections::HashSet;

use super::container::NewContainer;
use super::container_facts::{Exit, Started};
use super::image::{NewImage, NewLayer};
use super::job::Outcome;
use super::operation::Finished;
use super::*;
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::address::Pool;
use crate::lifecycle::container::{Desired, State};
use crate::lifecycle::sandbox;
use crate::lifecycle::spec::{ContainerSpec, ImageSpec, SandboxSpec};

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
    }
}

impl Engine {
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
        assert!(self.observed.expect_layers(layers).await.expect("rows"));
        for chain_id in chain {
            let present = self.observed.layer_present((*chain_id).into(), 10, 2).await;
            present.expect("a row");
        }
        let image = NewImage {
            id: id.into(),
            manifest_digest: "m".into(),
            top_chain_id: chain.last().map(|top| (*top).to_owned()),
            spec: ImageSpec::default(),
            tags: vec![tag.into()],
            digests: vec![],
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
        let new = NewContainer {
            id: ContainerId::random(),
            sandbox_id: sandbox_id.clone(),
            image_id: "sha256:1".into(),
            spec: ContainerSpec {
                name: name.into(),
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

#[tokio::test]
async fn a_job_asked_for_while_it_runs_comes_back() {
    let engine = engine().await;
    let key = ObjectKey::Image("sha256:x".into());
    engine
        .observed
        .enqueue(vec![key.clone()])
        .await
        .expect("queued");
    let (claims, _) = engine.observed.claim_jobs(8).await.expect("claims");
    assert_eq!(claims.len(), 1);
    // Nobody else gets it meanwhile.
    engine
        .observed
        .enqueue(vec![key.clone()])
        .await
        .expect("queued");
    assert!(
        engine
            .observed
            .claim_jobs(8)
            .await
            .expect("claims")
            .0
            .is_empty()
    );
    engine
        .observed
        .finish_job(key.clone(), Outcome::Done)
        .await
        .expect("put down");
    assert_eq!(
        engine.observed.claim_jobs(8).await.expect("claims").0.len(),
        1
    );
    engine
        .observed
        .finish_job(key.clone(), Outcome::Failed("why".into()))
        .await
        .expect("down");
    let (claims, next) = engine.observed.claim_jobs(8).await.expect("claims");
    assert!(
        claims.is_empty() && next.is_some_and(|due| due > now_ns()),
        "it backs off"
    );
    // A dead daemon's claims are due again.
    engine
        .observed
        .enqueue(vec![key.clone()])
        .await
        .expect("queued");
    assert_eq!(
        engine.observed.claim_jobs(8).await.expect("claims").0.len(),
        1
    );
    engine.observed.reclaim_jobs().await.expect("reclaimed");
    assert_eq!(
        engine.observed.claim_jobs(8).await.expect("claims").0.len(),
        1
    );
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
