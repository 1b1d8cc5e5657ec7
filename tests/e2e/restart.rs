//! The daemon is killed while containers run. It comes back to the same pods, the same addresses
//! and the same containers; what ended meanwhile has its exact code; no line of a log is missing.

use std::os::unix::process::ExitStatusExt;

use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{exited, shell};
use crate::support::{Node, Pod, eventually, process};

/// Everything a client can see of a node.
async fn seen(node: &Node) -> (Vec<PodSandboxStatus>, Vec<ContainerStatus>, Vec<Image>) {
    let mut pods = Vec::new();
    for pod in node.cri.list_pods(None).await.expect("ListPodSandbox") {
        pods.push(
            node.cri
                .pod_status(&pod.id)
                .await
                .expect("PodSandboxStatus"),
        );
    }
    let mut containers = Vec::new();
    for container in node.cri.list(None).await.expect("ListContainers") {
        containers.push(
            node.cri
                .status(&container.id)
                .await
                .expect("ContainerStatus"),
        );
    }
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    (
        pods,
        containers,
        node.cri.list_images().await.expect("ListImages"),
    )
}

/// Ends when a file appears in the container.
fn ends_on_demand(name: &str, code: i32) -> ContainerConfig {
    shell(
        name,
        &format!("while [ ! -e /tmp/end ]; do sleep 0.02; done; exit {code}"),
    )
}

#[tokio::test]
async fn after_a_kill_everything_is_as_it_was() {
    let mut node = Node::start().await;
    let pods = [
        node.pod("one").await,
        node.pod("two").await,
        node.pod("three").await,
    ];
    let running = pods[0].idle("running").await;
    pods[0].run_to_end(&shell("ended", "exit 9")).await;
    pods[1].create(&shell("created", "true")).await;
    node.cri
        .stop_pod(&pods[2].id)
        .await
        .expect("StopPodSandbox");
    let before = seen(&node).await;
    let first_process = process::in_cgroup_of(&node.names, &running);

    for _ in 0..3 {
        node.kill();
        node.restart().await;
        assert_eq!(seen(&node).await, before);
    }
    assert_eq!(process::in_cgroup_of(&node.names, &running), first_process);
    assert_eq!(node.cri.output(&running, "echo works").await, "works");
    assert_eq!(node.shims().len(), 1, "one shim, the same");
    let fourth = node.pod("four").await;
    let ips: Vec<_> = before
        .0
        .iter()
        .filter_map(|p| Some(p.network.clone()?.ip))
        .collect();
    assert!(
        !ips.contains(&fourth.ip().await),
        "an address is given out twice"
    );
}

#[tokio::test]
async fn what_ended_while_the_daemon_was_dead_has_its_exact_code() {
    let mut node = Node::start().await;
    let pod = node.pod("meanwhile").await;
    let mut ids = Vec::new();
    for code in [0, 7, 255] {
        ids.push((
            pod.run(&ends_on_demand(&format!("code-{code}"), code))
                .await,
            code,
        ));
    }
    let victim = pod.idle("victim").await;
    let first = process::in_cgroup_of(&node.names, &victim);
    let roots: Vec<_> = ids
        .iter()
        .map(|(id, _)| process::in_cgroup_of(&node.names, id))
        .collect();
    node.kill();
    for pid in &roots {
        // The container's own root, as the process sees it.
        std::fs::write(format!("/proc/{pid}/root/tmp/end"), "").expect("a file in the container");
    }
    process::signal(first, nix::sys::signal::Signal::SIGKILL);
    eventually("all have ended", || async {
        let mut all = roots.iter().chain([&first]);
        all.all(|pid| !process::is_running(*pid)).then_some(())
    })
    .await;
    node.restart().await;
    for (id, code) in ids {
        let ended = exited(&node.cri, &id).await;
        assert_eq!(ended.exit_code, code);
        assert!(ended.finished_at >= ended.started_at, "{ended:?}");
    }
    assert_eq!(exited(&node.cri, &victim).await.exit_code, 137);
}

/// Counts until told to end.
fn counter(name: &str) -> ContainerConfig {
    let script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; usleep 500; done";
    shell(name, script)
}

/// Ends the counter and checks that each number is there once.
async fn assert_counted(node: &Node, pod: &Pod, id: &str, config: &ContainerConfig) {
    node.cri.end_by_file(id, "/tmp/stop").await;
    exited(&node.cri, id).await;
    let lines = contents(&pod.log(config), "stdout");
    let expected: Vec<_> = (1..=lines.len()).map(|n| n.to_string()).collect();
    assert_eq!(lines, expected, "neither a gap nor a line twice");
    assert!(lines.len() > 100, "only {} lines", lines.len());
}

/// Waits until the counter has got on.
async fn grows(pod: &Pod, config: &ContainerConfig) {
    let before = pod.log_len(config);
    eventually("the log grows", || async {
        (pod.log_len(config) > before + 2000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_log_has_no_gap_when_the_daemon_is_killed() {
    let mut node = Node::start().await;
    let pod = node.pod("counting").await;
    let config = counter("main");
    let id = pod.run(&config).await;
    for _ in 0..3 {
        grows(&pod, &config).await;
        node.kill();
        grows(&pod, &config).await;
        node.restart().await;
    }
    assert_counted(&node, &pod, &id, &config).await;
}

#[tokio::test]
async fn a_log_has_no_gap_when_the_shim_is_killed() {
    let node = Node::start().await;
    let pod = node.pod("counting").await;
    let config = counter("main");
    let id = pod.run(&config).await;
    grows(&pod, &config).await;
    let [shim] = node.shims()[..] else {
        panic!("one shim: {:?}", node.shims())
    };
    process::signal(shim, nix::sys::signal::Signal::SIGKILL);
    eventually("another shim runs", || async {
        node.shims().iter().any(|pid| *pid != shim).then_some(())
    })
    .await;
    grows(&pod, &config).await;
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(
        status.state(),
        ContainerState::ContainerRunning,
        "the container goes on"
    );
    assert_counted(&node, &pod, &id, &config).await;
    let ended = node.cri.status(&id).await.expect("ContainerStatus");
    // Linux 6.15 and later tell the code of a process that is not a child.
    let known = (ended.exit_code, ended.reason.as_str());
    assert!(
        matches!(known, (0, "Completed") | (255, "ShimLost")),
        "{known:?}"
    );
}

#[tokio::test]
async fn sigterm_ends_the_daemon_and_leaves_containers_running() {
    let mut node = Node::start().await;
    let pod = node.pod("upgrade").await;
    let id = pod.idle("main").await;
    let first = process::in_cgroup_of(&node.names, &id);
    let status = node.terminate();
    assert!(
        status.success(),
        "exit {:?}, signal {:?}",
        status.code(),
        status.signal()
    );
    assert!(
        process::is_running(first),
        "the container ended with the daemon"
    );
    node.restart().await;
    assert_eq!(process::in_cgroup_of(&node.names, &id), first);
    assert_eq!(node.cri.output(&id, "echo works").await, "works");
}

#[tokio::test]
async fn a_grace_period_outlives_the_daemon() {
    let mut node = Node::start().await;
    let pod = node.pod("grace").await;
    let id = pod
        .run(&shell("main", "trap '' TERM; while :; do sleep 0.05; done"))
        .await;
    let first = process::in_cgroup_of(&node.names, &id);
    eventually("the trap is set", || async {
        // proc(5), SigIgn: SIGTERM is bit 14.
        let status = std::fs::read_to_string(format!("/proc/{first}/status")).ok()?;
        let ignored = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))?
            .trim();
        (u64::from_str_radix(ignored, 16).ok()? >> 14 & 1 == 1).then_some(())
    })
    .await;
    let mut stop = tokio::spawn({
        let (cri, id) = (node.cri.clone(), id.clone());
        async move { cri.stop(&id, 2).await }
    });
    let early = tokio::time::timeout(std::time::Duration::from_millis(500), &mut stop).await;
    assert!(
        early.is_err(),
        "answered before the grace was over: {early:?}"
    );
    node.kill();
    // Its caller hears of the death, whatever was done already.
    let _outcome = stop.await.expect("the caller");
    node.restart().await;
    node.cri
        .stop(&id, 2)
        .await
        .expect("the retry of StopContainer");
    assert_eq!(exited(&node.cri, &id).await.exit_code, 137);
}
