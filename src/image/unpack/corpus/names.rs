//! Names that want to be somewhere else.

use tar::EntryType;

use super::super::super::testing::Tar;
use super::Fact::{Absent, Dir, File, Size};
use super::{Attack, confined, refused};

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = leading_out();
    all.extend(strange());
    all
}

fn leading_out() -> Vec<Attack> {
    let file = |name: &str| Tar::default().file(name, "planted").end();
    let planted = || vec![File("tmp/quilt-corpus-planted", "planted")];
    let pax = |name: &[u8]| {
        Tar::default()
            .pax(&[("path", name)])
            .file("innocent", "planted")
            .end()
    };
    vec![
        refused("parent directory", "leads out", file("../outside/planted")),
        refused("parent of a directory", "leads out", {
            file("a/b/../../../outside/planted")
        }),
        refused("absolute and up", "leads out", file("/../outside/planted")),
        refused("up in a PAX name", "leads out", {
            pax(b"a/../../outside/planted")
        }),
        refused("up in a GNU name", "leads out", {
            Tar::default()
                .entry(EntryType::GNULongName, "L", "", b"../outside/planted\0")
                .file("innocent", "planted")
                .end()
        }),
        refused("up in the name of a sparse file", "leads out", {
            Tar::default()
                .pax(&[
                    ("GNU.sparse.map", b"0,7"),
                    ("GNU.sparse.size", b"7"),
                    ("GNU.sparse.name", b"../outside/planted"),
                ])
                .file("innocent", "planted")
                .end()
        }),
        refused(
            "the parent itself",
            "leads out",
            Tar::default().dir("..").end(),
        ),
        confined("absolute", file("/tmp/quilt-corpus-planted"), planted()),
        confined(
            "twice absolute",
            file("//tmp//quilt-corpus-planted"),
            planted(),
        ),
        confined(
            "up and back",
            file("a/../tmp/./quilt-corpus-planted"),
            vec![File("tmp/quilt-corpus-planted", "planted"), Absent("a")],
        ),
    ]
}

fn strange() -> Vec<Attack> {
    let root = "root directory";
    let pax = |name: &[u8]| {
        Tar::default()
            .pax(&[("path", name)])
            .file("innocent", "x")
            .end()
    };
    let mut old = Tar::header(EntryType::Regular, b"old/", b"", 0);
    old.as_old_mut().linkflag = [0];
    old.set_cksum();
    let smuggled = Tar::default().file("smuggled", "x").end();
    vec![
        refused("no name", root, Tar::default().file("", "x").end()),
        refused(
            "a file as the root",
            root,
            Tar::default().file(".", "x").end(),
        ),
        refused("a link as the root", root, {
            Tar::default().symlink("./", "/outside").end()
        }),
        refused("a file as the root by detour", root, {
            Tar::default().file("a/..", "x").end()
        }),
        refused("a NUL in a name", "impossible name", pax(b"a\0b")),
        refused("a name of 256 bytes", "impossible name", pax(&[b'n'; 256])),
        refused(
            "a path of 4097 bytes",
            "bytes of path",
            pax(&b"d/".repeat(2049)),
        ),
        refused("a file as a directory", "making the directory", {
            Tar::default().file("f", "x").file("f/below", "x").end()
        }),
        confined(
            "a name of 255 bytes",
            pax(&[b'n'; 255]),
            vec![Absent("innocent")],
        ),
        confined(
            "names that terminals obey",
            Tar::default()
                .file("a\nb", "x")
                .file("\x1b[2J", "x")
                .file("back\\..\\slash", "x")
                .end(),
            vec![
                File("a\nb", "x"),
                File("\x1b[2J", "x"),
                File("back\\..\\slash", "x"),
            ],
        ),
        confined("a name that is no UTF-8", pax(b"\xff\xfe"), Vec::new()),
        confined(
            "a file that calls itself a directory",
            Tar::default()
                .entry(EntryType::Regular, "f/", "", &smuggled)
                .file("after", "x")
                .end(),
            vec![Size("f", 2048), Absent("smuggled"), File("after", "x")],
        ),
        confined(
            "a directory of the age before directories",
            Tar::default().raw(&old, b"").file("old/f", "x").end(),
            vec![Dir("old"), File("old/f", "x")],
        ),
    ]
}
