//! How layers fit onto each other, and what a crash leaves.

use super::*;
use crate::snapshot::Kind;

#[tokio::test]
async fn undescribed_directories_and_links_take_what_lies_below() {
    let node = Node::new();
    let mut private = Tar::header(tar::EntryType::Directory, b"srv/", b"", 0);
    private.set_mode(0o2750);
    private.set_uid(7);
    private.set_cksum();
    let bottom = Tar::default()
        .raw(&private, b"")
        .file("srv/tool", "tool")
        .dir("tmp/")
        .end();
    let middle = Tar::default()
        .file("new/.wh.x", "")
        .file(".wh.tmp", "")
        .end();
    let top = Tar::default()
        .file("srv/added", "x")
        .link("bin/tool", "srv/tool")
        .link("bin/again", "bin/tool")
        .file("tmp/file", "x")
        .end();
    let image = TestImage::of(&[bottom, middle, top]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let pulled = node
        .pull(&format!("{}/a", server.address), &Credentials::Anonymous)
        .await
        .unwrap();
    let meta = |name: &str| node.path(&pulled, 2, name).symlink_metadata().unwrap();
    let srv = meta("srv");
    assert_eq!(
        (srv.mode() & 0o7777, srv.uid(), srv.mtime()),
        (0o2750, 7, 1_000_000)
    );
    assert_eq!(meta("tmp").mode() & 0o7777, 0o755);
    assert_eq!(node.text(&pulled, 2, "bin/again"), "tool");
    assert_eq!(meta("bin/tool").ino(), meta("srv/tool").ino());
    assert_eq!(meta("srv/tool").nlink(), 3);
    assert_eq!(meta("bin/tool").mtime(), 1_000_000);
}

#[tokio::test]
async fn a_link_to_nothing_fails_the_layer() {
    let node = Node::new();
    let bottom = Tar::default().file("etc/passwd", "x").end();
    let middle = Tar::default().file("etc/.wh.passwd", "").end();
    let top = Tar::default().link("steal", "etc/passwd").end();
    let image = TestImage::of(&[bottom, middle, top]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address);
    let error = node.pull(&name, &Credentials::Anonymous).await.unwrap_err();
    let ImageError::Store { source, .. } = error else {
        panic!("{error:?}")
    };
    let LayerError::Settle { source, .. } = *source else {
        panic!("{source:?}")
    };
    assert!(matches!(source, SettleError::LinkTarget { .. }));
    assert_eq!(node.driver.list_layers().unwrap().len(), 2);
}

#[tokio::test]
async fn what_links_copy_from_below_is_bounded() {
    let mut node = Node::new();
    node.driver.config.limits.linked_bytes = 6000;
    let big = "x".repeat(4096);
    let bottom = Tar::default().file("a", &big).file("b", &big).end();
    let one = Tar::default().link("c", "a").link("d", "a").end();
    let two = Tar::default().link("e", "a").link("f", "b").end();
    for (top, fits) in [(one, true), (two, false)] {
        let image = TestImage::of(&[bottom.clone(), top]);
        let server = Server::start(move |request, _| image.answer(request.resource()));
        let name = format!("{}/a", server.address);
        let pulled = node.pull(&name, &Credentials::Anonymous).await;
        assert_eq!(pulled.is_ok(), fits, "{pulled:?}");
    }
}

#[tokio::test]
async fn layers_are_committed_from_the_bottom() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address).parse().unwrap();
    let image = node
        .driver
        .resolve(&name, &Credentials::Anonymous)
        .await
        .unwrap();
    let top = node.fetch(&image, 1).await.unwrap();
    let error = node.commit(top).unwrap_err();
    let ImageError::Store { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(
        matches!(*source, LayerError::ParentMissing { .. }),
        "{source:?}"
    );
    drop(source);
    node.nothing_is_left();
}

#[test]
fn what_a_dead_process_left_is_cleared() {
    let node = Node::new();
    let lib = node.root.path().join("lib");
    fs::create_dir_all(lib.join("staging/layer-1-1/fs/a")).unwrap();
    fs::create_dir_all(lib.join("layers/not-a-digest")).unwrap();
    node.driver.clear_staging().unwrap();
    node.nothing_is_left();
    assert_eq!(
        fs::metadata(lib.join("layers"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o700
    );
}

/// Mounts the layers as the runtime does, in a mount namespace that ends with the command.
pub(super) fn in_overlay(node: &Node, image: &ResolvedImage, script: &str) -> String {
    let paths = image
        .layers
        .iter()
        .rev()
        .map(|each| node.driver.layer_path(&each.chain_id));
    let lower: Vec<String> = paths.map(|path| path.display().to_string()).collect();
    let snapshot =
        crate::snapshot::ensure_snapshot(node.root.path(), "c1", Kind::Overlay, &[]).unwrap();
    let merged = node.root.path().join("merged");
    fs::create_dir_all(&merged).unwrap();
    let mount = format!(
        "mount -t overlay overlay -o lowerdir={},upperdir={},workdir={} {}",
        lower.join(":"),
        snapshot.upper.display(),
        snapshot.work.display(),
        merged.display()
    );
    let script = format!("{mount} && cd {} && {script}", merged.display());
    let unshare = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output();
    let output = unshare.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn overlayfs_shows_what_the_layers_mean() {
    let node = Node::new();
    let bottom = Tar::default()
        .dir("keep/")
        .file("keep/a", "")
        .file("keep/gone", "")
        .dir("emptied/")
        .file("emptied/old", "")
        .dir("replaced/")
        .file("replaced/old", "")
        .file("file", "below")
        .end();
    let top = Tar::default()
        .file("keep/.wh.gone", "")
        .file("keep/b", "")
        .file("emptied/.wh..wh..opq", "")
        .file("emptied/new", "")
        .file(".wh.replaced", "")
        .file("replaced/new", "")
        .link("linked", "file")
        .end();
    let image = TestImage::of(&[bottom, top]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    let script = "for d in keep emptied replaced; do ls $d; done; cat linked; \
                  rm -r keep && mkdir keep && touch keep/own && ls keep";
    let shown = in_overlay(&node, &pulled, script);
    assert_eq!(
        shown.split_whitespace().collect::<Vec<_>>(),
        ["a", "b", "new", "new", "belowown"]
    );
    assert!(
        crate::snapshot::usage(node.root.path(), "c1", None)
            .unwrap()
            .inodes
            >= 3
    );
    crate::snapshot::remove_snapshot(node.root.path(), "c1").unwrap();
    assert!(
        crate::snapshot::list_snapshots(node.root.path())
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_layer_can_empty_the_whole_root() {
    let node = Node::new();
    let bottom = Tar::default()
        .dir("./")
        .file("gone", "")
        .file("both/gone", "")
        .file("own", "below")
        .end();
    let middle = Tar::default().file("gone-too", "").end();
    let top = Tar::default()
        .dir("./")
        .file("both/new", "")
        .file("own", "above")
        .file(".wh..wh..opq", "")
        .end();
    let last = Tar::default().file("later", "").end();
    let image = TestImage::of(&[bottom, middle, top, last]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    let shown = in_overlay(&node, &pulled, "ls; ls both; cat own");
    assert_eq!(
        shown.split_whitespace().collect::<Vec<_>>(),
        ["both", "later", "own", "new", "above"]
    );
}
