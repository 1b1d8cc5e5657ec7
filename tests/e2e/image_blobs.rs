//! Compressed blobs that are kept on the disk: what they are good for when there is no registry any
//! more, and that they count, go and survive as their layers do.

use std::fs;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::image_commands::{export, members};
use crate::image_store::{assert_counted_to_the_block, nothing_is_left, rot};
use crate::support::hostile::{Act, Hostile};
use crate::support::image::{Dialect, Image};
use crate::support::layer::{Contents, Packing, busybox, digest, noise};
use crate::support::operator::{complained, said};
use crate::support::pod::exited;
use crate::support::{Node, eventually};

const KEEPS: &str = "[image]\nkeep_blobs = true\nkeep_from_bytes = 4194304\n";

/// A small layer and one of two pieces.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let large = Contents::new().file("large", 0o644, &noise(9 << 20, 13));
        let layers = [busybox().pack(Packing::Gzip), large.pack(Packing::Zstd)];
        Image::new(Dialect::Oci, &layers, &json!({"Cmd": ["sh"]}))
    })
}

/// A registry with that image, until it is told to have none.
fn registry() -> (Hostile, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let server = Hostile::start(image(), move |_, _| match is_gone.load(Ordering::SeqCst) {
        true => Act::Status(404, ""),
        false => Act::Serve,
    });
    (server, gone)
}

async fn keeping() -> Node {
    let mut node = Node::prepare(KEEPS);
    node.restart().await;
    node
}

#[tokio::test]
async fn kept_blobs_serve_exports_and_repairs_without_a_registry() {
    let node = keeping().await;
    let (server, gone) = registry();
    let name = server.image("kept:latest");
    node.cri.pull(&name).await.expect("PullImage");
    assert_counted_to_the_block(&node).await;
    gone.store(true, Ordering::SeqCst);

    let file = node.path("saved.tar").display().to_string();
    said(&export(&node, &name, &file));
    let saved = members(&fs::read(&file).expect("a file"));
    for layer in &image().layers {
        let member = format!("blobs/{}", digest(&layer.blob).replace(':', "/"));
        assert!(saved[&member] == layer.blob, "{member} is another one");
    }

    let large = node.layer_with("large").join("fs/large");
    let right = fs::read(&large).expect("a file");
    let mut wrong = right.clone();
    wrong[5_000_000] ^= 1;
    rot(&large, &wrong);
    let told = node.check_images(&["--repair"]);
    assert_eq!(told.verdicts().0["repaired"], 1, "{:?}", told.verdicts());
    let again = fs::read(node.layer_with("large").join("fs/large"));
    assert!(again.expect("a file") == right, "it was mended wrong");
    eventually("the broken layer has gone", || async {
        let retired = fs::read_dir(node.names.root().join("retired"));
        (retired.expect("a directory").count() == 0).then_some(())
    })
    .await;
    assert_counted_to_the_block(&node).await;

    // A blob that is spoilt is no help, and is said to be.
    let layer = node.layer_with("large");
    let blob = digest(&image().layers[1].blob).replace(':', "-");
    let piece = layer.join(blob).join("000000800000");
    let mut bytes = fs::read(&piece).expect("the second piece");
    bytes[1000] ^= 1;
    rot(&piece, &bytes);
    let told = node.check_images(&[]);
    let (verdicts, text) = told.verdicts();
    assert_eq!(verdicts["damaged"], 1, "{text}");
    assert!(text.contains("its kept blob"), "{text}");
    complained(&export(&node, &name, &file));
    gone.store(false, Ordering::SeqCst);
    let told = node.check_images(&["--repair"]);
    assert_eq!(told.verdicts().0["repaired"], 1, "{:?}", told.verdicts());
    gone.store(true, Ordering::SeqCst);
    said(&export(&node, &name, &file));

    node.cri.remove_image(&name).await.expect("RemoveImage");
    nothing_is_left(&node).await;
    assert_counted_to_the_block(&node).await;
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_keeps_a_blob_has_all_of_it_or_none() {
    for point in [
        "image.blob_kept",
        "image.layer_synced",
        "image.layer_in_place",
    ] {
        let mut node = Node::prepare(KEEPS);
        node.env = vec![("QUILT_FAULTS".into(), format!("{point}=abort*1"))];
        node.restart().await;
        let (server, gone) = registry();
        let name = server.image("killed:latest");
        node.cri.pull(&name).await.expect_err("the daemon has died");
        eventually("the daemon has ended", || {
            let ended = node.ended();
            async move { ended }
        })
        .await;
        node.env = vec![];
        node.restart().await;
        node.cri.pull(&name).await.expect("PullImage");
        gone.store(true, Ordering::SeqCst);
        let file = node.path("saved.tar").display().to_string();
        said(&export(&node, &name, &file));
        let told = node.check_images(&[]);
        assert_eq!(told.status, 0, "{point}: {:?}", told.verdicts());
        assert_counted_to_the_block(&node).await;
        node.cri.remove_image(&name).await.expect("RemoveImage");
        nothing_is_left(&node).await;
    }
}

#[tokio::test]
async fn what_was_exported_can_be_imported_and_exported_where_there_never_was_a_registry() {
    let (server, gone) = registry();
    let name = server.image("moved:latest");
    let first = keeping().await;
    first.cri.pull(&name).await.expect("PullImage");
    gone.store(true, Ordering::SeqCst);
    let file = first.path("saved.tar").display().to_string();
    said(&export(&first, &name, &file));

    let second = keeping().await;
    said(&second.operate(&["image", "import", &file]));
    let again = second.path("again.tar").display().to_string();
    said(&export(&second, &name, &again));
    let read = |path: &str| members(&fs::read(path).expect("a file"));
    assert!(read(&file) == read(&again), "it is another archive");
    let pod = second.pod("moved").await;
    let config = crate::image::from_image("main", &name, "wc -c </large");
    let id = pod.create(&config).await;
    second.cri.start(&id).await.expect("StartContainer");
    assert_eq!(exited(&second.cri, &id).await.exit_code, 0);
}
