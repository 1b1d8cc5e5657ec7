//! The node starts anew, and the state directory is still there: it may be on a disk. Nothing in it
//! that speaks of the old boot is believed.
//!
//! Simulated: daemon, shim and containers are killed, the pins unmounted, so that plain files stay
//! in their places, and the daemon is told of another boot.

use std::fs;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::support::cri::*;
use crate::support::pod::{exited, namespaces, shell};
use crate::support::{Node, cgroup, eventually, process};

/// Ends everything that a reboot ends beside the daemon, which is dead, and nothing else.
pub(crate) async fn reboot(node: &mut Node) {
    for shim in node.shims() {
        process::signal(shim, Signal::SIGKILL);
    }
    eventually("everything has ended", || async {
        let inside: Vec<i32> = in_cgroups(node);
        for pid in &inside {
            process::signal(*pid, Signal::SIGKILL);
        }
        (inside.is_empty() && node.shims().is_empty()).then_some(())
    })
    .await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let sandboxes = node.names.state().join("sandboxes");
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
        let point = std::path::Path::new(point);
        if point.starts_with(&sandboxes) && point != sandboxes {
            umount2(point, MntFlags::MNT_DETACH).expect("a pin");
        }
    }
    node.env = vec![("QUILT_BOOT_ID".into(), "another boot".into())];
    node.restart().await;
}

/// Every process in a cgroup of this node.
fn in_cgroups(node: &Node) -> Vec<i32> {
    let roots = cgroup::roots(&node.names);
    let dirs = roots.iter().flat_map(|root| cgroup::tree(root));
    let mut pids: Vec<i32> = dirs
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|l| l.parse().ok())
                .collect::<Vec<_>>()
        })
        .filter(|pid| process::is_running(*pid))
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// The cgroups of a container, in all hierarchies.
fn cgroups_of(node: &Node, id: &str) -> usize {
    let roots = cgroup::roots(&node.names);
    let dirs = roots.iter().flat_map(|root| cgroup::tree(root));
    dirs.filter(|dir| dir.ends_with(id)).count()
}

#[tokio::test]
async fn after_a_reboot_nothing_of_the_old_boot_is_believed() {
    let mut node = Node::start().await;
    let pod = node.pod("one").await;
    let mut config = node.pod_config("shared");
    namespaces(&mut config).pid = NamespaceMode::Pod as i32;
    let shared = node.pod_from(config).await;
    let running = pod.idle("running").await;
    let in_shared = shared.idle("running").await;
    let late = pod
        .run(&shell("late", "while :; do sleep 0.05; done"))
        .await;
    let ended = pod.run_to_end(&shell("ended", "exit 9")).await.id;
    let created = pod.create(&shell("created", "true")).await;
    let images = node.cri.list_images().await.expect("ListImages");

    // Its exit is in the shim's journal, and the daemon never hears of it in this boot.
    let last = process::in_cgroup_of(&node.names, &late);
    node.kill();
    process::signal(last, Signal::SIGKILL);
    let journal = node.names.state().join("shim/exits");
    eventually("the exit is in the journal", || async {
        fs::read_to_string(&journal)
            .ok()?
            .contains(&late)
            .then_some(())
    })
    .await;
    reboot(&mut node).await;

    for id in [&pod.id, &shared.id] {
        let status = node.cri.pod_status(id).await.expect("PodSandboxStatus");
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    }
    for id in [&running, &in_shared, &late] {
        let status = node.cri.status(id).await.expect("ContainerStatus");
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        assert!(
            status.message.contains("started anew"),
            "{}",
            status.message
        );
        eventually("its cgroup is removed", || async {
            (cgroups_of(&node, id) == 0).then_some(())
        })
        .await;
    }
    let status = node.cri.status(&ended).await.expect("ContainerStatus");
    assert_eq!(status.exit_code, 9, "what was known stays known");
    let refused = node.cri.start(&created).await.expect_err("its pod is down");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    assert_eq!(node.cri.list_images().await.expect("ListImages"), images);

    // kubelet makes the pod anew, with the next attempt.
    let mut config = pod.config.clone();
    config.metadata.as_mut().expect("metadata").attempt = 1;
    let again = node.pod_from(config).await;
    let id = again.idle("running").await;
    assert_eq!(node.cri.output(&id, "echo works").await, "works");
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    // Another restart in the same boot changes nothing.
    node.kill();
    node.restart().await;
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    node.cri.stop(&id, 5).await.expect("StopContainer");
    exited(&node.cri, &id).await;
}
