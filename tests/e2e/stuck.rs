//! Containers that cannot be killed, because their cgroup is frozen: whoever waits for one hears at
//! his deadline how far it has come, and nobody else notices.

use std::future::Future;
use std::time::Duration;

use tonic::{Code, Request, Status};

use crate::support::cgroup::{Frozen, frozen_is_stuck};
use crate::support::cri::*;
use crate::support::pod::exited;
use crate::support::{Cri, Node, Pod, container, eventually, is_soak};

/// More than the daemon looks at side by side.
const STUCK: usize = 40;
const STUCK_SOAK: usize = 100;
const PODS: usize = 4;
/// How long a caller of a stuck container waits.
const PATIENCE: Duration = Duration::from_secs(4);

fn impatient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// Asks until the daemon has answered with this stage. On a busy machine the client's clock may run
/// out first, or the daemon's before it has found out the stage; kubelet would ask again too.
async fn answer<F>(stage: &str, ask: impl Fn() -> F) -> Status
where
    F: Future<Output = Result<(), Status>>,
{
    let expected = format!("stage \"{stage}\"");
    let mut last = None;
    for _ in 0..8 {
        let status = ask().await.expect_err("what is stuck does not end");
        if status.message().contains(&expected) {
            return status;
        }
        last = Some(status);
    }
    panic!("the daemon never said {expected}: {last:?}");
}

async fn stop(cri: &Cri, id: &str) -> Result<(), Status> {
    let message = StopContainerRequest {
        container_id: id.into(),
        timeout: 0,
    };
    cri.runtime()
        .stop_container(impatient(message))
        .await
        .map(drop)
}

async fn remove(cri: &Cri, id: &str) -> Result<(), Status> {
    let message = RemoveContainerRequest {
        container_id: id.into(),
    };
    cri.runtime()
        .remove_container(impatient(message))
        .await
        .map(drop)
}

async fn stop_pod(cri: &Cri, id: &str) -> Result<(), Status> {
    let message = StopPodSandboxRequest {
        pod_sandbox_id: id.into(),
    };
    cri.runtime()
        .stop_pod_sandbox(impatient(message))
        .await
        .map(drop)
}

/// The life of a container that has nothing to do with the stuck ones.
async fn ordinary_life(node: &Node, pod: &Pod, round: usize) {
    let id = pod.idle(&format!("ordinary-{round}")).await;
    assert_eq!(node.cri.output(&id, "echo well").await, "well");
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    node.cri.list(None).await.expect("ListContainers");
    node.cri.stop(&id, 20).await.expect("StopContainer");
    node.cri.remove(&id).await.expect("RemoveContainer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn containers_that_cannot_be_killed_hold_nobody_up() {
    let node = Node::start().await;
    let mut pods = Vec::new();
    for place in 0..PODS {
        pods.push(node.pod(&format!("stuck-{place}")).await);
    }
    let count = if is_soak() { STUCK_SOAK } else { STUCK };
    let starts = (0..count).map(|n| {
        let pod = &pods[n % PODS];
        async move {
            pod.run(&container(&format!("c{n}"), &["sleep", "1000000"]))
                .await
        }
    });
    let ids = futures_util::future::join_all(starts).await;
    let frozen: Vec<_> = ids
        .iter()
        .map(|id| Frozen::container(&node.names, id))
        .collect();

    // The last pod is stopped as a whole; of the others' containers some are stopped, some removed.
    let calls: Vec<_> = ids
        .iter()
        .enumerate()
        .filter(|(n, _)| n % PODS != PODS - 1)
        .map(|(n, id)| {
            let (cri, id) = (node.cri.clone(), id.clone());
            tokio::spawn(async move {
                if n % 2 == 0 {
                    answer("kill", || stop(&cri, &id)).await
                } else {
                    answer("kill", || remove(&cri, &id)).await
                }
            })
        })
        .collect();
    let (cri, last) = (node.cri.clone(), pods[PODS - 1].id.clone());
    let whole_pod =
        tokio::spawn(async move { answer("containers end", || stop_pod(&cri, &last)).await });

    let other = node.pod("ordinary").await;
    let mut round = 0;
    while round == 0 || !calls.iter().all(tokio::task::JoinHandle::is_finished) {
        ordinary_life(&node, &other, round).await;
        round += 1;
    }
    if frozen_is_stuck() {
        for call in calls {
            let status = call.await.expect("a call that panicked has said why");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        }
        let status = whole_pod.await.expect("a call that panicked has said why");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }
    // The daemon goes on trying, and still nobody notices.
    ordinary_life(&node, &other, round).await;

    drop(frozen);
    for (n, id) in ids.iter().enumerate() {
        if n % PODS == PODS - 1 || n % 2 == 0 {
            assert_eq!(exited(&node.cri, id).await.exit_code, 137);
        } else {
            eventually("the container is removed", || async {
                let status = node.cri.status(id).await;
                status
                    .is_err_and(|status| status.code() == Code::NotFound)
                    .then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_for_a_frozen_container_is_given_up_and_never_runs() {
    let node = Node::start().await;
    let pod = node.pod("frozen").await;
    let id = pod.idle("main").await;
    let frozen = Frozen::container(&node.names, &id);
    let given_up = node.cri.exec(&id, &["touch", "/ran"], 1).await;
    let status = given_up.expect_err("nothing runs in a frozen container");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let other = pod.idle("other").await;
    assert_eq!(node.cri.output(&other, "echo well").await, "well");
    drop(frozen);
    let there = "test ! -e /ran && echo absent";
    assert_eq!(node.cri.output(&id, there).await, "absent");
}
