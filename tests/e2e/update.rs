//! UpdateContainerResources: what the kernel's own files say afterwards, and that a change comes
//! whole or not at all.

use tonic::Code;

use crate::support::cri::*;
use crate::support::pod::{exited, resources, shell};
use crate::support::{Node, Pod, cgroup, eventually};

const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A container with limits of its own, not started yet.
async fn limited(pod: &Pod) -> String {
    let mut config = shell("main", IDLE);
    *resources(&mut config) = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    pod.create(&config).await
}

/// Memory, CPU quota and CPU shares of a container, as the status shows them.
async fn shown(node: &Node, id: &str) -> (i64, i64, i64) {
    let status = node.cri.status(id).await.expect("ContainerStatus");
    let shown = status.resources.and_then(|all| all.linux).expect("limits");
    let memory = shown.memory_limit_in_bytes;
    (memory, shown.cpu_quota, shown.cpu_shares)
}

/// The same from the kernel, the weight of v2 as it is.
fn kept(node: &Node, id: &str) -> (String, String, String) {
    let read = |controller, v1, v2| cgroup::read(&node.names, id, controller, v1, v2);
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    let quota = quota.split(' ').next().unwrap_or_default().to_owned();
    let shares = read("cpu", "cpu.shares", "cpu.weight");
    (
        read("memory", "memory.limit_in_bytes", "memory.max"),
        quota,
        shares,
    )
}

fn change(memory: i64, quota: i64, shares: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_quota: quota,
        cpu_shares: shares,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_running_container_gets_other_limits_and_keeps_them() {
    let mut node = Node::start().await;
    let pod = node.pod("resize").await;
    let id = limited(&pod).await;
    node.cri.start(&id).await.expect("StartContainer");
    let weight = kept(&node, &id).2;
    node.cri
        .update(&id, change(96 << 20, 50_000, 0))
        .await
        .expect("UpdateContainerResources");
    // What was not named is as before.
    assert_eq!(shown(&node, &id).await, (96 << 20, 50_000, 512));
    let now = ("100663296".into(), "50000".into(), weight.clone());
    assert_eq!(kept(&node, &id), now);
    node.kill();
    node.restart().await;
    assert_eq!(shown(&node, &id).await, (96 << 20, 50_000, 512));
    node.cri
        .update(&id, change(0, -1, 0))
        .await
        .expect("UpdateContainerResources");
    let quota = kept(&node, &id).1;
    assert!(quota == "-1" || quota == "max", "{quota}");
    let story = node.operate(&["events", "--object", &id]);
    let story = String::from_utf8_lossy(&story.stdout).into_owned();
    assert!(story.contains("memory 100663296 bytes"), "{story}");
}

#[tokio::test]
async fn what_the_kernel_refuses_changes_nothing() {
    let node = Node::start().await;
    let pod = node.pod("refused").await;
    let id = limited(&pod).await;
    node.cri.start(&id).await.expect("StartContainer");
    let before = kept(&node, &id);
    // There are not that many CPUs, which only the last of these files tells.
    let mut impossible = change(0, 30_000, 1024);
    impossible.cpuset_cpus = "4000".into();
    let error = node.cri.update(&id, impossible).await;
    let error = error.expect_err("no such CPU");
    assert!(error.message().contains("cpuset.cpus"), "{error}");
    assert_eq!(kept(&node, &id), before);
    assert_eq!(shown(&node, &id).await, (64 << 20, 20_000, 512));
    // The next one does not bring the refused one along.
    node.cri
        .update(&id, change(80 << 20, 0, 0))
        .await
        .expect("UpdateContainerResources");
    assert_eq!(shown(&node, &id).await, (80 << 20, 20_000, 512));
    assert_eq!(kept(&node, &id).1, before.1);
}

#[tokio::test]
async fn a_limit_below_the_memory_in_use_is_refused_and_kills_nobody() {
    let node = Node::start().await;
    let pod = node.pod("full").await;
    // The shell itself holds what it has read.
    let script = format!("x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo full; {IDLE}");
    let mut config = shell("main", &script);
    resources(&mut config).memory_limit_in_bytes = 200 << 20;
    let id = pod.run(&config).await;
    eventually("it has filled its memory", || {
        let full = pod.log(&config).iter().any(|line| line.content == b"full");
        async move { full.then_some(()) }
    })
    .await;
    let error = node.cri.update(&id, change(8 << 20, 0, 0)).await;
    let error = error.expect_err("it uses more");
    assert!(error.message().contains("memory"), "{error}");
    assert_eq!(kept(&node, &id).0, (200_i64 << 20).to_string());
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
}

#[tokio::test]
async fn a_container_that_does_not_run_takes_them_for_later_or_for_show() {
    let node = Node::start().await;
    let pod = node.pod("early").await;
    let id = limited(&pod).await;
    node.cri
        .update(&id, change(72 << 20, 0, 256))
        .await
        .expect("UpdateContainerResources");
    assert_eq!(shown(&node, &id).await, (72 << 20, 20_000, 256));
    node.cri.start(&id).await.expect("StartContainer");
    assert_eq!(kept(&node, &id).0, (72_i64 << 20).to_string());
    node.cri.stop(&id, 10).await.expect("StopContainer");
    exited(&node.cri, &id).await;
    node.cri
        .update(&id, change(88 << 20, 0, 0))
        .await
        .expect("UpdateContainerResources");
    assert_eq!(shown(&node, &id).await, (88 << 20, 20_000, 256));
    node.cri.remove(&id).await.expect("RemoveContainer");
    let error = node.cri.update(&id, change(1 << 20, 0, 0)).await;
    assert_eq!(error.expect_err("it is gone").code(), Code::NotFound);
}

#[tokio::test]
async fn updates_side_by_side_all_come_true() {
    let node = Node::start().await;
    let pod = node.pod("many").await;
    let id = limited(&pod).await;
    node.cri.start(&id).await.expect("StartContainer");
    let (memory, quota, shares) = tokio::join!(
        node.cri.update(&id, change(100 << 20, 0, 0)),
        node.cri.update(&id, change(0, 40_000, 0)),
        node.cri.update(&id, change(0, 0, 300)),
    );
    for answer in [memory, quota, shares] {
        answer.expect("UpdateContainerResources");
    }
    assert_eq!(shown(&node, &id).await, (100 << 20, 40_000, 300));
    assert_eq!(kept(&node, &id).1, "40000");
}

#[tokio::test]
async fn a_bad_request_is_refused_by_its_field() {
    let node = Node::start().await;
    let pod = node.pod("bad").await;
    let id = limited(&pod).await;
    let refused = async |limits: LinuxContainerResources| {
        let error = node.cri.update(&id, limits).await;
        let error = error.expect_err("it cannot be");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        error.message().to_owned()
    };
    let negative = refused(change(-5, 0, 0)).await;
    assert!(
        negative.contains("linux.memory_limit_in_bytes"),
        "{negative}"
    );
    let list = LinuxContainerResources {
        cpuset_cpus: "0;reboot".into(),
        ..Default::default()
    };
    let list = refused(list).await;
    assert!(list.contains("linux.cpuset_cpus"), "{list}");
    // Nothing to change is no change.
    node.cri
        .update(&id, change(0, 0, 0))
        .await
        .expect("UpdateContainerResources");
}

#[tokio::test]
async fn the_oom_score_of_what_runs_changes_as_well() {
    let node = Node::start().await;
    let pod = node.pod("score").await;
    let mut config = shell(
        "main",
        &format!("echo 500 > /proc/self/oom_score_adj; {IDLE}"),
    );
    resources(&mut config).oom_score_adj = 200;
    let own = pod.run(&config).await;
    let mut config = shell("plain", IDLE);
    resources(&mut config).oom_score_adj = 200;
    let plain = pod.run(&config).await;
    let score = async |id: &str| node.cri.output(id, "cat /proc/1/oom_score_adj").await;
    eventually("it has given itself another score", || async {
        (score(&own).await == "500").then_some(())
    })
    .await;
    for id in [&own, &plain] {
        let limits = LinuxContainerResources {
            oom_score_adj: 300,
            ..Default::default()
        };
        let updated = node.cri.update(id, limits).await;
        updated.expect("UpdateContainerResources");
    }
    assert_eq!(score(&plain).await, "300");
    assert_eq!(score(&own).await, "500");
}

/// What was set already is put back when what comes after it fails for good.
#[tokio::test]
async fn a_change_that_cannot_be_recorded_changes_nothing() {
    let mut node = Node::prepare("");
    let faults = "container.limits_set=fail*1".into();
    node.env.push(("QUILT_FAULTS".into(), faults));
    node.restart().await;
    let pod = node.pod("unrecorded").await;
    let mut config = shell("main", IDLE);
    resources(&mut config).oom_score_adj = 200;
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let id = pod.run(&config).await;
    let limits = LinuxContainerResources {
        oom_score_adj: 300,
        memory_limit_in_bytes: 96 << 20,
        ..Default::default()
    };
    let error = node.cri.update(&id, limits).await;
    let error = error.expect_err("it is not recorded");
    assert!(error.message().contains("as before"), "{error}");
    assert_eq!(kept(&node, &id).0, (64_i64 << 20).to_string());
    let score = node.cri.output(&id, "cat /proc/1/oom_score_adj").await;
    assert_eq!(score, "200");
}
