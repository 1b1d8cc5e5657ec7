//! Writable layers: as overlays and as copies, what they take, and what is chosen at start.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::client::request;
use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::shell;
use crate::support::{Node, eventually};

const NATIVE: &str = "[snapshot]\ndriver = \"native\"\n";
const OVERLAY: &str = "[snapshot]\ndriver = \"overlay\"\n";

fn directories(node: &Node, id: &str) -> Vec<String> {
    let home = node.names.root().join("snapshots").join(id);
    let entries = fs::read_dir(home).expect("a snapshot");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    names.sort();
    names
}

async fn layer(node: &Node, id: &str) -> Option<FilesystemUsage> {
    let stats = node.cri.stats(id).await.expect("ContainerStats");
    stats.writable_layer
}

#[tokio::test]
async fn copies_do_for_containers_what_overlays_do() {
    let mut node = Node::prepare(NATIVE);
    node.restart().await;
    let pod = node.pod("native").await;
    let write = "echo mine >/own; rm -r /etc; mkdir /etc; ls /etc; sleep 600";
    let first = shell("first", write);
    let writer = pod.run(&first).await;
    let look = shell("look", "cat /own 2>/dev/null; ls -d /etc/passwd");
    let ended = pod.run_to_end(&look).await;
    assert_eq!(ended.exit_code, 0);
    assert_eq!(contents(&pod.log(&look), "stdout"), ["/etc/passwd"]);
    assert_eq!(node.cri.output(&writer, "cat /own").await, "mine");
    assert_eq!(directories(&node, &writer), ["rootfs"]);

    // What was chosen is held to, and a container keeps what it has.
    node.kill();
    node.configure("");
    node.restart().await;
    let again = pod.create(&shell("again", "true")).await;
    assert_eq!(directories(&node, &again), ["rootfs"]);
    node.kill();
    node.configure(OVERLAY);
    node.restart().await;
    let other = pod.run_to_end(&shell("other", "cat /etc/passwd")).await;
    assert_eq!(other.exit_code, 0);
    assert_eq!(directories(&node, &other.id), ["upper", "work"]);
    node.cri.start(&again).await.expect("StartContainer");
    assert_eq!(node.cri.output(&writer, "cat /own").await, "mine");
    node.cri.remove(&writer).await.expect("RemoveContainer");
}

#[tokio::test]
async fn a_copy_that_was_cut_off_is_made_anew() {
    let mut node = Node::prepare(NATIVE);
    node.env = vec![("QUILT_FAULTS".into(), "snapshot.copied=abort*1".into())];
    node.restart().await;
    let pod = node.pod("cut").await;
    let config = shell("main", "cat /etc/passwd >/dev/null");
    let lost = node.cri.create(&pod.id, &config, &pod.config).await;
    lost.expect_err("the daemon has died");
    eventually("the daemon has ended", || {
        let ended = node.ended();
        async move { ended }
    })
    .await;
    node.env = vec![];
    node.restart().await;
    let ended = pod.run_to_end(&config).await;
    assert_eq!(ended.exit_code, 0);
    assert_eq!(directories(&node, &ended.id), ["rootfs"]);
    let staging = fs::read_dir(node.names.root().join("staging")).expect("a directory");
    assert_eq!(staging.count(), 0, "what was cut off is gone");
}

#[tokio::test]
async fn what_a_container_writes_is_counted() {
    let mut node = Node::start().await;
    let pod = node.pod("usage").await;
    let id = pod.idle("main").await;
    let script = "head -c 3000000 /dev/urandom >/big; mkdir /d; touch /d/1 /d/2; echo done";
    assert_eq!(node.cri.output(&id, script).await, "done");
    // The daemon measures right when it starts, and then every ten seconds.
    node.kill();
    node.restart().await;
    let usage = eventually("the layer is measured", || async {
        layer(&node, &id).await
    })
    .await;
    let bytes = usage.used_bytes.expect("bytes").value;
    let inodes = usage.inodes_used.expect("inodes").value;
    assert!((3_000_000..3_200_000).contains(&bytes), "{bytes} bytes");
    assert!((5..20).contains(&inodes), "{inodes} inodes");
    let mountpoint = usage.fs_id.expect("a file system").mountpoint;
    assert_eq!(Path::new(&mountpoint), node.names.root().join("snapshots"));
    assert!(usage.timestamp > 0);
    // One file system holds both, and the one container is all that has written.
    let ask = request(ImageFsInfoRequest {});
    let info = node.cri.image().image_fs_info(ask).await;
    let info = info.expect("ImageFsInfo").into_inner();
    let [images] = &info.image_filesystems[..] else {
        panic!("{info:?}");
    };
    let [written] = &info.container_filesystems[..] else {
        panic!("{info:?}");
    };
    assert_eq!(written.fs_id, images.fs_id);
    assert!(written.used_bytes.as_ref().expect("bytes").value >= bytes);
    assert!(written.timestamp >= usage.timestamp);
}

/// An overlay that is unmounted when it is dropped.
struct Overlay(PathBuf);

impl Overlay {
    fn on(node: &Node) -> Self {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| node.path(name));
        let point = node.names.root();
        for path in [&lower, &upper, &work, &point] {
            fs::create_dir_all(path).expect("a directory of the test");
        }
        let [lower, upper, work] = [lower, upper, work].map(|path| path.display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let overlay = Some("overlay");
        mount(
            overlay,
            &point,
            overlay,
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("an overlay of the test");
        Self(point)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("a mount of the test");
    }
}

#[tokio::test]
async fn a_root_that_takes_no_overlay_gets_copies() {
    let mut node = Node::prepare(OVERLAY);
    let overlay = Overlay::on(&node);
    let said = node.refused(&mut node.serve());
    assert!(said.contains("does not take one"), "{said}");
    node.configure("");
    node.restart().await;
    let pod = node.pod("copied").await;
    let ended = pod
        .run_to_end(&shell("main", "cat /etc/passwd >/dev/null"))
        .await;
    assert_eq!(ended.exit_code, 0);
    assert_eq!(directories(&node, &ended.id), ["rootfs"]);
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    assert_eq!(node.settle(), Vec::<String>::new());
    assert!(node.terminate().success());
    drop(overlay);
}
