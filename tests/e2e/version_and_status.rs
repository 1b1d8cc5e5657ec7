//! What a client asks first: who are you, are you ready, how are you set up.

use crate::support::cri::*;
use crate::support::{Node, client::request, pod::labels};

#[tokio::test]
async fn version_has_every_field_that_kubelet_refuses_to_miss() {
    let node = Node::start().await;
    let version = node.cri.version().await.expect("Version");
    assert_eq!(version.version, "0.1.0");
    assert_eq!(version.runtime_api_version, "v1");
    assert_eq!(version.runtime_version, env!("CARGO_PKG_VERSION"));
    assert!(
        version.runtime_name.to_lowercase().contains("quilt"),
        "{version:?}"
    );
}

#[tokio::test]
async fn an_idle_daemon_is_ready_and_lists_nothing() {
    let node = Node::start().await;
    let status = node
        .cri
        .runtime()
        .status(request(StatusRequest { verbose: true }))
        .await;
    let status = status.expect("Status").into_inner();
    let conditions = status.status.expect("conditions").conditions;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let found = conditions.iter().find(|c| c.r#type == wanted);
        assert!(found.is_some_and(|c| c.status), "{wanted}: {conditions:?}");
    }
    assert!(
        status
            .runtime_handlers
            .iter()
            .any(|handler| handler.name.is_empty()),
        "the default handler is the empty name: {:?}",
        status.runtime_handlers
    );
    assert!(
        node.cri
            .list_pods(None)
            .await
            .expect("ListPodSandbox")
            .is_empty()
    );
    assert!(
        node.cri
            .list(None)
            .await
            .expect("ListContainers")
            .is_empty()
    );
    assert!(node.cri.list_images().await.expect("ListImages").is_empty());
}

#[tokio::test]
async fn runtime_config_says_who_names_the_cgroups() {
    let node = Node::start().await;
    let config = node
        .cri
        .runtime()
        .runtime_config(request(RuntimeConfigRequest {}))
        .await;
    let linux = config
        .expect("RuntimeConfig")
        .into_inner()
        .linux
        .expect("Linux");
    assert_eq!(linux.cgroup_driver(), CgroupDriver::Cgroupfs);
}

#[tokio::test]
async fn a_pod_cidr_pushed_by_kubelet_is_taken() {
    let node = Node::start().await;
    let network = NetworkConfig {
        pod_cidr: node.names.subnet(),
    };
    let message = UpdateRuntimeConfigRequest {
        runtime_config: Some(RuntimeConfig {
            network_config: Some(network),
        }),
    };
    node.cri
        .runtime()
        .update_runtime_config(request(message))
        .await
        .expect("UpdateRuntimeConfig");
    node.pod("after").await;
}

#[tokio::test]
async fn image_fs_info_names_the_file_system_that_holds_images() {
    let node = Node::start().await;
    let usage = |info: ImageFsInfoResponse| {
        let first = info
            .image_filesystems
            .into_iter()
            .next()
            .expect("an image file system");
        assert!(first.timestamp > 0);
        let at = first.fs_id.expect("a file system id").mountpoint;
        assert!(std::path::Path::new(&at).is_dir(), "{at} is no directory");
        first.used_bytes.expect("used bytes").value
    };
    let ask = async || {
        let info = node
            .cri
            .image()
            .image_fs_info(request(ImageFsInfoRequest {}))
            .await;
        usage(info.expect("ImageFsInfo").into_inner())
    };
    let before = ask().await;
    let image = crate::support::registry().image("busybox:latest");
    node.cri.pull(&image).await.expect("PullImage");
    let after = ask().await;
    assert!(
        after > before + (1 << 20),
        "a pulled image is counted: {before} then {after}"
    );
}

#[tokio::test]
async fn the_calls_kubelet_repeats_all_day_are_answered_for_what_they_ask() {
    let node = Node::start().await;
    let pod = node.pod("idle").await;
    let ready = |value| PodSandboxFilter {
        state: Some(PodSandboxStateValue { state: value }),
        ..Default::default()
    };
    let count = async |filter| {
        node.cri
            .list_pods(filter)
            .await
            .expect("ListPodSandbox")
            .len()
    };
    // READY is 0: the message is there and empty on the wire.
    assert_eq!(count(Some(ready(0))).await, 1);
    assert_eq!(count(Some(ready(1))).await, 0);
    assert_eq!(count(Some(PodSandboxFilter::default())).await, 1);
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    assert_eq!(
        count(Some(ready(0))).await,
        0,
        "an empty state means READY, not any"
    );
    assert_eq!(count(Some(ready(1))).await, 1);
    assert_eq!(count(None).await, 1);
    let selector = labels(&[("app", "idle")]);
    let by_label = PodSandboxFilter {
        label_selector: selector,
        ..Default::default()
    };
    assert_eq!(count(Some(by_label)).await, 1);
}
