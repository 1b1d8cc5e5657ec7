//! The daemon dies between every two steps of a pod's life, once for each point that
//! `quiltd fault-points` lists. After its restart there is the whole thing or nothing, the call
//! that was cut off succeeds when it is made again, and everything can be removed.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;
use tonic::Status;

use crate::support::cri::*;
use crate::support::node::quiltd;
use crate::support::pod::{namespaces, shell};
use crate::support::wait::{BOUND, appears};
use crate::support::{Cri, Node, registry};

/// The variable that names the point at which the daemon aborts.
const VARIABLE: &str = "QUILT_FAULTS";

/// Points that a life without another mishap does not reach.
const APART: &[&str] = &[
    "shim.adopted",
    "shim.exit_lost",
    "image.failed",
    "sandbox.failed",
    "sandbox.lacking",
    "sandbox.pinned",
    "sandbox.given_back",
    "sandbox.mended",
    "sandbox.init_ended",
    "sweep.mended",
    "container.error",
    "container.emptied",
    "container.resumed",
    "container.start_failed",
    "container.killed",
];

/// Tests that share the points, so that they run side by side.
const SHARES: usize = 4;

/// Every point, in the daemon's own order.
fn points() -> Vec<String> {
    let output = Command::new(quiltd())
        .arg("fault-points")
        .output()
        .expect("quiltd runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("names");
    let names = text.split_whitespace().filter(|name| !APART.contains(name));
    names.map(str::to_owned).collect()
}

/// One life of a pod, in which the daemon dies once.
struct Life {
    node: Node,
    point: String,
    crashed: bool,
}

impl Life {
    /// Makes a call. When the daemon dies in it, checks what the restarted daemon shows, and makes
    /// the call again, which must succeed.
    async fn call<T>(&mut self, what: &str, call: impl AsyncFn(Cri) -> Result<T, Status>) -> T {
        let first = call(self.node.cri.clone()).await;
        let patience = if first.is_err() {
            Duration::from_secs(2)
        } else {
            Duration::ZERO
        };
        if self.died(patience).await {
            self.come_back(what).await;
            let again = call(self.node.cri.clone()).await;
            return again.unwrap_or_else(|e| panic!("{}: {what} again: {e}", self.point));
        }
        first.unwrap_or_else(|e| panic!("{}: {what}: {e}", self.point))
    }

    /// Whether the daemon has died at its point. A failed call may be answered a moment before the
    /// process is gone, so that it is given that moment.
    async fn died(&mut self, patience: Duration) -> bool {
        if self.crashed {
            return false;
        }
        let node = &mut self.node;
        let ended = appears(patience, || {
            let ended = node.ended();
            async move { ended }
        });
        let Some(status) = ended.await else {
            return false;
        };
        self.crashed_with(status)
    }

    /// Takes note of an end, which must be that of the point.
    fn crashed_with(&mut self, status: ExitStatus) -> bool {
        let aborted = status.signal() == Some(Signal::SIGABRT as i32);
        assert!(
            aborted,
            "{}: ended with {status}, not by its point",
            self.point
        );
        self.crashed = true;
        true
    }

    /// Restarts without the point, and checks that what shows is whole.
    async fn come_back(&mut self, what: &str) {
        self.node.env.clear();
        self.node.restart().await;
        let cri = self.node.cri.clone();
        for pod in cri.list_pods(None).await.expect("ListPodSandbox") {
            // It may be on its way down, and then gone the next moment; never half there.
            let status = match cri.pod_status(&pod.id).await {
                Err(gone) if gone.code() == tonic::Code::NotFound => continue,
                found => found.expect("PodSandboxStatus"),
            };
            let further = status.state() == PodSandboxState::SandboxNotready;
            assert!(
                status.state == pod.state || further,
                "{}: {what}",
                self.point
            );
            if status.state() == PodSandboxState::SandboxReady {
                let ip = status.network.map(|network| network.ip).unwrap_or_default();
                assert!(
                    !ip.is_empty(),
                    "{}: {what}: ready without an address",
                    self.point
                );
            }
        }
        for container in cri.list(None).await.expect("ListContainers") {
            let status = match cri.status(&container.id).await {
                Err(gone) if gone.code() == tonic::Code::NotFound => continue,
                found => found.expect("ContainerStatus"),
            };
            if status.state() == ContainerState::ContainerRunning {
                let answer = cri.exec(&container.id, &["true"], 10).await;
                // It may end while we look, and then it is exited in a moment, not half there.
                if let Err(error) = answer {
                    let gone = appears(BOUND, || async {
                        match cri.status(&container.id).await {
                            Ok(now) => now.state() == ContainerState::ContainerExited,
                            Err(error) => error.code() == tonic::Code::NotFound,
                        }
                        .then_some(())
                    });
                    assert!(
                        gone.await.is_some(),
                        "{}: {what}: running and not there: {error}",
                        self.point
                    );
                }
            }
        }
        for image in cri.list_images().await.expect("ListImages") {
            assert!(
                image.size > 0 && !image.id.is_empty(),
                "{}: {image:?}",
                self.point
            );
        }
    }

    /// Starts the daemon, which may die on its way up.
    async fn come_up(&mut self) {
        self.node.spawn();
        if let Some(status) = self.node.answers_or_ends().await {
            self.crashed_with(status);
            self.come_back("start").await;
        }
    }

    /// Stops the daemon as an upgrade does, and starts it with the point still set: some points are
    /// on the way down and on the way back only.
    async fn upgrade(&mut self) {
        if !self.crashed {
            let status = self.node.terminate();
            if status.success() {
                self.come_up().await;
            } else {
                self.crashed_with(status);
                self.come_back("end").await;
            }
        }
    }
}

/// The pod that meets a point: only one that shares its PID namespace has a process of its own to
/// start.
fn pod_for(node: &Node, point: &str) -> PodSandboxConfig {
    let mut pod = node.pod_config("crash");
    if point.starts_with("sandbox.init") {
        namespaces(&mut pod).pid = NamespaceMode::Pod as i32;
    }
    pod
}

/// Pull, run, create, start, exec, end, stop, remove: everything a pod goes through.
async fn live(point: &str) {
    let mut node = Node::prepare("");
    node.env = vec![(VARIABLE.into(), format!("{point}=abort"))];
    let pod = pod_for(&node, point);
    let image = registry().image("busybox:latest");
    let name = image.as_str();
    let mut life = Life {
        node,
        point: point.into(),
        crashed: false,
    };
    life.come_up().await;

    life.call("PullImage", async |cri| cri.pull(name).await)
        .await;
    let id = life
        .call("RunPodSandbox", async |cri| cri.run_pod(&pod).await)
        .await;
    let waiting = shell(
        "waiting",
        "trap 'exit 5' TERM; while :; do sleep 0.02; done",
    );
    let ending = shell("ending", "exit 7");
    let waits = life
        .call("CreateContainer", async |c| {
            c.create(&id, &waiting, &pod).await
        })
        .await;
    life.call("StartContainer", async |cri| start(&cri, &waits).await)
        .await;
    let ends = life
        .call("CreateContainer", async |c| {
            c.create(&id, &ending, &pod).await
        })
        .await;
    life.call("StartContainer", async |cri| start(&cri, &ends).await)
        .await;
    let code = life
        .call("the end of a container", async |cri| {
            ended(&cri, &ends).await
        })
        .await;
    assert_eq!(code, 7, "{point}: the exact code, whatever happened");
    life.upgrade().await;
    life.call("ExecSync", async |cri| {
        cri.exec(&waits, &["true"], 10).await.map(drop)
    })
    .await;
    life.call("ReopenContainerLog", async |cri| {
        cri.reopen_log(&waits).await
    })
    .await;
    life.call("StopContainer", async |cri| cri.stop(&waits, 10).await)
        .await;
    life.call("RemoveContainer", async |cri| cri.remove(&waits).await)
        .await;
    life.call("StopPodSandbox", async |cri| cri.stop_pod(&id).await)
        .await;
    life.call("RemovePodSandbox", async |cri| cri.remove_pod(&id).await)
        .await;
    life.call("RemoveImage", async |cri| cri.remove_image(name).await)
        .await;
    // The last removal may go on behind its answer, and so may the daemon die behind it.
    if life.died(Duration::from_secs(3)).await {
        life.come_back("afterwards").await;
    }
    assert!(
        life.crashed,
        "{point} is never reached: a point that nothing reaches proves nothing"
    );
}

/// StartContainer, of which a retry may find that the first call had done it.
async fn start(cri: &Cri, id: &str) -> Result<(), Status> {
    match cri.start(id).await {
        Err(error) if error.code() == tonic::Code::FailedPrecondition => {
            let state = cri.status(id).await?.state();
            let started = matches!(
                state,
                ContainerState::ContainerRunning | ContainerState::ContainerExited
            );
            if started { Ok(()) } else { Err(error) }
        }
        outcome => outcome,
    }
}

/// The exit code of a container that ends by itself. An error is the caller's, which asks whether
/// the daemon has died.
async fn ended(cri: &Cri, id: &str) -> Result<i32, Status> {
    let end = appears(BOUND, || async {
        match cri.status(id).await {
            Ok(status) if status.state() == ContainerState::ContainerExited => {
                Some(Ok(status.exit_code))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    });
    end.await
        .unwrap_or_else(|| Err(Status::deadline_exceeded("the container does not end")))
}

/// Lives through every point of one share.
async fn live_share(share: usize) {
    for point in points().into_iter().skip(share).step_by(SHARES) {
        println!("{point}");
        live(&point).await;
    }
}

#[tokio::test]
async fn every_crash_point_leaves_the_whole_or_nothing_first_share() {
    assert!(
        points().len() > 10,
        "a pod's life has more steps: {:?}",
        points()
    );
    live_share(0).await;
}

#[tokio::test]
async fn every_crash_point_leaves_the_whole_or_nothing_second_share() {
    live_share(1).await;
}

#[tokio::test]
async fn every_crash_point_leaves_the_whole_or_nothing_third_share() {
    live_share(2).await;
}

#[tokio::test]
async fn every_crash_point_leaves_the_whole_or_nothing_fourth_share() {
    live_share(3).await;
}

#[tokio::test]
async fn a_point_that_does_not_exist_is_refused() {
    let mut node = Node::prepare("");
    node.env = vec![(VARIABLE.into(), "no.such.point=abort".into())];
    let said = node.refused(&mut node.serve());
    assert!(said.contains("no.such.point"), "{said}");
}
