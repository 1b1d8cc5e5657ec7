//! Every way in which a layer can differ from its list, made on real trees.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use super::*;

struct Layer {
    _tmp: tempfile::TempDir,
    fs: PathBuf,
    list: PathBuf,
}

impl Layer {
    /// Files of every kind, some with several names, attributes or awkward names.
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let fs = tmp.path().join("fs");
        fs::create_dir_all(fs.join("bin/deep")).unwrap();
        fs::write(fs.join("bin/one"), vec![7; 300_000]).unwrap();
        fs::hard_link(fs.join("bin/one"), fs.join("bin/two")).unwrap();
        fs::hard_link(fs.join("bin/one"), fs.join("three")).unwrap();
        fs::write(fs.join("bin/deep/file"), "content").unwrap();
        fs::write(fs.join("odd \n\\name"), "x").unwrap();
        fs::write(
            fs.join("bin-"),
            "sorts between a directory and what is in it",
        )
        .unwrap();
        symlink("bin/one", fs.join("link")).unwrap();
        let dir = File::open(&fs).unwrap();
        let null = rustix::fs::makedev(0, 0);
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(&dir, "gone", FileType::CharacterDevice, mode, null).unwrap();
        rustix::fs::mknodat(&dir, "fifo", FileType::Fifo, mode, null).unwrap();
        xattr::set_at(&dir, b"three", b"user.note", b"value").unwrap();
        xattr::set_at(&dir, b"bin", b"trusted.overlay.opaque", b"y").unwrap();
        xattr::set_at(&dir, b"link", b"trusted.note", b"on a link").unwrap();
        let list = tmp.path().join("seal");
        Self {
            _tmp: tmp,
            fs,
            list,
        }
    }

    fn sealed() -> (Self, Seal) {
        let layer = Self::new();
        let seal = write(&layer.fs, &layer.list, &Contents::default()).unwrap();
        (layer, seal)
    }

    fn compare(&self, depth: Depth) -> Compared {
        compare(&self.fs, &self.list, depth).unwrap()
    }
}

#[test]
fn a_layer_that_has_not_changed_is_whole() {
    let (layer, seal) = Layer::sealed();
    assert_eq!(seal.entries, 12);
    assert_eq!(digest_of(&layer.list).unwrap(), seal);
    let again = layer.list.with_extension("again");
    assert_eq!(
        write(&layer.fs, &again, &Contents::default()).unwrap(),
        seal,
        "the same list"
    );
    let whole = layer.compare(Depth::Whole);
    assert!(whole.is_whole(), "{:?}", whole.differences);
    assert_eq!(whole.entries, 12);
    assert!(whole.bytes_read > 300_000 && whole.bytes_read < 600_000);
    let quick = layer.compare(Depth::Quick);
    assert!(quick.is_whole(), "{:?}", quick.differences);
    assert_eq!(quick.bytes_read, 0);
}

/// A change, what the check says of it, and whether a quick one says it too.
type Case = (&'static str, fn(&Path), &'static str, bool);

const CHANGES: &[Case] = &[
    (
        "a changed byte, with size and time as before",
        |fs| {
            let path = fs.join("bin/deep/file");
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "Content").unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(before).unwrap();
        },
        "/bin/deep/file: its content changed",
        false,
    ),
    (
        "a longer file",
        |fs| fs::write(fs.join("bin/deep/file"), "content and more").unwrap(),
        "/bin/deep/file: its size was 7 and is 16",
        true,
    ),
    (
        "a missing file",
        |fs| fs::remove_file(fs.join("bin/deep/file")).unwrap(),
        "/bin/deep/file is gone",
        true,
    ),
    (
        "the last entry is missing",
        |fs| fs::remove_file(fs.join("three")).unwrap(),
        "/three is gone",
        true,
    ),
    (
        "an extra file",
        |fs| fs::write(fs.join("bin/extra"), "").unwrap(),
        "/bin/extra is not listed",
        true,
    ),
    (
        "an extra file at the end",
        |fs| fs::write(fs.join("zzz"), "").unwrap(),
        "/zzz is not listed",
        true,
    ),
    (
        "another mode",
        |fs| fs::set_permissions(fs.join("bin-"), Permissions::from_mode(0o4755)).unwrap(),
        "/bin-: its mode was 644 and is 4755",
        true,
    ),
    (
        "another owner",
        |fs| chown(fs.join("bin-"), Some(5), None).unwrap(),
        "/bin-: its owner was 0 and is 5",
        true,
    ),
    (
        "a lost attribute",
        |fs| rustix::fs::removexattr(fs.join("three"), "user.note").unwrap(),
        "/bin/one: its attributes changed",
        true,
    ),
    (
        "an attribute of a symlink",
        |fs| rustix::fs::lremovexattr(fs.join("link"), "trusted.note").unwrap(),
        "/link: its attributes changed",
        true,
    ),
    (
        "another target",
        |fs| {
            fs::remove_file(fs.join("link")).unwrap();
            symlink("bin/two", fs.join("link")).unwrap();
        },
        "/link: its ",
        true,
    ),
    (
        "a link that became a file of its own",
        |fs| {
            fs::remove_file(fs.join("bin/two")).unwrap();
            fs::write(fs.join("bin/two"), vec![7; 300_000]).unwrap();
        },
        "/bin/two: its kind was h and is f",
        true,
    ),
    (
        "a directory in the place of a file",
        |fs| {
            fs::remove_file(fs.join("odd \n\\name")).unwrap();
            fs::create_dir(fs.join("odd \n\\name")).unwrap();
        },
        "/odd \\n\\\\name: its kind was f and is d",
        true,
    ),
    (
        "the root's own mode",
        |fs| fs::set_permissions(fs, Permissions::from_mode(0o700)).unwrap(),
        "/: its mode was 755 and is 700",
        true,
    ),
];

#[test]
fn every_change_is_found_and_named() {
    for (what, change, told, quick_too) in CHANGES {
        let (layer, _) = Layer::sealed();
        change(&layer.fs);
        for depth in [Depth::Whole, Depth::Quick] {
            let compared = layer.compare(depth);
            // The time of a directory changes with its entries; that is told as well.
            let found = compared
                .differences
                .iter()
                .any(|text| text.starts_with(told));
            let expected = depth == Depth::Whole || *quick_too;
            assert_eq!(
                found, expected,
                "{what}: {depth:?}: {:?}",
                compared.differences
            );
        }
    }
}

#[test]
fn a_whole_directory_that_is_gone_is_told_in_few_lines() {
    let (layer, _) = Layer::sealed();
    for number in 0..50 {
        fs::write(layer.fs.join(format!("bin/deep/{number}")), "").unwrap();
    }
    write(&layer.fs, &layer.list, &Contents::default()).unwrap();
    fs::remove_dir_all(layer.fs.join("bin/deep")).unwrap();
    let compared = layer.compare(Depth::Quick);
    assert_eq!(compared.differences.len(), TOLD);
    assert!(compared.more >= 42, "{}", compared.more);
}

#[test]
fn a_list_that_is_no_list_is_an_error_and_no_panic() {
    let (layer, _) = Layer::sealed();
    for text in [
        "",
        "x",
        "f 1 2\n",
        "d 755 0 0 0 0.0 0 0 0 ",
        "\n\n",
        "a b c d e f g h i\n",
    ] {
        fs::write(&layer.list, text).unwrap();
        let compared = compare(&layer.fs, &layer.list, Depth::Quick);
        assert!(
            compared.is_err() || !compared.unwrap().is_whole(),
            "{text:?}"
        );
    }
    fs::remove_file(&layer.list).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &layer.list, Mode::from_raw_mode(0o600)).unwrap();
    let _held = File::options()
        .read(true)
        .write(true)
        .open(&layer.list)
        .unwrap();
    assert!(digest_of(&layer.list).is_err());
}
