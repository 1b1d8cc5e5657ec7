//! Layers put together as a copy, held against what overlayfs makes of them.

use super::stack::in_overlay;
use super::*;
use crate::snapshot::{self, Kind};

/// Kind, mode, owner, time, names of the file, size and target of everything.
const LIST: &str = "find . -mindepth 1 \\( -type d -printf '%P d %m %U %G %T@\n' \\) -o \
    -printf '%P %y %m %U %G %T@ %s %l\n' | sort; find . -type f -exec cat {} +; \
    ls -i twice again | cut -d' ' -f1 | uniq | wc -l";

#[tokio::test]
async fn a_copy_shows_what_an_overlay_shows() {
    let node = Node::new();
    let mut setuid = Tar::header(tar::EntryType::Regular, b"su", b"", 2);
    setuid.set_mode(0o4750);
    setuid.set_uid(7);
    setuid.set_cksum();
    let bottom = Tar::default()
        .dir("./")
        .dir("keep/")
        .file("keep/a", "below")
        .file("keep/gone", "")
        .dir("emptied/")
        .file("emptied/old", "")
        .file("replaced/old", "")
        .file("to-dir", "")
        .dir("to-file/")
        .file("to-file/x", "")
        .file("twice", "both")
        .link("again", "twice")
        .raw(&setuid, b"su")
        .entry(tar::EntryType::Fifo, "pipe", "", b"")
        .symlink("link", "/../outside")
        .pax(&[
            ("GNU.sparse.map", b"0,1,4000000,1"),
            ("GNU.sparse.size", b"4000001"),
        ])
        .file("holes", "xy")
        .end();
    let top = Tar::default()
        .file("keep/.wh.gone", "")
        .file("keep/a", "above")
        .dir("emptied/")
        .file("emptied/.wh..wh..opq", "")
        .file("emptied/new", "")
        .file(".wh.replaced", "")
        .file("replaced/new", "")
        .dir("to-dir/")
        .file("to-dir/x", "")
        .file("to-file", "")
        .symlink("keep/link", "../a")
        .end();
    let image = TestImage::of(&[bottom, top]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    let lower: Vec<_> = (0..2).rev().map(|at| node.path(&pulled, at, "")).collect();
    let root = node.root.path();
    let made = snapshot::ensure_snapshot(root, "n1", Kind::Native, &lower).unwrap();
    let list = std::process::Command::new("sh")
        .args(["-c", LIST])
        .current_dir(&made.upper)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(list.stdout).unwrap(),
        in_overlay(&node, &pulled, LIST)
    );
    assert!(fs::metadata(made.upper.join("holes")).unwrap().blocks() < 100);
    // It stays what it is, with what has been written into it.
    fs::write(made.upper.join("own"), "x").unwrap();
    let again = snapshot::ensure_snapshot(root, "n1", Kind::Overlay, &lower).unwrap();
    assert_eq!((again.kind, &again), (Kind::Native, &made));
    assert!(again.upper.join("own").exists());
    let usage = snapshot::usage(root, "n1", None).unwrap();
    assert!((17..30).contains(&usage.inodes), "{usage:?}");
    snapshot::remove_snapshot(root, "n1").unwrap();
    assert_eq!(fs::read_dir(root.join("staging")).unwrap().count(), 0);
}

#[test]
fn a_copy_that_fails_leaves_nothing() {
    let node = Node::new();
    let root = node.root.path();
    let lower = [root.join("no-such-layer")];
    snapshot::ensure_snapshot(root, "n1", Kind::Native, &lower).unwrap_err();
    assert_eq!(fs::read_dir(root.join("staging")).unwrap().count(), 0);
    assert!(!snapshot::locate(root, "n1").unwrap().upper.exists());
}
