//! Points that an ordinary life does not come to: those of a daemon that takes over without a shim,
//! and those of a container of another runtime.

use nix::sys::signal::Signal;

use super::{Action, Walk, ended};
use crate::support::cri::*;
use crate::support::pod::shell;
use crate::support::wait::{BOUND, appears};
use crate::support::{process, registry};

/// The shim is killed with the daemon, and one of two containers with it.
async fn live_without_a_shim(action: Action, point: &str) {
    let mut walk = Walk::begin(action).await;
    let image = registry().image("busybox:latest");
    let pod = walk.node.pod_config("shim");
    walk.node.cri.pull(&image).await.expect("PullImage");
    let id = walk.node.cri.run_pod(&pod).await.expect("RunPodSandbox");
    let lives = walk.run(&id, &shell("lives", "sleep 1000"), &pod).await;
    let dies = walk.run(&id, &shell("dies", "sleep 1000"), &pod).await;
    let shims = walk.node.shims();
    walk.node.kill();
    for shim in shims {
        process::signal(shim, Signal::SIGKILL);
    }
    let gone = process::in_cgroup_of(&walk.node.names, &dies);
    process::signal(gone, Signal::SIGKILL);
    appears(BOUND, || async {
        (!process::is_running(gone)).then_some(())
    })
    .await
    .expect("a killed process ends");
    let text = action.arm(point);
    walk.arm(text);
    walk.node.spawn();
    if let Some(status) = walk.node.answers_or_ends().await {
        walk.check_death(status);
        walk.disarm();
        walk.node.restart().await;
    }
    let died = walk.call("the end of a container", async |cri| {
        ended(&cri, &dies).await
    });
    assert_eq!(died.await, 255, "{point}: nobody saw how");
    let status = walk.node.cri.status(&lives).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning, "{point}");
    assert!(walk.fired().contains(point), "{point} is never reached");
    walk.go_down(&id, &dies, &lives, &image).await;
    walk.nothing_is_left().await;
    walk.end();
}

#[tokio::test]
async fn taking_over_without_a_shim_may_be_cut_off_as_well() {
    for point in ["shim.adopted", "shim.exit_lost"] {
        for action in [Action::Abort, Action::Error] {
            live_without_a_shim(action, point).await;
        }
    }
}

/// A container of another runtime, which is told to forget it.
async fn live_under_runc(action: Action) {
    let point = "container.runtime_deleted";
    let runtime = "[runtimes.runc]\npath = \"/usr/sbin/runc\"\n";
    let mut walk = Walk::begin_with(action, runtime).await;
    walk.forgiving = action == Action::Error;
    let pod = walk
        .node
        .pod_of("runc", walk.node.pod_config("runtime"))
        .await;
    let text = action.arm(point);
    let script = "while [ ! -e /tmp/end ]; do sleep 0.02; done; exit 7";
    let ends = pod.run(&shell("ends", script)).await;
    walk.arm(text);
    walk.call("the end of a container", async |cri| {
        cri.exec(&ends, &["touch", "/tmp/end"], 10).await.map(drop)
    })
    .await;
    let code = walk.call("the exit code", async |cri| ended(&cri, &ends).await);
    assert_eq!(code.await, 7, "{point}");
    let own = &pod.id;
    walk.call("RemoveContainer", async |cri| cri.remove(&ends).await)
        .await;
    walk.call("StopPodSandbox", async |cri| cri.stop_pod(own).await)
        .await;
    walk.call("RemovePodSandbox", async |cri| cri.remove_pod(own).await)
        .await;
    let image = registry().image("busybox:latest");
    walk.call("RemoveImage", async |cri| cri.remove_image(&image).await)
        .await;
    walk.nothing_is_left().await;
    assert!(walk.fired().contains(point), "{point} is never reached");
    let known = walk.node.names.state().join("runtimes/runc");
    let left = std::fs::read_dir(known).expect("its root").count();
    assert_eq!(left, 0, "the runtime knows of it");
    walk.end();
}

#[tokio::test]
async fn telling_another_runtime_to_forget_a_container_may_be_cut_off() {
    for action in [Action::Abort, Action::Error] {
        live_under_runc(action).await;
    }
}
