//! Daemon and shim are killed together, at any moment, while containers run, start and stop.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::cri::*;
use crate::support::pod::{exited, shell};
use crate::support::{Node, eventually, process};

/// How often everything is killed: a few times, or many in the long form.
fn rounds() -> u64 {
    if std::env::var_os("QUILT_SOAK").is_some() {
        60
    } else {
        4
    }
}

fn kill_both(node: &mut Node) {
    node.kill();
    for shim in node.shims() {
        process::signal(shim, Signal::SIGKILL);
    }
}

#[tokio::test]
async fn containers_outlive_daemon_and_shim_at_any_moment() {
    let mut node = Node::start().await;
    let pod = node.pod("one").await;
    let config = shell(
        "writer",
        "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done",
    );
    let writer = pod.run(&config).await;
    let first = process::in_cgroup_of(&node.names, &writer);
    for round in 0..rounds() {
        let stopping = pod.idle(&format!("stopping-{round}")).await;
        process::catches_sigterm(process::in_cgroup_of(&node.names, &stopping)).await;
        let starting = pod.create(&idle(&format!("starting-{round}"))).await;
        let under_way = {
            let (cri, start, stop) = (node.cri.clone(), starting.clone(), stopping.clone());
            tokio::spawn(async move { tokio::join!(cri.start(&start), cri.stop(&stop, 10)) })
        };
        // A moment of the work, another one each round.
        tokio::time::sleep(Duration::from_millis(round * 7 % 40)).await;
        kill_both(&mut node);
        // Callers hear of the death, whatever was done already.
        let _outcomes = under_way.await.expect("the callers");
        let written = pod.log_len(&config);
        node.restart().await;

        assert_eq!(
            process::in_cgroup_of(&node.names, &writer),
            first,
            "round {round}"
        );
        eventually("the log goes on", || async {
            (pod.log_len(&config) > written).then_some(())
        })
        .await;
        node.cri
            .start(&starting)
            .await
            .expect("the retry of StartContainer");
        let status = node.cri.status(&starting).await.expect("ContainerStatus");
        assert_eq!(
            status.state(),
            ContainerState::ContainerRunning,
            "{status:?}"
        );
        assert_eq!(node.cri.output(&starting, "echo works").await, "works");
        node.cri
            .stop(&stopping, 10)
            .await
            .expect("the retry of StopContainer");
        let ended = exited(&node.cri, &stopping).await;
        // It ends by itself on SIGTERM; how is told by the shim, by its pidfd, or by nobody.
        assert!([0, 143, 255].contains(&ended.exit_code), "{ended:?}");
        assert_eq!(
            ended.exit_code == 255,
            ended.reason == "ShimLost",
            "{ended:?}"
        );
        for id in [&starting, &stopping] {
            node.cri.remove(id).await.expect("RemoveContainer");
        }
    }
    assert_eq!(node.shims().len(), 1);
}

#[tokio::test]
async fn who_ends_while_neither_is_there_is_told_from_who_goes_on() {
    let mut node = Node::start().await;
    let pod = node.pod("one").await;
    let lives = pod.idle("lives").await;
    let ends = pod
        .run(&shell("ends", "while :; do sleep 0.05; done"))
        .await;
    let last = process::in_cgroup_of(&node.names, &ends);
    kill_both(&mut node);
    process::signal(last, Signal::SIGKILL);
    eventually("it has ended", || async {
        (!process::is_running(last)).then_some(())
    })
    .await;
    node.restart().await;
    let status = exited(&node.cri, &ends).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (255, "ShimLost")
    );
    let status = node.cri.status(&lives).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(node.cri.output(&lives, "echo works").await, "works");
}

/// A container that ends on SIGTERM, and lets others exec in it until then.
fn idle(name: &str) -> ContainerConfig {
    shell(name, "trap 'exit 0' TERM; while :; do sleep 0.05; done")
}
