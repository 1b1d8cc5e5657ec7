//! Limits, read back from the kernel's own files, and what happens at them.

use crate::support::cri::*;
use crate::support::pod::{exited, resources, shell};
use crate::support::{Node, cgroup};

#[tokio::test]
async fn limits_arrive_in_the_cgroup() {
    let node = Node::start().await;
    let pod = node.pod("limits").await;
    let mut config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    *resources(&mut config) = LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 321,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    let id = pod.run(&config).await;
    let read = |controller, v1, v2| cgroup::read(&node.names, &id, controller, v1, v2);
    let max = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(max == "25000" || max == "25000 50000", "{max}");
    let period = read("cpu", "cpu.cfs_period_us", "cpu.max");
    assert!(period == "50000" || period == "25000 50000", "{period}");
    let weight = read("cpu", "cpu.shares", "cpu.weight");
    assert!(
        weight == "512" || (20..=80).contains(&weight.parse().unwrap_or(0)),
        "{weight}"
    );
    assert_eq!(
        read("memory", "memory.limit_in_bytes", "memory.max"),
        "67108864"
    );
    assert_eq!(read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(
        node.cri.output(&id, "cat /proc/1/oom_score_adj").await,
        "321"
    );
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    let shown = status.resources.and_then(|r| r.linux).expect("resources");
    assert_eq!(
        (shown.cpu_shares, shown.memory_limit_in_bytes),
        (512, 64 << 20)
    );
}

#[tokio::test]
async fn a_container_over_its_memory_limit_is_oom_killed() {
    let node = Node::start().await;
    let pod = node.pod("oom").await;
    // `tail` keeps what it reads until it sees a line end: it grows without bound.
    let mut config = crate::support::container("main", &["tail", "/dev/zero"]);
    resources(&mut config).memory_limit_in_bytes = 24 << 20;
    let id = pod.run(&config).await;
    let ended = exited(&node.cri, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
}

#[tokio::test]
async fn a_kill_without_memory_pressure_is_not_called_oom() {
    let node = Node::start().await;
    let pod = node.pod("killed").await;
    let mut config = shell("main", "trap '' TERM; while :; do sleep 0.05; done");
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let id = pod.run(&config).await;
    node.cri.stop(&id, 0).await.expect("StopContainer");
    let ended = exited(&node.cri, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
}

#[tokio::test]
async fn unified_entries_reach_their_files_or_are_refused() {
    let node = Node::start().await;
    let pod = node.pod("pids").await;
    let mut config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    resources(&mut config)
        .unified
        .insert("pids.max".into(), "17".into());
    match node.cri.create(&pod.id, &config, &pod.config).await {
        // Cgroup v1 has no such files; saying so is better than a limit that is not there.
        Err(error) => assert!(error.message().contains("pids.max"), "{error}"),
        Ok(id) => match node.cri.start(&id).await {
            Err(error) => assert!(error.message().contains("pids.max"), "{error}"),
            Ok(()) => {
                let limit = cgroup::read(&node.names, &id, "pids", "pids.max", "pids.max");
                assert_eq!(limit, "17");
            }
        },
    }
}
