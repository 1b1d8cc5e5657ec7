//! Small archives that would become large, and cheap ones that would become dear.

use tar::EntryType;

use super::super::super::testing::{Tar, gzip};
use super::super::Limits;
use super::{Attack, refused};

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = size();
    all.extend(work());
    all
}

fn limited(mut attack: Attack, limits: Limits) -> Attack {
    attack.limits = limits;
    attack
}

fn size() -> Vec<Attack> {
    let zeros = Tar::default()
        .entry(EntryType::Regular, "zeros", "", &vec![0; 2 << 20])
        .end();
    let small = || Limits {
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    let ratio = || Limits {
        ratio: 10,
        ratio_from_bytes: 100_000,
        ..Limits::default()
    };
    let packed = zstd::encode_all(&zeros[..], 3).expect("to memory");
    let (tight, many_times) = ("bytes", "times its compressed size");
    let holes = (0..3).fold(Tar::default(), |tar, n| {
        let name = format!("hole{n}");
        tar.pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"500000")])
            .file(&name, "x")
    });
    vec![
        limited(
            refused("a file over the limit", tight, zeros.clone()),
            small(),
        ),
        limited(refused("zeros in zstd", many_times, packed), ratio()),
        limited(refused("zeros in gzip", many_times, gzip(&zeros)), ratio()),
        limited(
            refused("zeros after the end", "bytes unpacked", {
                Tar::default().zeros(3 << 20).end()
            }),
            small(),
        ),
        limited(
            refused("holes over the limit", "bytes of files", holes.end()),
            small(),
        ),
    ]
}

fn work() -> Vec<Attack> {
    let many = (0..101).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""));
    let same = (0..101).fold(Tar::default(), |tar, _| tar.file("f", ""));
    let keys: Vec<String> = (0..257)
        .map(|n| format!("SCHILY.xattr.user.n{n}"))
        .collect();
    let attributes: Vec<(&str, &[u8])> = keys.iter().map(|k| (k.as_str(), &b"x"[..])).collect();
    let detour = "d/../".repeat(700) + "d";
    let mazes = (0..20).fold(
        Tar::default()
            .dir("d/")
            .pax(&[("linkpath", detour.as_bytes())])
            .symlink("maze", "d"),
        |tar, n| tar.file(&format!("maze/{n}/f"), ""),
    );
    let lengthy = (0..20).fold(Tar::default(), |tar, n| {
        tar.dir(&format!("{}{n:04}/", "n".repeat(80)))
    });
    let implied = (0..20).fold(Tar::default(), |tar, n| {
        tar.file(&format!("{}{n:04}/f", "n".repeat(80)), "")
    });
    let few = || Limits {
        entries: 100,
        depth: 10,
        lookups: 5000,
        kept_name_bytes: 1000,
        ..Limits::default()
    };
    vec![
        limited(
            refused("entries over the limit", "100 entries", many.end()),
            few(),
        ),
        limited(
            refused("one name again and again", "100 entries", same.end()),
            few(),
        ),
        limited(
            refused("directories in directories", "levels of directories", {
                Tar::default().file(&"d/".repeat(11), "").end()
            }),
            few(),
        ),
        refused("attributes over the limit", "256 extended attributes", {
            Tar::default().pax(&attributes).file("f", "").end()
        }),
        limited(
            refused("links through a maze", "names behind symlinks", mazes.end()),
            few(),
        ),
        limited(
            refused("directories to remember", "bytes of directory names", {
                lengthy.end()
            }),
            few(),
        ),
        limited(
            refused("directories to make", "bytes of directory names", {
                implied.end()
            }),
            few(),
        ),
    ]
}
