//! Whiteouts and opaque directories where they do not belong.

use tar::EntryType;

use super::super::super::testing::Tar;
use super::Fact::{Absent, Deleted, Dir, File, Opaque};
use super::{Attack, confined, refused};

const OPAQUE: &str = ".wh..wh..opq";

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = names();
    all.extend(order());
    all
}

fn names() -> Vec<Attack> {
    let file = |name: &str| Tar::default().file(name, "").end();
    let impossible = "name that cannot exist";
    vec![
        refused("deleting nothing", impossible, file(".wh.")),
        refused("deleting the directory itself", impossible, file("a/.wh..")),
        refused("deleting the parent", impossible, file("a/.wh...")),
        refused(
            "deleting above the root",
            "leads out",
            file("../.wh.outside"),
        ),
        refused(
            "deleting by detour",
            "leads out",
            file(".wh.a/../../outside"),
        ),
        confined(
            "deleting through a link that leads up",
            Tar::default()
                .symlink("up", "../../outside")
                .file("up/.wh.secret", "")
                .end(),
            vec![Deleted("outside/secret")],
        ),
        confined(
            "emptying through a link that leads up",
            Tar::default()
                .symlink("up", "../../outside")
                .file(&format!("up/{OPAQUE}"), "")
                .end(),
            vec![Opaque("outside")],
        ),
        confined(
            "what only aufs understood",
            Tar::default()
                .file(".wh..wh.aufs", "")
                .dir(".wh..wh.plnk/")
                .file(".wh..wh.plnk/1.2", "x")
                .file("d/.wh..wh.orph/x", "x")
                .end(),
            vec![Absent(".wh..wh.aufs"), Absent(".wh..wh.plnk"), Absent("d")],
        ),
        confined(
            "a deletion that has contents",
            Tar::default()
                .dir(".wh.a/")
                .file(".wh.b/c", "x")
                .entry(EntryType::Symlink, ".wh.d", "/outside", b"")
                .end(),
            vec![Deleted("a"), Dir(".wh.b"), Deleted("d")],
        ),
    ]
}

fn order() -> Vec<Attack> {
    vec![
        confined(
            "deleting what the layer itself has",
            Tar::default()
                .file("own", "kept")
                .file(".wh.own", "")
                .dir("dir/")
                .file("dir/f", "kept")
                .file(".wh.dir", "")
                .end(),
            vec![File("own", "kept"), File("dir/f", "kept"), Opaque("dir")],
        ),
        confined(
            "deleting a hard link to a layer below",
            Tar::default().link("h", "below").file(".wh.h", "").end(),
            vec![Absent("h")],
        ),
        confined(
            "deleting first, adding after",
            Tar::default()
                .file(".wh.f", "")
                .file("f", "x")
                .file(".wh.d", "")
                .file("d/e/f", "x")
                .end(),
            vec![File("f", "x"), File("d/e/f", "x"), Opaque("d")],
        ),
        confined(
            "deleting twice",
            Tar::default().file(".wh.f", "").file(".wh.f", "").end(),
            vec![Deleted("f")],
        ),
        confined(
            "emptying after filling",
            Tar::default()
                .file("d/f", "x")
                .file(&format!("d/{OPAQUE}"), "")
                .file(&format!("d/{OPAQUE}"), "")
                .end(),
            vec![File("d/f", "x"), Opaque("d")],
        ),
        confined(
            "a directory in the place of a file hides what is below",
            Tar::default().file("d", "x").dir("d/").end(),
            vec![Opaque("d")],
        ),
    ]
}
