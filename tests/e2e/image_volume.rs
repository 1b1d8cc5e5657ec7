//! Images as volumes: mounted read-only beside the rootfs, for as long as a container needs them,
//! whatever becomes of the image.

use std::fs;

use prost::Message;
use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use quilt::proto::cri::{
    ContainerConfig, ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ImageSpec,
    Mount,
};
use serde_json::json;
use tar::EntryType;
use tonic::{Code, Status};

use crate::support::client::request;
use crate::support::image::{Dialect, Image};
use crate::support::layer::{Contents, Packing};
use crate::support::log::contents;
use crate::support::pod::{exited, shell};
use crate::support::{Node, Pod, eventually, registry};

/// The word by which kubelet knows these errors.
const SENTINEL: &str = "ImageVolumeMountFailed: ";

fn mount(image: &str, sub_path: &str, container_path: &str) -> Mount {
    Mount {
        container_path: container_path.into(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.into(),
            user_specified_image: "as-written:1".into(),
            ..Default::default()
        }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

/// A container with mounts, as an interface of Kubernetes 1.33 or newer has it.
fn with_mounts(name: &str, script: &str, mounts: Vec<Mount>) -> ContainerConfig {
    let config = shell(name, script).encode_to_vec();
    let mut config = ContainerConfig::decode(config.as_slice()).expect("the same message");
    config.mounts = mounts;
    config
}

async fn create(node: &Node, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
    let message = CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: None,
    };
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let created = runtime.create_container(request(message)).await?;
    Ok(created.into_inner().container_id)
}

async fn status(node: &Node, id: &str) -> ContainerStatus {
    let message = ContainerStatusRequest {
        container_id: id.into(),
        verbose: false,
    };
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let status = runtime.container_status(request(message)).await;
    let status = status.expect("ContainerStatus").into_inner();
    status.status.expect("a status")
}

/// An image without a shell, of two layers, with links that would lead out of it.
fn push_data(name: &str) -> String {
    let below = Contents::new()
        .dir("data/", 0o755)
        .file("data/kept", 0o644, name.as_bytes())
        .file("data/hidden", 0o644, b"never seen")
        .pack(Packing::Gzip);
    let above = Contents::new()
        .file("data/.wh.hidden", 0o644, b"")
        .link(EntryType::Symlink, "absolute", "/data")
        .link(EntryType::Symlink, "climbing", "../../../../data")
        .pack(Packing::Zstd);
    let image = Image::new(Dialect::Oci, &[below, above], &json!({}));
    registry().upload(name, "latest", &image);
    registry().image(&format!("{name}:latest"))
}

#[tokio::test]
async fn images_are_mounted_merged_read_only_and_as_often_as_asked() {
    mounts_them("").await;
}

#[tokio::test]
async fn where_there_are_no_overlays_copies_are_mounted() {
    let node = mounts_them("[snapshot]\ndriver = \"native\"\n").await;
    let snapshots = node.names.root().join("snapshots");
    let made = fs::read_dir(&snapshots).expect("snapshots").flatten();
    let files = made.flat_map(|home| fs::read_dir(home.path()).into_iter().flatten().flatten());
    let copies = files.filter(|file| file.file_name().to_string_lossy().starts_with("image-"));
    assert_eq!(copies.count(), 2, "one of each image");
    for container in node.cri.list(None).await.expect("ListContainers") {
        node.cri
            .remove(&container.id)
            .await
            .expect("RemoveContainer");
    }
    eventually("the copies have gone", || async {
        let left = fs::read_dir(&snapshots).expect("snapshots").count();
        (left == 0).then_some(())
    })
    .await;
}

async fn mounts_them(driver: &str) -> Node {
    let mut node = Node::prepare(driver);
    node.restart().await;
    let name = push_data(&format!("volume-data{}", driver.len()));
    let data = node.cri.pull(&name).await.expect("PullImage");
    let pod = node.pod("volumes").await;
    let tools = registry().image("busybox:latest");
    let script = "echo $(ls /part) $(cat /part/kept /linked/kept /climbing/kept /one/file)
        /tools/bin/sh -c 'echo ran'
        echo x 2>/dev/null >/data/new || echo refused
        echo x >/data/data/new && cat /data/data/new
        grep -c ' /[a-z]*\\(/file\\)\\? [a-z0-9]* ro,nodev' /proc/mounts";
    let shared = node.path("shared");
    fs::create_dir(&shared).expect("a directory of the test");
    let below = Mount {
        container_path: "/data/data".into(),
        host_path: shared.display().to_string(),
        ..Default::default()
    };
    // What is below another mount comes after it, whatever the order.
    let mounts = vec![
        below,
        mount(&data, "", "/data"),
        mount(&name, "data", "/linked"),
        mount(&data, "climbing", "/climbing"),
        mount(&tools, "", "/tools"),
        mount(&data, "absolute", "/part"),
        mount(&data, "data/kept", "/one/file"),
    ];
    let config = with_mounts("main", script, mounts);
    let id = create(&node, &pod, config).await.expect("CreateContainer");
    node.cri.start(&id).await.expect("StartContainer");
    exited(&node.cri, &id).await;
    let lines = contents(&pod.log(&shell("main", "")), "stdout");
    let often = format!("volume-data{}", driver.len()).repeat(4);
    assert_eq!(
        lines,
        [&format!("kept {often}"), "ran", "refused", "x", "6"]
    );

    let status = status(&node, &id).await;
    let shown: Vec<_> = status
        .mounts
        .iter()
        .filter(|mount| mount.image.is_some())
        .collect();
    assert_eq!(shown.len(), 6);
    let linked = shown.iter().find(|mount| mount.container_path == "/linked");
    let linked = linked.expect("the mount is shown");
    assert!(linked.readonly && linked.host_path.is_empty());
    assert_eq!(linked.image_sub_path, "data");
    let image = linked.image.as_ref().expect("the image is shown");
    assert_eq!((&image.image, &image.image_ref), (&name, &data));
    assert_eq!(image.user_specified_image, "as-written:1");
    node
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_before_there_is_a_container() {
    let node = Node::start().await;
    let name = push_data("volume-refused");
    node.cri.pull(&name).await.expect("PullImage");
    let pod = node.pod("refused").await;
    let missing = registry().image("volume-not-pulled:latest");
    let writable = Mount {
        readonly: false,
        ..mount(&name, "", "/v")
    };
    let both = Mount {
        host_path: "/tmp".into(),
        ..mount(&name, "", "/v")
    };
    let cases = [
        (writable, Code::InvalidArgument, "config.mounts[0].readonly"),
        (both, Code::InvalidArgument, "config.mounts[0].host_path"),
        (mount("", "", "/v"), Code::InvalidArgument, "is missing"),
        (
            mount(&name, "/data", "/v"),
            Code::InvalidArgument,
            "image_sub_path",
        ),
        (
            mount(&name, "a/../../b", "/v"),
            Code::InvalidArgument,
            "\"..\"",
        ),
        (mount(&missing, "", "/v"), Code::NotFound, &missing),
        (mount(&name, "nowhere", "/v"), Code::Unknown, "nowhere"),
        (
            mount(&name, "data/kept/x", "/v"),
            Code::Unknown,
            "not a directory",
        ),
        (
            mount(&name, "data/hidden", "/v"),
            Code::Unknown,
            "no such file",
        ),
    ];
    for (number, (mount, code, named)) in cases.into_iter().enumerate() {
        let config = with_mounts(&format!("c{number}"), "true", vec![mount]);
        let refused = create(&node, &pod, config).await;
        let error = refused.expect_err("it cannot be mounted");
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().starts_with(SENTINEL), "{error}");
        assert!(error.message().contains(named), "{named}: {error}");
    }
    let all = node.cri.list(None).await;
    assert!(all.expect("ListContainers").is_empty());
}

/// Layers that have a row, whatever their state.
fn layers(node: &Node) -> usize {
    let sql = "SELECT chain_id FROM layers";
    let rows = node.ask(&["db", "query", sql]);
    rows.as_array().expect("rows").len()
}

#[tokio::test]
async fn a_mounted_image_outlives_its_removal_the_daemon_and_the_database() {
    let mut node = Node::start().await;
    let name = push_data("volume-kept");
    let pod = node.pod("kept").await;
    let before = layers(&node);
    let data = node.cri.pull(&name).await.expect("PullImage");
    let script = "echo $(cat /v/kept); while :; do sleep 0.05; done";
    let config = with_mounts("main", script, vec![mount(&data, "data", "/v")]);
    let id = create(&node, &pod, config).await.expect("CreateContainer");
    node.cri.remove_image(&data).await.expect("RemoveImage");
    assert_eq!(
        node.cri.image_status(&name).await.expect("ImageStatus"),
        None
    );

    // A removal that has not reached the disk is lost with the database.
    let record = data.trim_start_matches("sha256:");
    let record = node.names.root().join(format!("images/{record}.json"));
    eventually("the image has lost its record", || async {
        (!record.exists()).then_some(())
    })
    .await;
    node.kill();
    for file in ["quilt.db", "quilt.db-wal", "quilt.db-shm"] {
        fs::remove_file(node.names.root().join(file)).expect("a file of the database");
    }
    node.restart().await;
    assert_eq!(
        layers(&node),
        before + 2,
        "the record says what it stands on"
    );
    node.cri.start(&id).await.expect("StartContainer");
    eventually("the volume has been read", || async {
        let lines = contents(&pod.log(&shell("main", "")), "stdout");
        (lines == ["volume-kept"]).then_some(())
    })
    .await;
    assert_eq!(node.cri.output(&id, "cat /v/kept").await, "volume-kept");

    node.cri.remove(&id).await.expect("RemoveContainer");
    eventually("nothing holds the layers any more", || async {
        (layers(&node) == before).then_some(())
    })
    .await;
    let found = fs::read_dir(node.names.root().join("layers")).expect("layers");
    assert_eq!(found.count(), before);
}
