//! Headers that lie, and such as two readers read differently.

use tar::EntryType;

use super::super::super::testing::Tar;
use super::Fact::{Absent, File, Size};
use super::{Attack, confined, refused};

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = damaged();
    all.extend(sizes());
    all.extend(records());
    all.extend(ambiguous());
    all
}

fn damaged() -> Vec<Attack> {
    let good = Tar::default().file("a", "hello").file("b", "x").end();
    let mut checksum = good.clone();
    checksum[3] ^= 1;
    let other = |kind: u8| {
        Tar::default()
            .entry(EntryType::new(kind), "a", "", b"")
            .end()
    };
    vec![
        refused("a wrong checksum", "checksum does not match", checksum),
        refused("no archive at all", "header", b"<html>".repeat(100)),
        refused(
            "cut in a header",
            "reading the archive",
            good[..300].to_vec(),
        ),
        refused(
            "cut in the data",
            "reading the archive",
            good[..514].to_vec(),
        ),
        refused(
            "cut after the data",
            "reading the archive",
            good[..600].to_vec(),
        ),
        refused("an end in the middle", "checksum does not match", {
            Tar::default()
                .file("a", "x")
                .zeros(512)
                .file("b", "x")
                .end()
        }),
        confined(
            "no end",
            good[..2048].to_vec(),
            vec![File("a", "hello"), File("b", "x")],
        ),
        confined(
            "entries after the end",
            Tar::default()
                .file("a", "x")
                .zeros(1024)
                .file("b", "x")
                .end(),
            vec![File("a", "x"), Absent("b")],
        ),
        refused("a part of a volume", "entry type 'M'", other(b'M')),
        refused("a volume label", "entry type 'V'", other(b'V')),
        refused("a dump of a directory", "entry type 'D'", other(b'D')),
    ]
}

fn sizes() -> Vec<Attack> {
    let sized = |size: [u8; 12]| {
        let mut header = Tar::header(EntryType::Regular, b"f", b"", 0);
        header.as_old_mut().size = size;
        header.set_cksum();
        Tar::default().raw(&header, b"").file("smuggled", "x").end()
    };
    let inner = Tar::default().file("smuggled", "x").end();
    vec![
        refused(
            "a negative size",
            "field size is malformed",
            sized([0xff; 12]),
        ),
        refused("a size beyond 64 bits", "field size is malformed", {
            sized([0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        }),
        refused("a size of 4 EiB", "bytes of files", {
            sized([0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0])
        }),
        refused("a size behind NULs", "field size is malformed", {
            sized(*b"\0\0\0\x000002000\0")
        }),
        refused("a size that is no number", "field size is malformed", {
            sized(*b"0x0000000200")
        }),
        confined(
            "two sizes, the larger in PAX",
            Tar::default()
                .pax(&[("size", inner.len().to_string().as_bytes())])
                .raw(&Tar::header(EntryType::Regular, b"f", b"", 0), &inner)
                .file("after", "x")
                .end(),
            vec![Size("f", 2048), Absent("smuggled"), File("after", "x")],
        ),
        confined(
            "a link that claims data",
            Tar::default()
                .raw(&Tar::header(EntryType::Symlink, b"s", b"t", 1 << 30), b"")
                .file("after", "x")
                .end(),
            vec![File("after", "x")],
        ),
    ]
}

fn records() -> Vec<Attack> {
    let extended = |data: &[u8]| {
        Tar::default()
            .entry(EntryType::XHeader, "pax", "", data)
            .file("f", "x")
            .end()
    };
    let huge = |kind: EntryType, size: u64| {
        Tar::default()
            .raw(&Tar::header(kind, b"pax", b"", size), b"")
            .end()
    };
    let bad = "PAX record is malformed";
    let large = "extension header of";
    vec![
        refused(
            "a record longer than its header",
            bad,
            extended(b"99 path=x\n"),
        ),
        refused("a record of no length", bad, extended(b"0 path=x\n")),
        refused("a record of negative length", bad, extended(b"-9 path=x\n")),
        refused("a record without a value", bad, extended(b"8 path\n\n")),
        refused("a record without an end", bad, extended(b"9 path=xy")),
        refused("a record whose length is a novel", bad, {
            extended(b"000000000000000000000010 path=x\n")
        }),
        refused(
            "a header of 1 TiB",
            large,
            huge(EntryType::XHeader, 1 << 40),
        ),
        refused(
            "a global header of 1 TiB",
            large,
            huge(EntryType::XGlobalHeader, 1 << 40),
        ),
        refused(
            "a long name of 1 TiB",
            large,
            huge(EntryType::GNULongName, 1 << 40),
        ),
        refused(
            "a long link of 1 TiB",
            large,
            huge(EntryType::GNULongLink, 1 << 40),
        ),
        refused("a header that is cut", "reading the archive", {
            huge(EntryType::XHeader, 4096)
        }),
        confined(
            "a name for all",
            Tar::default()
                .entry(EntryType::XGlobalHeader, "g", "", b"16 path=planted\n")
                .file("a", "x")
                .end(),
            vec![File("a", "x"), Absent("planted")],
        ),
        confined(
            "a name given and taken back",
            extended(b"16 path=planted\n8 path=\n"),
            vec![File("f", "x"), Absent("planted")],
        ),
    ]
}

fn ambiguous() -> Vec<Attack> {
    let two_ways = "read in two ways";
    let name = |tar: Tar, name: &str| tar.entry(EntryType::GNULongName, "L", "", name.as_bytes());
    let crowd = (0..9).fold(Tar::default(), |tar, n| name(tar, &format!("n{n}")));
    vec![
        refused("two names, PAX and GNU", two_ways, {
            name(Tar::default().pax(&[("path", b"a")]), "b")
                .file("f", "x")
                .end()
        }),
        refused("two targets, PAX and GNU", two_ways, {
            Tar::default()
                .entry(EntryType::GNULongLink, "K", "", b"b")
                .pax(&[("linkpath", b"a")])
                .symlink("s", "t")
                .end()
        }),
        refused("two PAX headers", two_ways, {
            Tar::default()
                .pax(&[("path", b"a")])
                .pax(&[("uid", b"7")])
                .file("f", "x")
                .end()
        }),
        refused("a global header in between", two_ways, {
            Tar::default()
                .pax(&[("path", b"a")])
                .entry(EntryType::XGlobalHeader, "g", "", b"")
                .file("f", "x")
                .end()
        }),
        refused("nine names", two_ways, crowd.file("f", "x").end()),
        confined(
            "one name twice",
            name(Tar::default().pax(&[("path", b"a")]), "a")
                .file("f", "x")
                .end(),
            vec![File("a", "x"), Absent("f")],
        ),
    ]
}
