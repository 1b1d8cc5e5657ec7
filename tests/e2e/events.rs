//! GetContainerEvents: everything that happens, in order, once, whoever is away or slow.

use std::collections::BTreeMap;

use tonic::Code;

use crate::support::cri::*;
use crate::support::events::{Reader, deletes, kind, subscribe, uid};
use crate::support::pod::{exited, shell};
use crate::support::{Cri, Node, Pod, eventually};

const CREATED: ContainerEventType = ContainerEventType::ContainerCreatedEvent;
const STARTED: ContainerEventType = ContainerEventType::ContainerStartedEvent;
const STOPPED: ContainerEventType = ContainerEventType::ContainerStoppedEvent;
const DELETED: ContainerEventType = ContainerEventType::ContainerDeletedEvent;

const LIFE: [ContainerEventType; 4] = [CREATED, STARTED, STOPPED, DELETED];

/// What a message says in short.
fn brief(event: &ContainerEventResponse) -> (String, ContainerEventType, i64) {
    (event.container_id.clone(), kind(event), event.created_at)
}

fn briefs(events: &[ContainerEventResponse]) -> Vec<(String, ContainerEventType, i64)> {
    events.iter().map(brief).collect()
}

/// Checks what holds for any stream: times rise, and each object lives through its life in order.
fn check(events: &[ContainerEventResponse]) {
    let rises = |pair: &[ContainerEventResponse]| pair[0].created_at < pair[1].created_at;
    assert!(events.windows(2).all(rises), "times do not rise");
    let mut lives: BTreeMap<&str, Vec<ContainerEventType>> = BTreeMap::new();
    for event in events {
        lives
            .entry(&event.container_id)
            .or_default()
            .push(kind(event));
    }
    for (id, life) in lives {
        assert!(LIFE.starts_with(&life), "{id}: {life:?}");
    }
}

/// The status of one container in a message.
fn status<'e>(event: &'e ContainerEventResponse, id: &str) -> Option<&'e ContainerStatus> {
    event
        .containers_statuses
        .iter()
        .find(|known| known.id == id)
}

#[tokio::test]
async fn a_pod_and_its_container_are_told_of_from_beginning_to_end() {
    let node = Node::start().await;
    let mut reader = subscribe(&node.cri, None).await.expect("a stream");
    let pod = node.pod("told").await;
    let id = pod.run(&shell("main", "exit 7")).await;
    exited(&node.cri, &id).await;
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");

    let events = reader.until(deletes(&pod.id)).await;
    check(&events);
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.container_id.as_str(), kind(event)))
        .collect();
    let (pod_id, id) = (pod.id.as_str(), id.as_str());
    let expected = [
        (pod_id, CREATED),
        (pod_id, STARTED),
        (id, CREATED),
        (id, STARTED),
        (id, STOPPED),
        (pod_id, STOPPED),
        (id, DELETED),
        (pod_id, DELETED),
    ];
    assert_eq!(told, expected);
    let wanted = &pod.config.metadata.as_ref().expect("metadata").uid;
    for event in &events {
        assert_eq!(uid(event), wanted, "kubelet finds the pod by it");
    }
    let stopped = status(&events[4], id).expect("the container that has ended");
    assert_eq!(stopped.state(), ContainerState::ContainerExited);
    assert_eq!(stopped.exit_code, 7);
    assert!(stopped.finished_at > 0);
    assert!(status(&events[6], id).is_none(), "a deleted one has none");
    assert!(reader.is_silent().await, "nothing is told twice");
}

#[tokio::test]
async fn what_is_gone_before_it_is_read_still_has_its_pod_and_its_exit() {
    let node = Node::start().await;
    let pod = node.pod("gone").await;
    let ended = pod.run_to_end(&shell("main", "exit 9")).await;
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    let all = Some(("quilt-after-sequence", 0));
    let mut reader = subscribe(&node.cri, all).await.expect("a stream");
    let events = reader.until(deletes(&pod.id)).await;
    check(&events);
    let metadata = pod.config.metadata.as_ref();
    for event in &events {
        let named = event.pod_sandbox_status.as_ref();
        assert_eq!(named.and_then(|pod| pod.metadata.as_ref()), metadata);
    }
    let is_end =
        |event: &&ContainerEventResponse| event.container_id == ended.id && kind(event) == STOPPED;
    let stop = events.iter().find(is_end).expect("its end");
    let told = status(stop, &ended.id).expect("its last status");
    assert_eq!((told.exit_code, told.finished_at), (9, ended.finished_at));
    assert_eq!(
        (&told.reason, &told.metadata),
        (&ended.reason, &ended.metadata)
    );
}

#[tokio::test]
async fn a_pod_status_holds_what_evented_kubelets_read() {
    let node = Node::start().await;
    let pod = node.pod("status").await;
    let id = pod.idle("main").await;
    let message = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let answer = node.cri.runtime().pod_sandbox_status(message).await;
    let answer = answer.expect("PodSandboxStatus").into_inner();
    assert!(answer.timestamp > 0);
    let ids: Vec<_> = answer.containers_statuses.iter().map(|c| &c.id).collect();
    assert_eq!(ids, [&id]);
    assert_eq!(
        answer.containers_statuses[0],
        node.cri.status(&id).await.expect("ContainerStatus")
    );
}

/// Runs containers that end at once with known codes, and removes them.
async fn churn(pod: &Pod, cri: &Cri, names: std::ops::Range<usize>) {
    let one = |n: usize| async move {
        let config = shell(&format!("c{n}"), &format!("exit {}", n % 100));
        let id = pod.run(&config).await;
        exited(cri, &id).await;
        cri.remove(&id).await.expect("RemoveContainer");
    };
    futures_util::future::join_all(names.map(one)).await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_loses_nothing_and_holds_nobody_up() {
    let node = Node::start().await;
    // Connections of their own: what one does not read must not fill the window of the others.
    let [lazy, eager] = [(); 2].map(|()| Cri::new(&node.names.socket()));
    let mut lazy = subscribe(&lazy, None).await.expect("a stream");
    let mut eager = subscribe(&eager, None).await.expect("a stream");
    let pod = node.pod("lazy").await;
    for round in 0..5 {
        churn(&pod, &node.cri, round * 10..round * 10 + 10).await;
    }
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    let at_once = eager.until(deletes(&pod.id)).await;
    check(&at_once);
    assert_eq!(at_once.len(), 50 * 4 + 4, "of each object its whole life");
    let late = lazy.until(deletes(&pod.id)).await;
    assert_eq!(briefs(&late), briefs(&at_once));
    assert!(lazy.is_silent().await && eager.is_silent().await);
}

#[tokio::test]
async fn a_reader_that_was_away_over_a_restart_goes_on_where_it_was() {
    let mut node = Node::start().await;
    let mut reader = subscribe(&node.cri, None).await.expect("a stream");
    let first = node.pod("first").await;
    let is_up = |event: &ContainerEventResponse| kind(event) == STARTED;
    let mut seen = reader.until(is_up).await;
    drop(reader);
    let second = node.pod("second").await;
    churn(&second, &node.cri, 0..2).await;
    assert!(node.terminate().success());
    node.restart().await;
    node.cri
        .remove_pod(&first.id)
        .await
        .expect("RemovePodSandbox");
    node.cri
        .remove_pod(&second.id)
        .await
        .expect("RemovePodSandbox");
    let mut reader = subscribe(&node.cri, None).await.expect("a stream");
    seen.extend(reader.until(deletes(&second.id)).await);
    check(&seen);
    let all = Some(("quilt-after-sequence", 0));
    let mut all = subscribe(&node.cri, all).await.expect("a stream");
    let all = all.until(deletes(&second.id)).await;
    assert_eq!(briefs(&seen), briefs(&all), "nothing is missing or doubled");
}

#[tokio::test]
async fn a_reader_that_keeps_its_place_loses_nothing_to_daemons_that_are_killed() {
    let mut node = Node::start().await;
    let mut reader = subscribe(&node.cri, None).await.expect("a stream");
    let pod = node.pod("killed").await;
    let mut seen = Vec::new();
    for round in 0..3 {
        let names = [round * 2, round * 2 + 1];
        let mut ids = Vec::new();
        for n in names {
            ids.push(pod.run(&shell(&format!("c{n}"), "exit 3")).await);
        }
        // Some of the ends fall into the time when nobody is there to tell of them.
        seen.push(reader.next().await);
        node.kill();
        while let Ok(event) = reader.try_next().await {
            seen.push(event);
        }
        node.restart().await;
        let place = seen.last().expect("an event").created_at;
        let place = Some(("quilt-after-created-at", place));
        reader = subscribe(&node.cri, place).await.expect("a stream");
        for id in &ids {
            assert_eq!(exited(&node.cri, id).await.exit_code, 3);
        }
    }
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    seen.extend(reader.until(deletes(&pod.id)).await);
    check(&seen);
    assert_eq!(seen.len(), 6 * 4 + 4, "of each object its whole life");
}

/// Reads what is there from a sequence on, up to the deletion of `last`.
async fn history(node: &Node, sequence: i64, last: &str) -> (Reader, Vec<ContainerEventResponse>) {
    let position = Some(("quilt-after-sequence", sequence));
    let mut reader = subscribe(&node.cri, position).await.expect("a stream");
    let events = reader.until(deletes(last)).await;
    (reader, events)
}

#[tokio::test]
async fn a_place_that_has_been_pruned_is_the_oldest_that_is_kept() {
    let mut node = Node::prepare("[state]\nevents_kept = 10\n");
    node.spawn();
    node.answers().await;
    let pod = node.pod("pruned").await;
    churn(&pod, &node.cri, 0..8).await;
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    let (_, all) = history(&node, 0, &pod.id).await;
    assert_eq!(all.len(), 8 * 4 + 4, "the pruner has had no time yet");
    assert!(node.terminate().success());
    node.restart().await;
    eventually("the oldest are pruned", || async {
        let (_, rest) = history(&node, 1, &pod.id).await;
        (rest.len() < 11).then_some(())
    })
    .await;
    let (reader, rest) = history(&node, 1, &pod.id).await;
    assert_eq!(reader.after, 1, "as it was asked for");
    assert_eq!(briefs(&rest), briefs(&all[all.len() - rest.len()..]));
    assert!(node.log_tail().contains("those before are pruned"));

    let beyond = Some(("quilt-after-sequence", 1_000_000));
    let error = subscribe(&node.cri, beyond)
        .await
        .err()
        .expect("it is beyond");
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    let nonsense = Some(("quilt-after-sequence", -4));
    let error = subscribe(&node.cri, nonsense)
        .await
        .err()
        .expect("no place");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

// A thread of its own drives the client's side of the connection while this one waits for the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_leaves_room_and_streams_do_not_hold_up_the_end() {
    let mut node = Node::start().await;
    for _ in 0..2 {
        let mut readers = Vec::new();
        while readers.len() < 64 {
            let next = eventually("a stream that was left has ended", || async {
                subscribe(&node.cri, None).await.ok()
            });
            readers.push(next.await);
        }
        let refused = subscribe(&node.cri, None).await.err().expect("the 65th");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    }
    let mut reader = eventually("there is room", || async {
        subscribe(&node.cri, None).await.ok()
    })
    .await;
    assert!(node.terminate().success());
    let end = reader.try_next().await.expect_err("the daemon is ending");
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    assert!(!node.log_tail().contains("not everything ended in time"));
}
