//! Owners, modes, times, extended attributes and device nodes.

use tar::EntryType;

use super::super::super::testing::Tar;
use super::Fact::{Absent, Deleted, File, Mode, NoAttribute, Time};
use super::{Attack, confined, refused};

pub(super) fn attacks() -> Vec<Attack> {
    let mut all = nodes();
    all.extend(labels());
    all.extend(numbers());
    all
}

fn nodes() -> Vec<Attack> {
    let node = |kind: EntryType, major: u32, minor: u32| {
        let mut header = Tar::header(kind, b"node", b"", 0);
        header.set_mode(0o666);
        header.set_device_major(major).expect("fits");
        header.set_device_minor(minor).expect("fits");
        header.set_cksum();
        Tar::default().raw(&header, b"")
    };
    let mut beyond = Tar::header(EntryType::Char, b"node", b"", 0);
    if let Some(ustar) = beyond.as_ustar_mut() {
        ustar.dev_major = [0x80, 0, 0, 1, 0, 0, 0, 0];
    }
    beyond.set_cksum();
    vec![
        refused("a deletion as a device", "deletion in disguise", {
            node(EntryType::Char, 0, 0).end()
        }),
        confined(
            "a disk",
            node(EntryType::Block, 8, 0).end(),
            vec![Deleted("node")],
        ),
        confined(
            "memory",
            node(EntryType::Char, 1, 1).end(),
            vec![Deleted("node")],
        ),
        confined(
            "a disk in the place of a file, and a file again",
            node(EntryType::Block, 259, 0).file("node", "x").end(),
            vec![File("node", "x")],
        ),
        confined(
            "a hard link to a disk",
            node(EntryType::Block, 8, 0).link("h", "node").end(),
            vec![Deleted("node"), Absent("h")],
        ),
        confined(
            "the null device",
            node(EntryType::Char, 1, 3).end(),
            vec![Mode("node", 0o666)],
        ),
        refused("a device number that does not fit", "device number", {
            Tar::default().raw(&beyond, b"").end()
        }),
    ]
}

fn labels() -> Vec<Attack> {
    const STEERING: [&str; 8] = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "trusted.overlay.whiteout",
        "trusted.overlay.overlay.opaque",
        "user.overlay.opaque",
        "security.selinux",
        "security.ima",
    ];
    let keys: Vec<String> = STEERING
        .iter()
        .map(|name| format!("SCHILY.xattr.{name}"))
        .collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"y"[..])).collect();
    let gone = |path| STEERING.map(|name| NoAttribute(path, name)).into();
    let with = |name: &str, value: &[u8]| {
        let key = format!("SCHILY.xattr.{name}");
        Tar::default().pax(&[(&key, value)]).file("f", "x").end()
    };
    let long = format!("user.{}", "n".repeat(300));
    vec![
        confined(
            "steering overlayfs by a directory",
            Tar::default().pax(&records).dir("d/").end(),
            gone("d"),
        ),
        confined(
            "steering overlayfs by a file",
            Tar::default().pax(&records).file("f", "x").end(),
            gone("f"),
        ),
        confined(
            "steering overlayfs by the root",
            Tar::default().pax(&records).dir("./").end(),
            gone("."),
        ),
        confined(
            "an attribute with a NUL in its name",
            with("user.a\0b", b"x"),
            vec![NoAttribute("f", "user.a")],
        ),
        confined(
            "an attribute of no known kind",
            with("nonsense", b"x"),
            vec![File("f", "x")],
        ),
        refused("capabilities that are none", "setting attributes", {
            with("security.capability", b"all of them")
        }),
        refused("an attribute of 64 KiB and one", "setting attributes", {
            with("user.big", &[1; (64 << 10) + 1])
        }),
        refused(
            "an attribute with a name of 300 bytes",
            "setting attributes",
            with(&long, b"x"),
        ),
    ]
}

fn numbers() -> Vec<Attack> {
    let pax = |key: &str, value: &[u8]| Tar::default().pax(&[(key, value)]).file("f", "x").end();
    let mut setuid = Tar::header(EntryType::Regular, b"f", b"", 0);
    setuid.set_mode(0o106_755);
    setuid.set_uid(7);
    setuid.set_cksum();
    let mut early = Tar::header(EntryType::Regular, b"f", b"", 0);
    early.as_old_mut().mtime = [0xff; 12];
    early.set_cksum();
    let mut ids = Tar::header(EntryType::Regular, b"f", b"", 0);
    ids.as_old_mut().uid = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    ids.set_cksum();
    let owner = "has an owner outside";
    let far = pax("mtime", b"9223372036854775807.999999999");
    vec![
        refused("an owner that means none", owner, pax("uid", b"4294967295")),
        refused(
            "a group beyond all",
            owner,
            pax("gid", b"18446744073709551"),
        ),
        refused("a negative owner", "PAX record", pax("uid", b"-1")),
        refused("an owner that means none, in binary", owner, {
            Tar::default().raw(&ids, b"").end()
        }),
        refused(
            "a time that is no number",
            "PAX record",
            pax("mtime", b"now"),
        ),
        confined("the last second of all", far, vec![File("f", "x")]),
        confined(
            "a second before 1970",
            Tar::default().raw(&early, b"").end(),
            vec![Time("f", -1)],
        ),
        confined(
            "a file type among the permissions",
            Tar::default().raw(&setuid, b"").end(),
            vec![Mode("f", 0o6755)],
        ),
    ]
}
