//! The image store: damage is found, named and mended layer by layer; what is kept is what somebody
//! needs; and the figures are those of the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use quilt::proto::cri as newest;
use quilt::proto::cri::image_service_client::ImageServiceClient;
use serde_json::Value;

use crate::image::from_image;
use crate::import::oci_layout;
use crate::support::client::request;
use crate::support::image::{Dialect, Image};
use crate::support::layer::{Contents, Packing, digest, noise};
use crate::support::log::contents;
use crate::support::operator::{column, complained, said};
use crate::support::pod::exited;
use crate::support::prometheus::Page;
use crate::support::{Node, cri::*, eventually, in_time, registry};

/// A check of images: its exit status and what it told of each part.
pub(crate) struct Told {
    pub(crate) status: i32,
    parts: Value,
}

impl Told {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let parts = serde_json::from_str(&text);
        Self {
            status: output.status.code().expect("an exit status"),
            parts: parts.unwrap_or_else(|error| panic!("{error}: {text}{errors}")),
        }
    }

    /// How many parts were found to be what, and what was told of those that are not whole.
    pub(crate) fn verdicts(&self) -> (BTreeMap<String, usize>, String) {
        let mut counts = BTreeMap::new();
        for verdict in column(&self.parts, "verdict") {
            *counts.entry(verdict).or_default() += 1;
        }
        let all = self.parts.as_array().expect("a list");
        let told = all.iter().filter(|part| part["verdict"] != "whole");
        (counts, told.map(Value::to_string).collect())
    }
}

impl Node {
    pub(crate) fn check_images(&self, options: &[&str]) -> Told {
        let arguments = [&["image", "check", "-o", "json"], options].concat();
        Told::of(&self.operate(&arguments))
    }

    fn layers(&self) -> PathBuf {
        self.names.root().join("layers")
    }

    /// The layer with a file in it.
    pub(crate) fn layer_with(&self, file: &str) -> PathBuf {
        let layers = fs::read_dir(self.layers()).expect("layers");
        let mut layers = layers.flatten().map(|entry| entry.path());
        let found = layers.find(|layer| layer.join("fs").join(file).exists());
        found.unwrap_or_else(|| panic!("no layer has {file}"))
    }
}

/// Changes a file and nothing else about it.
pub(crate) fn rot(path: &Path, content: &[u8]) {
    let before = fs::metadata(path).expect("a file of a layer");
    assert_eq!(before.len(), content.len() as u64);
    fs::write(path, content).expect("root may write");
    let file = File::options().write(true).open(path).expect("a file");
    let modified = before.modified().expect("a time");
    file.set_modified(modified).expect("root may set times");
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("it is there").ino()
}

#[tokio::test]
async fn damage_is_found_named_and_mended_in_its_layer_alone() {
    let node = Node::start().await;
    let pod = node.pod("damage").await;
    let running = pod.idle("running").await;
    let name = registry().image("schema2:latest");
    node.cri.pull(&name).await.expect("PullImage");
    let whole = node.check_images(&[]);
    let (verdicts, told) = whole.verdicts();
    // Two images on one layer, and one more: the shared one is looked at once.
    assert_eq!((whole.status, &verdicts["whole"]), (0, &4), "{told}");

    let (base, top) = (node.layer_with("etc/passwd"), node.layer_with("etc/mark"));
    let before = (inode(&base), inode(&top));
    let passwd = base.join("fs/etc/passwd");
    let right = fs::read(&passwd).expect("a file of the layer");
    let mut wrong = right.clone();
    wrong[0] = b'R';
    rot(&passwd, &wrong);
    let quick = node.check_images(&["--quick", &name]);
    assert_eq!(quick.status, 0, "no file was read: {:?}", quick.verdicts());
    let found = node.check_images(&[&name]);
    let (verdicts, told) = found.verdicts();
    assert_eq!((found.status, verdicts["damaged"]), (1, 1), "{told}");
    let damaged = |node: &Node| {
        let page = Page::read(&said(&node.operate(&["metrics"])));
        page.get("quilt_damaged", &[("kind", "layer")])
    };
    assert_eq!(damaged(&node), Some(1.0));
    assert!(told.contains("/etc/passwd: its content changed"), "{told}");
    let quick = node.check_images(&["--quick", &name]);
    assert_eq!(quick.status, 1, "what is known is not forgotten");

    let mended = node.check_images(&["--repair", &name]);
    let (verdicts, told) = mended.verdicts();
    assert_eq!((mended.status, verdicts["repaired"]), (0, 1), "{told}");
    assert_eq!(fs::read(&passwd).expect("a file of the layer"), right);
    assert_ne!(inode(&base), before.0, "it was exchanged");
    assert_eq!(inode(&top), before.1, "the other one stays");
    // Who runs goes on with what it was started on; who comes has what is whole.
    let seen = node.cri.output(&running, "/bin/cat /etc/passwd").await;
    assert_eq!(seen.as_bytes(), wrong.trim_ascii_end());
    let config = from_image("after", &name, "cat /etc/passwd");
    let after = pod.run(&config).await;
    assert_eq!(exited(&node.cri, &after).await.exit_code, 0);
    let seen = contents(&pod.log(&config), "stdout").join("\n");
    assert_eq!(seen.as_bytes(), right.trim_ascii_end());
    let retired = node.names.root().join("retired");
    let count = || fs::read_dir(&retired).expect("a directory").count();
    assert_eq!(count(), 1, "a container runs on it");
    node.cri.stop(&running, 0).await.expect("StopContainer");
    eventually("the broken layer is gone with its container", || async {
        (count() == 0).then_some(())
    })
    .await;
    let (verdicts, told) = node.check_images(&[]).verdicts();
    assert_eq!(
        verdicts,
        BTreeMap::from([("whole".to_owned(), 4)]),
        "{told}"
    );
}

#[tokio::test]
async fn what_cannot_be_fetched_is_told_and_the_next_import_mends_it() {
    let node = Node::start().await;
    let layout = node.path("layout");
    oci_layout(&layout, "example.invalid/offline:1");
    let file = layout.display().to_string();
    said(&node.operate(&["image", "import", &file]));
    let mark = node.layer_with("etc/mark").join("fs/etc/mark");
    fs::remove_file(&mark).expect("root may remove");
    let told = node.check_images(&["--repair"]);
    assert_eq!(told.status, 1);
    let (_, text) = told.verdicts();
    assert!(text.contains("/etc/mark is gone"), "{text}");
    assert!(text.contains("example.invalid"), "why it is left: {text}");
    let rows = node.ask(&[
        "db",
        "query",
        "SELECT damage FROM v_layers WHERE damage NOT NULL",
    ]);
    assert!(rows.to_string().contains("/etc/mark"), "{rows}");
    said(&node.operate(&["image", "import", &file]));
    assert!(mark.exists(), "fetched again");
    assert_eq!(node.check_images(&[]).status, 0);
    let error = complained(&node.operate(&["image", "check", "no/such:image"]));
    assert!(error.contains("no/such:image"), "{error}");
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_a_repair_leaves_a_whole_layer() {
    let mut node = Node::start().await;
    let name = registry().image("schema2:latest");
    node.cri.pull(&name).await.expect("PullImage");
    let mark = node.layer_with("etc/mark").join("fs/etc/mark");
    for point in [
        "image.layer_settled",
        "image.layer_sealed",
        "image.layer_synced",
        "image.layer_beside",
        "image.layer_exchanged",
        "image.layer_replaced",
    ] {
        node.terminate();
        rot(&mark, b"Schema2");
        node.env = vec![("QUILT_FAULTS".into(), format!("{point}=abort*1"))];
        node.restart().await;
        let cut = node.operate(&["image", "check", "--repair"]);
        assert_eq!(cut.status.code(), Some(2), "{point}: its daemon died");
        eventually("the daemon has died", || {
            let ended = node.ended();
            async move { ended }
        })
        .await;
        node.env.clear();
        node.restart().await;
        let mended = node.check_images(&["--repair"]);
        assert_eq!(mended.status, 0, "{point}: {:?}", mended.verdicts());
        assert_eq!(fs::read(&mark).expect("a file"), b"schema2", "{point}");
        let after = node.check_images(&[]);
        assert_eq!(
            after.verdicts().0.len(),
            1,
            "{point}: {:?}",
            after.verdicts()
        );
        let left = fs::read_dir(node.names.root().join("staging")).expect("a directory");
        assert_eq!(left.count(), 0, "{point}");
    }
    eventually("nothing broken is left", || async {
        let retired = fs::read_dir(node.names.root().join("retired")).expect("a directory");
        (retired.count() == 0).then_some(())
    })
    .await;
    assert_counted_to_the_block(&node).await;
}

/// What `du` says of a directory: bytes on disk and inodes, the directory itself left out.
fn du(dir: &Path) -> (u64, u64) {
    let count = |options: &[&str]| {
        let output = Command::new("du").args(options).arg(dir).output();
        let text = said(&output.expect("du runs"));
        let number = text.split_whitespace().next().map(str::parse::<u64>);
        number.expect("a line").expect("a number")
    };
    let own = fs::metadata(dir).expect("a directory").blocks() * 512;
    (count(&["-s", "-B1"]) - own, count(&["-s", "--inodes"]) - 1)
}

pub(crate) async fn assert_counted_to_the_block(node: &Node) {
    assert_eq!(told_of_images(node).await, held_of_images(node));
}

/// What the disk holds of images: layers, and blobs that are on their way.
pub(crate) fn held_of_images(node: &Node) -> (u64, u64) {
    let (layers, coming) = (du(&node.layers()), du(&node.names.root().join("downloads")));
    (layers.0 + coming.0, layers.1 + coming.1)
}

/// What `ImageFsInfo` says of that.
pub(crate) async fn told_of_images(node: &Node) -> (u64, u64) {
    let mut client = node.cri.image();
    let answer = client.image_fs_info(request(ImageFsInfoRequest {})).await;
    let answer = answer.expect("ImageFsInfo").into_inner();
    let usage = &answer.image_filesystems[0];
    let number = |value: &Option<UInt64Value>| value.as_ref().expect("a number").value;
    assert!(usage.timestamp > 0);
    let place = usage.fs_id.as_ref().expect("a file system");
    assert!(Path::new(&place.mountpoint).is_dir());
    (number(&usage.used_bytes), number(&usage.inodes_used))
}

#[tokio::test]
async fn what_the_disk_holds_is_counted_to_the_block() {
    let node = Node::start().await;
    assert_counted_to_the_block(&node).await;
    let names = [
        "layered:latest",
        "large:latest",
        "zstd:latest",
        "schema2:latest",
    ];
    for name in names {
        node.cri
            .pull(&registry().image(name))
            .await
            .expect("PullImage");
        assert_counted_to_the_block(&node).await;
    }
    for name in names {
        let image = registry().image(name);
        node.cri.remove_image(&image).await.expect("RemoveImage");
    }
    nothing_is_left(&node).await;
    assert_counted_to_the_block(&node).await;
}

#[tokio::test]
async fn pinned_images_are_told_and_go_when_a_client_insists() {
    let mut node = Node::prepare("[image]\npinned = [\"*busybox*\"]\n");
    node.restart().await;
    let names = ["busybox:latest", "schema2:latest"].map(|name| registry().image(name));
    for name in &names {
        node.cri.pull(name).await.expect("PullImage");
    }
    let pinned = async |node: &Node| {
        let mut pinned = Vec::new();
        for name in &names {
            let image = node.cri.image_status(name).await.expect("ImageStatus");
            pinned.push(image.expect("present").pinned);
        }
        pinned
    };
    assert_eq!(pinned(&node).await, [true, false]);
    node.terminate();
    node.configure(&format!("[image]\npinned = [\"{}\"]\n", names[1]));
    node.restart().await;
    assert_eq!(
        pinned(&node).await,
        [false, true],
        "a start takes up what is configured"
    );
    node.cri.remove_image(&names[1]).await.expect("RemoveImage");
    let gone = node.cri.image_status(&names[1]).await.expect("ImageStatus");
    assert!(gone.is_none(), "advice is no lock: CRI wants it so");
}

#[tokio::test]
async fn everything_known_of_an_image_is_told_when_asked_and_in_a_stream() {
    let node = Node::start().await;
    let names = ["schema2:latest", "layered:latest", "configured:latest"];
    let names = names.map(|name| registry().image(name));
    for name in &names {
        node.cri.pull(name).await.expect("PullImage");
    }
    let asked = ImageStatusRequest {
        image: Some(ImageSpec {
            image: names[0].clone(),
            ..Default::default()
        }),
        verbose: true,
    };
    let status = node.cri.image().image_status(request(asked)).await;
    let status = status.expect("ImageStatus").into_inner();
    let info: Value = serde_json::from_str(&status.info["info"]).expect("JSON");
    let pushed = registry().pushed("schema2:latest");
    assert_eq!(info["manifestDigest"], pushed.digest());
    assert_eq!(info["pulledAs"], names[0].as_str());
    let config: Value = serde_json::from_slice(&pushed.config).expect("JSON");
    assert_eq!(info["imageSpec"], config, "the registry's own");
    let layers = info["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), pushed.layers.len());
    assert_eq!(layers[1]["chainID"], info["chainID"]);
    assert_eq!(layers[0]["diffID"], pushed.layers[0].diff_id.as_str());

    let mut client = ImageServiceClient::new(node.cri.channel());
    let stream = client.stream_images(request(newest::StreamImagesRequest::default()));
    let mut stream = stream.await.expect("StreamImages").into_inner();
    let mut ids = Vec::new();
    let next = async |stream: &mut tonic::Streaming<_>| {
        let piece = in_time("the next piece", stream.message()).await;
        piece.expect("a piece")
    };
    while let Some(piece) = next(&mut stream).await {
        assert!(!piece.images.is_empty());
        ids.extend(piece.images.into_iter().map(|image| image.id));
    }
    let listed = node.cri.list_images().await.expect("ListImages");
    let listed: Vec<_> = listed.into_iter().map(|image| image.id).collect();
    assert_eq!((ids.len(), ids), (3, listed));
    let handler = newest::PullImageRequest {
        image: Some(newest::ImageSpec {
            image: names[0].clone(),
            runtime_handler: "kata".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = client.pull_image(request(handler)).await;
    let refused = refused.expect_err("an unknown handler");
    assert!(refused.message().contains("kata"), "{refused}");
}

#[tokio::test]
async fn a_container_whose_layer_has_gone_says_so_and_a_pull_helps() {
    let node = Node::start().await;
    let pod = node.pod("gone").await;
    let name = registry().image("schema2:latest");
    node.cri.pull(&name).await.expect("PullImage");
    let config = from_image("main", &name, "cat /etc/mark");
    let created = pod.create(&config).await;
    fs::remove_dir_all(node.layer_with("etc/mark")).expect("root may remove");
    let error = node.cri.start(&created).await.expect_err("half an image");
    let text = error.message();
    assert!(
        text.contains("is gone from the disk") && text.contains("pull"),
        "{text}"
    );
    let shown = node.cri.image_status(&name).await.expect("ImageStatus");
    assert!(shown.is_none(), "so that kubelet pulls it");
    node.cri.remove(&created).await.expect("RemoveContainer");
    node.cri.pull(&name).await.expect("PullImage");
    let ran = pod.run_to_end(&config).await;
    assert_eq!(ran.exit_code, 0);
}

/// Pushes an image whose second layer is not what its configuration says, and its name.
fn half_good(name: &str) -> String {
    let base = registry().pushed("schema2:latest").layers[0].clone();
    let mut other = Contents::new()
        .file("etc/mark", 0o644, b"never seen")
        .file("large", 0o644, &noise(4 << 20, 9))
        .pack(Packing::Gzip);
    other.diff_id = digest(b"something else");
    let image = Image::new(Dialect::Oci, &[base, other], &serde_json::json!({}));
    registry().upload(name, "latest", &image);
    registry().image(&format!("{name}:latest"))
}

#[tokio::test]
async fn what_a_failed_pull_has_got_waits_for_the_next_one() {
    let node = Node::start().await;
    let bad = half_good("half-good");
    // The wrong layer is the larger one, but it may come first all the same: then there is nothing
    // to keep, and the next try has another chance.
    eventually("a failed pull has got its first layer", || async {
        node.cri.pull(&bad).await.expect_err("a wrong layer");
        let rows = "SELECT count(*) AS n FROM v_layers WHERE state = 'present'";
        (node.ask(&["db", "query", rows])[0]["n"] == 1).then_some(())
    })
    .await;
    assert!(node.cri.list_images().await.expect("ListImages").is_empty());
    let base = node.layer_with("etc/passwd");
    let before = inode(&base);
    let rows = "SELECT state, kept_until > 0 AS kept FROM v_layers WHERE state <> 'removing'";
    let rows = node.ask(&["db", "query", rows]);
    assert_eq!(rows, serde_json::json!([{"state": "present", "kept": 1}]));
    let leaks = node.ask(&[
        "db",
        "query",
        "SELECT * FROM v_leaks WHERE why LIKE 'no image%'",
    ]);
    assert_eq!(
        leaks,
        serde_json::json!([]),
        "it waits, and is not forgotten"
    );
    let good = registry().image("schema2:latest");
    node.cri.pull(&good).await.expect("PullImage");
    assert_eq!(inode(&base), before, "it was not fetched again");
    node.cri.remove_image(&good).await.expect("RemoveImage");
    nothing_is_left(&node).await;
}

#[tokio::test]
async fn what_a_failed_pull_has_got_goes_when_nobody_comes_for_it() {
    let mut node = Node::prepare("[image]\nfailed_pull_kept_s = 1\n");
    node.restart().await;
    let bad = half_good("half-good-too");
    node.cri.pull(&bad).await.expect_err("a wrong layer");
    nothing_is_left(&node).await;
}

pub(crate) async fn nothing_is_left(node: &Node) {
    eventually("no layer is left", || async {
        let layers = fs::read_dir(node.layers()).expect("layers");
        let rows = node.ask(&["db", "query", "SELECT count(*) AS n FROM layers"]);
        (layers.count() == 0 && rows[0]["n"] == 0).then_some(())
    })
    .await;
}

/// Images that share layers come and go at once, some of them broken, and containers run on them.
#[tokio::test]
async fn images_that_share_layers_come_and_go_at_once_and_none_loses_one() {
    let node = Node::start().await;
    let pod = node.pod("churn").await;
    let bad = half_good("half-good-churn");
    let names = [
        "busybox:latest",
        "schema2:latest",
        "configured:latest",
        "layered:latest",
    ];
    let rounds = if std::env::var_os("QUILT_SOAK").is_some() {
        100
    } else {
        4
    };
    let churn = |name: String| {
        let cri = node.cri.clone();
        async move {
            for _ in 0..rounds {
                cri.pull(&name).await.expect("PullImage");
                cri.remove_image(&name).await.expect("RemoveImage");
            }
        }
    };
    let fails = async {
        for _ in 0..rounds {
            node.cri.pull(&bad).await.expect_err("a wrong layer");
        }
    };
    let runs = async {
        for round in 0..rounds {
            let name = registry().image("zstd:latest");
            node.cri.pull(&name).await.expect("PullImage");
            let config = from_image(&format!("run-{round}"), &name, "cat /etc/mark");
            let created = pod.create(&config).await;
            // Its image goes; what it stands on stays.
            node.cri.remove_image(&name).await.expect("RemoveImage");
            node.cri.start(&created).await.expect("StartContainer");
            assert_eq!(exited(&node.cri, &created).await.exit_code, 0);
            node.cri.remove(&created).await.expect("RemoveContainer");
        }
    };
    let churns = names.map(|name| churn(registry().image(name)));
    let churns = futures_util::future::join_all(churns);
    futures_util::join!(churns, fails, runs);
    let name = registry().image("layered:latest");
    node.cri.pull(&name).await.expect("PullImage");
    let told = node.check_images(&[]);
    assert_eq!(told.status, 0, "{:?}", told.verdicts());
    eventually(
        "nothing but the image and what waits is counted",
        || async {
            let rows = "SELECT count(*) AS n FROM v_layers WHERE state <> 'present'";
            (node.ask(&["db", "query", rows])[0]["n"] == 0).then_some(())
        },
    )
    .await;
    assert_counted_to_the_block(&node).await;
}
