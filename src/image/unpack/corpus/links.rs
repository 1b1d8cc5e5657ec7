//! Links that want to lead somewhere else.

use tar::EntryType;

use super::super::super::testing::Tar;
use super::Fact::{Absent, Dir, File, Link, Same};
use super::{Attack, confined, refused};

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = symbolic();
    all.extend(swapped());
    all.extend(hard());
    all
}

fn symbolic() -> Vec<Attack> {
    let through = |target: &str, name: &str| {
        let path = format!("s/{name}");
        Tar::default()
            .symlink("s", target)
            .file(&path, "planted")
            .end()
    };
    let long = |length: usize| {
        Tar::default()
            .pax(&[("linkpath", &vec![b't'; length])])
            .symlink("s", "t")
            .end()
    };
    vec![
        confined(
            "through a link that leads up",
            through("../../..", "outside/planted"),
            vec![File("outside/planted", "planted")],
        ),
        confined(
            "through an absolute link",
            through("/tmp", "quilt-corpus-planted"),
            vec![File("tmp/quilt-corpus-planted", "planted")],
        ),
        confined(
            "through a link of the proc file system",
            through("/proc/self/root/tmp", "quilt-corpus-planted"),
            vec![File("proc/self/root/tmp/quilt-corpus-planted", "planted")],
        ),
        confined(
            "through a link into a link",
            Tar::default()
                .symlink("a", "b/../../outside")
                .symlink("b", "/")
                .file("a/planted", "planted")
                .end(),
            vec![File("outside/planted", "planted")],
        ),
        confined(
            "over a link, by its name",
            Tar::default()
                .symlink("s", "../outside/secret")
                .file("s", "planted")
                .end(),
            vec![File("s", "planted")],
        ),
        refused("a link to itself", "making the directory", {
            through("s", "f")
        }),
        refused("a link without a target", "making symlink", {
            Tar::default().symlink("s", "").end()
        }),
        refused("a NUL in a target", "making symlink", {
            Tar::default()
                .pax(&[("linkpath", b"a\0b")])
                .symlink("s", "t")
                .end()
        }),
        refused("a target of 4097 bytes", "bytes of path", long(4097)),
        refused(
            "a target too long for the kernel",
            "making symlink",
            long(4096),
        ),
    ]
}

fn swapped() -> Vec<Attack> {
    vec![
        confined(
            "a directory that becomes a link",
            Tar::default()
                .dir("d/")
                .file("d/secret", "x")
                .symlink("d", "../outside")
                .file("d/secret", "planted")
                .end(),
            vec![Link("d", "../outside"), File("outside/secret", "planted")],
        ),
        confined(
            "a directory that becomes a link before its time is set",
            Tar::default()
                .dir("a/")
                .dir("a/b/")
                .symlink("a", "/outside")
                .end(),
            vec![Link("a", "/outside")],
        ),
        confined(
            "a link that becomes a directory",
            Tar::default()
                .symlink("d", "../outside")
                .dir("d/")
                .file("d/planted", "x")
                .end(),
            vec![Dir("d"), File("d/planted", "x"), Absent("outside")],
        ),
        confined(
            "a link that becomes a link",
            Tar::default()
                .dir("in/")
                .symlink("s", "in")
                .file("s/a", "x")
                .symlink("s", "../outside")
                .file("s/planted", "x")
                .end(),
            vec![File("in/a", "x"), File("outside/planted", "x")],
        ),
        confined(
            "a file that becomes a device and a fifo",
            Tar::default()
                .file("f", "x")
                .entry(EntryType::Fifo, "f", "", b"")
                .file("f", "y")
                .end(),
            vec![File("f", "y")],
        ),
        confined(
            "a full directory that becomes a file",
            Tar::default().file("d/e/f", "x").file("d", "y").end(),
            vec![File("d", "y")],
        ),
    ]
}

fn hard() -> Vec<Attack> {
    let to = |target: &str| Tar::default().link("h", target).end();
    let out = "hard link that leads out";
    vec![
        refused("a hard link up", out, to("../outside/secret")),
        refused("a hard link absolute and up", out, to("/../outside/secret")),
        refused("a hard link to the root", out, to("/")),
        refused("a hard link to nothing", out, to("")),
        refused("a hard link to a directory", "linking entry", {
            Tar::default().dir("d/").link("h", "d").end()
        }),
        refused("a hard link target of 4097 bytes", "bytes of path", {
            Tar::default()
                .pax(&[("linkpath", &b"t/".repeat(2049))])
                .link("h", "t")
                .end()
        }),
        confined(
            "a hard link to a file of the node",
            to("/etc/passwd"),
            vec![Absent("h")],
        ),
        confined(
            "a hard link to a link, and then over it",
            Tar::default()
                .symlink("s", "/etc/passwd")
                .link("h", "s")
                .file("h", "planted")
                .end(),
            vec![Link("s", "/etc/passwd"), File("h", "planted")],
        ),
        confined(
            "a hard link through a link that leads up",
            Tar::default()
                .symlink("up", "../..")
                .link("h", "up/outside/secret")
                .end(),
            vec![Absent("h")],
        ),
        confined(
            "a hard link to what the layer deletes",
            Tar::default().file(".wh.gone", "").link("h", "gone").end(),
            vec![Absent("h")],
        ),
        confined(
            "a hard link to itself",
            Tar::default().file("f", "x").link("f", "f").end(),
            vec![File("f", "x")],
        ),
        confined(
            "writing into one name of a file with two",
            Tar::default()
                .file("f", "x")
                .link("h", "f")
                .link("i", "h")
                .file("f", "y")
                .end(),
            vec![File("f", "y"), File("h", "x"), Same("h", "i")],
        ),
    ]
}
