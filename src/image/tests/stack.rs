//! How layers fit onto each other, and what a crash leaves.

use super::*;

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
async fn layers_are_committed_from_the_bottom() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address).parse().unwrap();
    let image = node
        .driver
        .resolve(&name, &Credentials::Anonymous)
        .await
        .unwrap();
    let top = node.driver.fetch_layer(&image, 1, &|_| ()).await.unwrap();
    let error = node.driver.commit_layer(top).unwrap_err();
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
