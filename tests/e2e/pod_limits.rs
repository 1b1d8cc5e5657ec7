//! UpdatePodSandboxResources: what the kernel's own files say of the pod's cgroup afterwards, and
//! that a change comes whole or not at all.

use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use quilt::proto::cri::{LinuxContainerResources as Limits, UpdatePodSandboxResourcesRequest};
use tonic::{Code, Status};

use crate::support::client::request;
use crate::support::cri::NamespaceMode;
use crate::support::pod::{namespaces, shell};
use crate::support::{Node, Pod, cgroup, eventually};

/// Asks for limits of a pod, with an overhead.
async fn limit(node: &Node, id: &str, limits: Limits, overhead: Limits) -> Result<(), Status> {
    let message = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        overhead: Some(overhead),
        resources: Some(limits),
    };
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let updated = runtime.update_pod_sandbox_resources(request(message));
    updated.await.map(drop)
}

/// Memory, CPU quota and CPU shares of the pod's cgroup, from the kernel.
fn kept(node: &Node, pod: &Pod) -> (String, String, String) {
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    let name = parent.rsplit('/').next().expect("a name");
    let read = |controller, v1, v2| cgroup::read(&node.names, name, controller, v1, v2);
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    (
        read("memory", "memory.limit_in_bytes", "memory.max"),
        quota.split(' ').next().unwrap_or_default().to_owned(),
        read("cpu", "cpu.shares", "cpu.weight"),
    )
}

fn memory(bytes: i64) -> Limits {
    Limits {
        memory_limit_in_bytes: bytes,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_pod_is_limited_to_its_containers_and_its_overhead() {
    let mut node = Node::start().await;
    let pod = node.pod("resize").await;
    pod.idle("main").await;
    // As kubelet has sent it, but with an overhead.
    let limits = Limits {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 192 << 20,
        ..Default::default()
    };
    let overhead = Limits {
        cpu_quota: 5_000,
        memory_limit_in_bytes: 8 << 20,
        ..Default::default()
    };
    limit(&node, &pod.id, limits, overhead)
        .await
        .expect("UpdatePodSandboxResources");
    let (bytes, quota, shares) = kept(&node, &pod);
    assert_eq!(
        (bytes, quota),
        ((200_i64 << 20).to_string(), "25000".into())
    );
    assert!(shares == "1024" || shares == "100", "{shares}");
    node.kill();
    node.restart().await;
    // What is not named stays, over a restart too.
    limit(&node, &pod.id, memory(100 << 20), Limits::default())
        .await
        .expect("UpdatePodSandboxResources");
    let now = kept(&node, &pod);
    assert_eq!(now, ((100_i64 << 20).to_string(), "25000".into(), shares));
    let story = node.operate(&["explain", &pod.id]);
    let story = String::from_utf8_lossy(&story.stdout).into_owned();
    assert!(story.contains("CPU quota 25000"), "{story}");
    // Nothing to change is no change.
    limit(&node, &pod.id, Limits::default(), Limits::default())
        .await
        .expect("UpdatePodSandboxResources");
}

#[tokio::test]
async fn what_the_kernel_refuses_of_a_pod_changes_nothing() {
    let node = Node::start().await;
    let pod = node.pod("refused").await;
    // The shell itself holds what it has read.
    let script = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo full; \
                  trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let config = shell("main", script);
    pod.run(&config).await;
    eventually("it has filled its memory", || {
        let full = pod.log(&config).iter().any(|line| line.content == b"full");
        async move { full.then_some(()) }
    })
    .await;
    limit(&node, &pod.id, memory(300 << 20), Limits::default())
        .await
        .expect("UpdatePodSandboxResources");
    let before = kept(&node, &pod);
    let below_use = Limits {
        cpu_shares: 700,
        ..memory(8 << 20)
    };
    let error = limit(&node, &pod.id, below_use, Limits::default()).await;
    let error = error.expect_err("its containers use more");
    assert!(error.message().contains("memory"), "{error}");
    assert_eq!(kept(&node, &pod), before);
    // The next one does not bring the refused one along.
    limit(&node, &pod.id, memory(280 << 20), Limits::default())
        .await
        .expect("UpdatePodSandboxResources");
    let (bytes, _, shares) = kept(&node, &pod);
    assert_eq!((bytes, &shares), ((280_i64 << 20).to_string(), &before.2));
}

#[tokio::test]
async fn only_a_pod_that_is_up_and_has_a_cgroup_of_its_own_is_limited() {
    let node = Node::start().await;
    let pod = node.pod("first").await;
    let no_pod = "0".repeat(64);
    let error = limit(&node, &no_pod, memory(1 << 30), Limits::default()).await;
    assert_eq!(error.expect_err("no pod").code(), Code::NotFound);
    let error = limit(&node, &pod.id, memory(-5), Limits::default()).await;
    let error = error.expect_err("less than nothing");
    assert_eq!(error.code(), Code::InvalidArgument);
    let field = "resources.memory_limit_in_bytes";
    assert!(error.message().contains(field), "{error}");

    let mut same = node.pod_config("second");
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    same.linux.get_or_insert_default().cgroup_parent = parent.clone();
    let second = node.pod_from(same).await;
    let error = limit(&node, &pod.id, memory(1 << 30), Limits::default()).await;
    let error = error.expect_err("the other one would be limited too");
    assert!(error.message().contains("other pods"), "{error}");
    node.cri.stop_pod(&second.id).await.expect("StopPodSandbox");
    limit(&node, &pod.id, memory(1 << 30), Limits::default())
        .await
        .expect("UpdatePodSandboxResources");

    // Without a parent there is no cgroup that is the pod's alone: its limits are kept, no more.
    let mut bare = node.pod_config("bare");
    namespaces(&mut bare).network = NamespaceMode::Node as i32;
    bare.linux.get_or_insert_default().cgroup_parent.clear();
    let bare = node.pod_from(bare).await;
    bare.idle("main").await;
    limit(&node, &bare.id, memory(1 << 20), Limits::default())
        .await
        .expect("UpdatePodSandboxResources");
    node.cri.stop_pod(&bare.id).await.expect("StopPodSandbox");
    let error = limit(&node, &bare.id, memory(2 << 20), Limits::default()).await;
    let error = error.expect_err("it is down");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}
