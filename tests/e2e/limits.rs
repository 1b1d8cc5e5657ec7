//! Limits, read back from the kernel's own files, and what happens at them.

use crate::support::cri::*;
use crate::support::pod::{exited, resources, shell};
use crate::support::{Node, cgroup, eventually, process};

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
async fn what_the_kernel_makes_of_limits_is_told() {
    let node = Node::start().await;
    let pod = node.pod("told").await;
    let mut config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let asked = LinuxContainerResources {
        // Cgroup v1 has no less than 2.
        cpu_shares: 1,
        cpu_quota: 30_000,
        cpu_period: 100_000,
        // No whole page: kubelet is to find what it has asked for.
        memory_limit_in_bytes: (64 << 20) + 1,
        cpuset_cpus: "0,0".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: (4 << 20) + 1,
        }],
        ..Default::default()
    };
    *resources(&mut config) = asked.clone();
    let id = pod.create(&config).await;
    let shown = async || {
        let status = node.cri.status(&id).await.expect("ContainerStatus");
        status.resources.and_then(|r| r.linux).expect("resources")
    };
    assert_eq!(shown().await, asked, "nothing holds yet");
    node.cri.start(&id).await.expect("StartContainer");
    let read = |controller, v1, v2| cgroup::read(&node.names, &id, controller, v1, v2);
    assert_eq!(read("cpuset", "cpuset.mems", "cpuset.mems"), "0");
    let huge = read("hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
    assert_eq!(huge, (4 << 20).to_string());
    let in_force = LinuxContainerResources {
        cpu_shares: if cgroup::is_v2("cpu") { 1 } else { 2 },
        ..asked
    };
    assert_eq!(shown().await, in_force);
    let wanted = LinuxContainerResources {
        memory_limit_in_bytes: 48 << 20,
        cpu_shares: 100,
        ..in_force.clone()
    };
    node.cri
        .update(&id, wanted.clone())
        .await
        .expect("an update");
    assert_eq!(shown().await, wanted);
    // What is refused is not told.
    let refused = LinuxContainerResources {
        cpuset_mems: "900".into(),
        memory_limit_in_bytes: 32 << 20,
        ..in_force
    };
    node.cri
        .update(&id, refused)
        .await
        .expect_err("no node 900");
    assert_eq!(shown().await, wanted);
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
async fn a_kill_for_want_of_memory_is_known_when_its_cgroup_was_taken_away() {
    let mut node = Node::start().await;
    let pod = node.pod("taken").await;
    let volume = node.path("volumes").join("told");
    std::fs::create_dir(&volume).expect("a directory of the test");
    let script = "while [ ! -e /told/go ]; do sleep 0.02; done; exec tail /dev/zero";
    let mut config = shell("main", script);
    config.mounts.push(Mount {
        container_path: "/told".into(),
        host_path: volume.display().to_string(),
        ..Default::default()
    });
    resources(&mut config).memory_limit_in_bytes = 24 << 20;
    let id = pod.run(&config).await;
    let pid = process::in_cgroup_of(&node.names, &id);
    node.kill();
    std::fs::write(volume.join("go"), "").expect("a file of the test");
    eventually("its process has ended", || async {
        let there = std::path::Path::new(&format!("/proc/{pid}")).exists();
        (!there).then_some(())
    })
    .await;
    // Whoever cleans up the cgroups of pods does so while the daemon is away.
    for root in cgroup::roots(&node.names) {
        for dir in cgroup::tree(&root) {
            if dir.ends_with(&id) {
                std::fs::remove_dir(&dir).expect("an empty cgroup");
            }
        }
    }
    node.restart().await;
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

/// A shell that has lost a child for want of memory, and goes on until it is told to end.
fn bereaved(bytes: i64) -> ContainerConfig {
    let script = "tail /dev/zero; echo lost; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let mut config = shell("main", script);
    resources(&mut config).memory_limit_in_bytes = bytes;
    config
}

#[tokio::test]
async fn who_is_stopped_after_a_child_was_killed_is_not_called_oom() {
    let mut node = Node::start().await;
    let pod = node.pod("bereaved").await;
    let config = bereaved(24 << 20);
    for restart in [false, true] {
        let mut config = config.clone();
        let name = if restart { "second" } else { "first" };
        config.metadata.get_or_insert_default().name = name.into();
        config.log_path = format!("{name}/0.log");
        let id = pod.run(&config).await;
        eventually("its child was killed", || {
            let lost = pod.log(&config).iter().any(|line| line.content == b"lost");
            async move { lost.then_some(()) }
        })
        .await;
        if restart {
            node.kill();
            node.restart().await;
        }
        node.cri.stop(&id, 10).await.expect("StopContainer");
        let ended = exited(&node.cri, &id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
        assert_eq!(ended.message, "");
    }
    // One that ends by itself after that has not come through.
    let mut config = shell("third", "tail /dev/zero; exit 3");
    resources(&mut config).memory_limit_in_bytes = 24 << 20;
    let ended = pod.run_to_end(&config).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "OOMKilled"));
    assert!(ended.message.contains("25165824 bytes"), "{ended:?}");
}

#[tokio::test]
async fn a_pod_without_memory_left_is_told_from_a_container_at_its_limit() {
    let node = Node::start().await;
    let pod = node.pod("full").await;
    pod.idle("small").await;
    let message = quilt::proto::cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(quilt::proto::cri::LinuxContainerResources {
            memory_limit_in_bytes: 40 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut runtime =
        quilt::proto::cri::runtime_service_client::RuntimeServiceClient::new(node.cri.channel());
    let limited = runtime.update_pod_sandbox_resources(crate::support::client::request(message));
    limited.await.expect("UpdatePodSandboxResources");
    let config = crate::support::container("main", &["tail", "/dev/zero"]);
    let ended = pod.run_to_end(&config).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    let words = format!("{parent}, above it, is limited to 41943040 bytes");
    assert!(ended.message.contains(&words), "{ended:?}");
}

#[tokio::test]
async fn a_signal_that_no_client_sent_is_told() {
    let node = Node::start().await;
    let pod = node.pod("shot").await;
    let id = pod.idle("main").await;
    let pid = process::in_cgroup_of(&node.names, &id);
    process::signal(pid, nix::sys::signal::Signal::SIGKILL);
    let ended = exited(&node.cri, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
    assert!(ended.message.contains("SIGKILL; no client"), "{ended:?}");
    let story = node.operate(&["explain", &id]);
    let story = String::from_utf8_lossy(&story.stdout).into_owned();
    assert!(story.contains("no client ended it"), "{story}");
    assert!(story.contains("SIGKILL"), "{story}");
}
