//! Pulls from registries that are slow, broken, closed or hostile, and through kills of the daemon.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::image_store::{held_of_images, nothing_is_left, told_of_images};
use crate::support::hostile::{Act, Asked, Hostile};
use crate::support::image::{Dialect, Image};
use crate::support::layer::{Contents, Packing, busybox, digest, noise};
use crate::support::operator::{column, said};
use crate::support::prometheus::Page;
use crate::support::{Node, eventually, is_soak, registry};

/// Bytes of noise in the large layer: it comes in two pieces.
const LARGE: usize = 9 << 20;

/// A small layer and a large one.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let large = Contents::new().file("large", 0o644, &noise(LARGE, 11));
        let layers = [busybox().pack(Packing::Gzip), large.pack(Packing::Gzip)];
        Image::new(Dialect::Oci, &layers, &json!({"Cmd": ["sh"]}))
    })
}

fn large() -> &'static [u8] {
    &image().layers[1].blob
}

/// A daemon that keeps layers from 4 MiB on, and waits a second for who says nothing.
async fn node() -> Node {
    let mut node = Node::prepare("[image]\nstall_timeout_s = 1\nkeep_from_bytes = 4194304\n");
    node.spawn();
    node.answers().await;
    node
}

/// Whether the node has the image, with the content that its layers say.
async fn check_whole(node: &Node, name: &str) {
    let status = node.cri.image_status(name).await.expect("ImageStatus");
    assert_eq!(status.expect("present").id, image().id());
    let layers = fs::read_dir(node.names.root().join("layers")).expect("the layers");
    let found = layers.flatten().find_map(|layer| {
        let content = fs::read(layer.path().join("fs/large")).ok()?;
        Some(digest(&content))
    });
    assert_eq!(found, Some(digest(&noise(LARGE, 11))));
    assert_eq!(kept(node), 0, "something is kept of a layer that is here");
}

/// Bytes of unfinished downloads on the disk.
fn kept(node: &Node) -> usize {
    let blobs = fs::read_dir(node.names.root().join("downloads"));
    let blobs = blobs.into_iter().flatten().flatten();
    let pieces = blobs.flat_map(|blob| fs::read_dir(blob.path()).into_iter().flatten());
    let lengths = pieces.flatten().filter_map(|piece| piece.metadata().ok());
    lengths.map(|piece| piece.len() as usize).sum()
}

fn metrics(node: &Node) -> Page {
    Page::read(&said(&node.operate(&["metrics"])))
}

pub(crate) fn refused(outcome: Result<String, Status>, what: &str) -> Status {
    outcome.expect_err(&format!("{what}: an image came of it"))
}

#[tokio::test]
async fn a_connection_without_progress_is_taken_up_where_it_stood_and_a_slow_one_is_left_alone() {
    let node = node().await;
    let server = Hostile::start(image(), |asked, _| {
        if !asked.is_for(large()) {
            return Act::Serve;
        }
        match asked.range.as_deref() {
            Some(range) if range.starts_with("bytes=0-") => Act::StallAfter(3_000_000),
            Some(range) if range.starts_with("bytes=3000000-") => Act::CutAfter(2_000_000),
            // Six parts in 2.4 s: slow, but never silent for as long as a second.
            Some(range) if range.starts_with("bytes=8388608-") => {
                Act::Slowly(Duration::from_millis(400))
            }
            _ => Act::Serve,
        }
    });
    let name = server.image("torn:latest");
    node.cri.pull(&name).await.expect("PullImage");
    check_whole(&node, &name).await;
    let last = large().len() - 1;
    assert_eq!(
        server.ranges(large()),
        [
            "bytes=0-8388607",
            "bytes=3000000-8388607",
            "bytes=5000000-8388607",
            &format!("bytes=8388608-{last}"),
        ]
    );
}

#[tokio::test]
async fn a_registry_that_is_busy_or_knows_no_ranges_is_asked_again() {
    let node = node().await;
    let server = Hostile::start(image(), |asked, before| {
        match (asked.is_for(large()), before) {
            (false, 0) if asked.path.contains("/manifests/") => {
                Act::Status(429, "Retry-After: 0\r\n")
            }
            (false, 1) if asked.path.contains("/manifests/") => {
                Act::Status(503, "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n")
            }
            (true, 0) => Act::Status(500, ""),
            (true, _) => Act::Whole,
            _ => Act::Serve,
        }
    });
    let name = server.image("busy:latest");
    node.cri.pull(&name).await.expect("PullImage");
    check_whole(&node, &name).await;
    assert_eq!(server.ranges(large()).len(), 2);
    let metrics = metrics(&node);
    let retries = metrics.get("quilt_registry_retries_total", &[]);
    assert!(retries >= Some(3.0), "{retries:?}");
}

#[tokio::test]
async fn lies_are_refused_and_the_next_pull_is_right() {
    let node = node().await;
    for (what, act, code, word) in [
        (
            "a digest",
            Act::Flipped,
            Code::FailedPrecondition,
            "has digest",
        ),
        (
            "a size",
            Act::Longer,
            Code::FailedPrecondition,
            "longer than",
        ),
        ("its end", Act::CutAfter(0), Code::Unavailable, "broke off"),
    ] {
        let lie = act.clone();
        let server = Hostile::start(image(), move |asked, _| match asked.is_for(large()) {
            true => lie.clone(),
            false => Act::Serve,
        });
        let name = server.image("lie:latest");
        let error = refused(node.cri.pull(&name).await, what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(error.message().contains(word), "{what}: {error}");
        assert!(error.message().contains(&name), "{what}: {error}");
    }
    let server = Hostile::start(image(), |asked, before| match before {
        0 if asked.path.contains("/manifests/") => Act::Misnamed,
        _ => Act::Serve,
    });
    let name = server.image("lie:latest");
    let error = refused(node.cri.pull(&name).await, "another digest");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(node.cri.list_images().await.expect("ListImages").is_empty());
    node.cri.pull(&name).await.expect("PullImage");
    check_whole(&node, &name).await;
}

#[tokio::test]
async fn a_registry_that_always_fails_is_unavailable_by_name_and_status() {
    let node = node().await;
    let server = Hostile::start(image(), |_, _| Act::Status(503, ""));
    let name = server.image("gone:latest");
    let error = refused(node.cri.pull(&name).await, "503");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    // Kubelet knows it by this word.
    assert!(
        error.message().starts_with("RegistryUnavailable"),
        "{error}"
    );
    for word in [server.address.as_str(), &name, "503"] {
        assert!(error.message().contains(word), "{error}");
    }
    let pulls = node.ask(&["pulls"]);
    assert_eq!(column(&pulls, "state"), ["failed"]);
    assert_eq!(column(&pulls, "reference"), [name]);
}

#[tokio::test]
async fn what_is_here_is_asked_for_by_its_digest_alone() {
    let node = node().await;
    let server = Hostile::start(image(), |_, _| Act::Serve);
    let name = server.image("again:latest");
    let first = node.cri.pull(&name).await.expect("PullImage");
    let before = server.asked().len();
    assert_eq!(node.cri.pull(&name).await.expect("PullImage again"), first);
    let asked: Vec<Asked> = server.asked().split_off(before);
    let methods: Vec<_> = asked.iter().map(|each| each.method.as_str()).collect();
    assert_eq!(methods, ["HEAD"], "{asked:?}");
    let metrics = metrics(&node);
    for outcome in ["pulled", "present"] {
        let count = metrics.get("quilt_pulls_total", &[("outcome", outcome)]);
        assert_eq!(count, Some(1.0), "{outcome}");
    }
}

#[tokio::test]
async fn a_killed_daemon_goes_on_at_the_byte_where_it_was_and_anybody_can_watch() {
    let mut node = node().await;
    let server = Hostile::start(image(), |asked, _| match asked.is_for(large()) {
        true => Act::Spend,
        false => Act::Serve,
    });
    let name = server.image("killed:latest");
    // Within the first piece, at its beginning, across its end, and just before the end of all.
    let steps = [10_000, 700_000, 5_000_000, 3_000_000, 600_000];
    for (at, step) in steps.into_iter().enumerate() {
        server.allow(step);
        let pull = tokio::spawn({
            let (cri, name) = (node.cri.clone(), name.clone());
            async move { cri.pull(&name).await }
        });
        let allowed: usize = steps[..=at].iter().sum();
        // What is left of the budget is less than one part of an answer.
        eventually("all that was allowed is on the disk", || async {
            let sent = server.sent();
            (sent + 10_000 > allowed && kept(&node) == sent).then_some(())
        })
        .await;
        if at == 2 {
            watch(&node, &name).await;
        }
        node.kill();
        pull.await
            .expect("the caller")
            .expect_err("its daemon is dead");
        node.restart().await;
    }
    server.allow(usize::MAX / 2);
    node.cri.pull(&name).await.expect("PullImage");
    check_whole(&node, &name).await;
    assert_eq!(server.sent(), large().len(), "no byte came twice");
    let sql = "SELECT DISTINCT kind FROM v_events WHERE object_kind = 'image' ORDER BY kind";
    let kinds = column(&node.ask(&["db", "query", sql]), "kind");
    assert_eq!(kinds, ["pull_resumed", "pull_started", "pulled"]);
    let pulls = node.ask(&["pulls"]);
    assert_eq!(column(&pulls, "state"), ["pulled"]);
    assert_eq!(pulls[0]["received_bytes"], pulls[0]["size_bytes"]);
}

/// The pull of `name`, which stands still, as an operator sees it.
async fn watch(node: &Node, name: &str) {
    let seen = eventually("the progress is written down", || async {
        let pulls = node.ask(&["pulls"]);
        let received = pulls[0]["received_bytes"].as_u64()?;
        (received as usize > kept(node)).then_some(pulls[0].clone())
    })
    .await;
    assert_eq!(seen["reference"], Value::from(name));
    assert_eq!(seen["state"], "fetching");
    assert_eq!(seen["layers"], 2);
    eventually("what has come is counted", || async {
        let (told, held) = (told_of_images(node).await, held_of_images(node));
        (told == held && held.0 as usize > kept(node)).then_some(())
    })
    .await;
    let layers = node.ask(&["pulls", "--layers"]);
    assert_eq!(column(&layers, "digest")[1], digest(large()));
    assert_eq!(column(&layers, "state")[1], "fetching");
    assert_eq!(layers[1]["received_bytes"], kept(node));
}

#[tokio::test]
async fn a_mirror_that_lies_is_passed_over_and_named_once() {
    let mut node = Node::prepare("");
    let certs = node.path("certs.d");
    node.configure(&format!(
        "[image]\ncerts_d = {certs:?}\nkeep_from_bytes = 4194304\n"
    ));
    node.restart().await;
    registry().upload("mirrored", "latest", image());
    // One layer is streamed and one kept on disk; it lies about both, and about the configuration.
    let mirror = Hostile::start(image(), |asked, _| match asked.path.contains("/blobs/") {
        true => Act::Flipped,
        false => Act::Serve,
    });
    let (address, server) = (&mirror.address, &registry().address);
    fs::create_dir_all(certs.join("mirrored.test")).expect("a directory");
    let hosts = format!("server = \"http://{server}\"\n[host.\"http://{address}\"]\n");
    fs::write(certs.join("mirrored.test/hosts.toml"), hosts).expect("a file");
    let name = "mirrored.test/mirrored:latest";
    node.cri.pull(name).await.expect("PullImage");
    check_whole(&node, name).await;
    let sql = "SELECT object_id, message FROM v_events WHERE kind = 'wrong_content'";
    let events = node.ask(&["db", "query", sql]);
    assert_eq!(column(&events, "object_id"), [name]);
    let message = &column(&events, "message")[0];
    assert!(message.starts_with(address), "{message}");
    assert!(message.contains("has digest"), "{message}");
    let log = fs::read_to_string(node.path("daemon.log")).expect("the daemon's log");
    let told = log.lines().filter(|line| line.contains("wrong content"));
    assert_eq!(told.count(), 1, "{log}");
}

/// Points of a pull of two layers, with the passage at which the daemon dies.
const DEATHS: [(&str, u32); 19] = [
    ("image.layer_fetched", 2),
    ("image.layer_sealed", 1),
    ("image.download_removed", 1),
    ("image.layer_in_place", 1),
    ("image.layer_recorded", 2),
    ("image.asked", 1),
    ("image.resolved", 1),
    ("image.layers_recorded", 1),
    ("image.pull_begun", 1),
    ("image.layer_fetched", 1),
    ("image.layer_settled", 1),
    ("image.layer_settled", 2),
    ("image.layer_sealed", 2),
    ("image.fetched", 1),
    ("image.layer_synced", 1),
    ("image.layer_in_place", 2),
    ("image.layer_committed", 1),
    ("image.layer_recorded", 1),
    ("image.recorded", 1),
];
/// How many of them the short form tries.
const DEATHS_SHORT: usize = 5;

#[tokio::test]
async fn a_daemon_that_dies_anywhere_in_a_pull_gets_the_right_image_in_the_end() {
    let mut node = Node::prepare("[image]\nkeep_from_bytes = 4194304\n");
    let faults = node.path("faults");
    node.env = vec![("QUILT_FAULTS_FILE".into(), faults.display().to_string())];
    node.restart().await;
    let server = Hostile::start(image(), |_, _| Act::Serve);
    let deaths = match is_soak() {
        true => &DEATHS[..],
        false => &DEATHS[..DEATHS_SHORT],
    };
    for (point, passage) in deaths {
        let name = server.image("dies:latest");
        fs::write(&faults, format!("{point}=abort*1@{passage}")).expect("a file");
        let pulled = node.cri.pull(&name).await;
        pulled.expect_err(&format!("{point} is never reached"));
        eventually("the daemon has ended", || {
            let ended = node.ended();
            async move { ended }
        })
        .await;
        fs::write(&faults, "").expect("a file");
        node.restart().await;
        node.cri.pull(&name).await.expect("PullImage");
        check_whole(&node, &name).await;
        node.cri.remove_image(&name).await.expect("RemoveImage");
        nothing_is_left(&node).await;
    }
}
