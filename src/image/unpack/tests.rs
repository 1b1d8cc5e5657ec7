//! Layers good and hostile, unpacked for real.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use tar::EntryType;

use super::super::testing::Tar;
use super::*;
use crate::sys::overlay::OPAQUE;
use crate::sys::xattr;

struct Layer {
    tmp: tempfile::TempDir,
    result: Result<Unpacked, UnpackError>,
}

impl Layer {
    fn of(archive: &[u8]) -> Self {
        Self::limited(archive, &Limits::default())
    }

    fn limited(archive: &[u8], limits: &Limits) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("fs")).unwrap();
        fs::create_dir(tmp.path().join("outside")).unwrap();
        fs::write(tmp.path().join("outside/secret"), "secret").unwrap();
        let taken = AtomicU64::new(archive.len() as u64);
        let into = tmp.path().join("fs");
        let result = unpack(archive, &taken, &into, Algorithm::Sha256, limits, || ());
        Self { tmp, result }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.tmp.path().join("fs").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn meta(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(name)).unwrap()
    }

    fn ok(self) -> Self {
        if let Err(error) = &self.result {
            panic!("{error}: {error:?}");
        }
        self
    }

    fn refused(&self) -> String {
        let error = self.result.as_ref().expect_err("was accepted");
        let outside = fs::read_dir(self.tmp.path().join("outside"))
            .unwrap()
            .count();
        assert_eq!(outside, 1, "something was written outside");
        assert_eq!(
            fs::read_to_string(self.tmp.path().join("outside/secret")).unwrap(),
            "secret"
        );
        error.to_string()
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let meta = self.meta(name);
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn is_opaque(&self, name: &str) -> bool {
        let dir = fs::File::open(self.path(name)).unwrap();
        xattr::get(&dir, OPAQUE).unwrap().as_deref() == Some(b"y")
    }
}

#[test]
fn every_kind_of_entry_arrives_with_its_attributes() {
    let mut setuid = Tar::header(EntryType::Regular, b"bin/su", b"", 3);
    setuid.set_mode(0o4755);
    setuid.set_uid(1000);
    setuid.set_gid(65_534);
    setuid.set_cksum();
    let mut node = Tar::header(EntryType::Char, b"null", b"", 0);
    node.set_device_major(1).unwrap();
    node.set_device_minor(3).unwrap();
    node.set_cksum();
    let mut dir = Tar::header(EntryType::Directory, b"tmp/", b"", 0);
    dir.set_mode(0o1777);
    dir.set_cksum();
    let archive = Tar::default()
        .dir("./")
        .raw(&setuid, b"abc")
        .raw(&dir, b"")
        .file("tmp/later", "x")
        .symlink("sh", "bin/su")
        .link("su2", "bin/su")
        .raw(&node, b"")
        .entry(EntryType::Fifo, "pipe", "", b"")
        .end();
    let layer = Layer::of(&archive).ok();
    let su = layer.meta("bin/su");
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid()),
        (0o4755, 1000, 65_534)
    );
    assert_eq!(su.mtime(), 1_000_000);
    assert_eq!(layer.meta("su2").ino(), su.ino());
    assert_eq!(
        fs::read_link(layer.path("sh")).unwrap().to_str(),
        Some("bin/su")
    );
    assert_eq!(layer.meta("sh").mtime(), 1_000_000);
    assert_eq!(layer.meta("null").rdev(), rustix::fs::makedev(1, 3));
    assert!(layer.meta("pipe").file_type().is_fifo());
    let tmp = layer.meta("tmp");
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 1_000_000));
    let unpacked = layer.result.as_ref().unwrap();
    assert_eq!(unpacked.diff_id, Digest::sha256(&archive));
    assert_eq!(unpacked.unsettled.implicit, [b"bin".to_vec()]);
}

#[test]
fn gzip_zstd_and_plain_give_the_same_layer() {
    let archive = Tar::default().file("a/b", "hello").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    let zstd = zstd::encode_all(&archive[..], 3).unwrap();
    for bytes in [gzip.finish().unwrap(), zstd, archive.clone()] {
        let layer = Layer::of(&bytes).ok();
        assert_eq!(layer.text("a/b"), "hello");
        assert_eq!(layer.result.unwrap().diff_id, Digest::sha256(&archive));
    }
}

#[test]
fn bytes_after_the_archive_count_in_the_diff_id() {
    let mut archive = Tar::default().file("a", "x").end();
    archive.extend_from_slice(&[0; 9000]);
    let layer = Layer::of(&archive).ok();
    assert_eq!(layer.result.unwrap().diff_id, Digest::sha256(&archive));
}

#[test]
fn pax_carries_long_names_ids_times_and_binary_attributes() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let archive = Tar::default()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"3000000"),
            ("mtime", b"12.5"),
            ("SCHILY.xattr.user.note", b"a\nb\0c"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .file("short", "data")
        .end();
    let layer = Layer::of(&archive).ok();
    assert_eq!(layer.text(&long), "data");
    let meta = layer.meta(&long);
    assert_eq!(
        (meta.uid(), meta.mtime(), meta.mtime_nsec()),
        (3_000_000, 12, 500_000_000)
    );
    let file = fs::File::open(layer.path(&long)).unwrap();
    assert_eq!(
        xattr::get(&file, b"user.note").unwrap().unwrap(),
        b"a\nb\0c"
    );
    assert_eq!(
        xattr::get(&file, b"trusted.overlay.redirect").unwrap(),
        None
    );
    assert_eq!(xattr::get(&file, OPAQUE).unwrap(), None);
}

#[test]
fn file_capabilities_survive() {
    // vfs_cap_data, revision 2, CAP_NET_RAW permitted (linux/capability.h).
    let mut capability = vec![0x01, 0, 0, 0x02];
    capability.extend_from_slice(&(1u32 << 13).to_le_bytes());
    capability.extend_from_slice(&[0; 12]);
    let mut owned = Tar::header(EntryType::Regular, b"ping", b"", 1);
    owned.set_uid(5);
    owned.set_cksum();
    let archive = Tar::default()
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .raw(&owned, b"x")
        .end();
    let layer = Layer::of(&archive).ok();
    let file = fs::File::open(layer.path("ping")).unwrap();
    assert_eq!(
        xattr::get(&file, b"security.capability").unwrap().unwrap(),
        capability
    );
}

#[test]
fn real_tars_of_gnu_tar_unpack_to_what_was_packed() {
    let tmp = tempfile::tempdir().unwrap();
    let tree = tmp.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    for at in [0u64, 1 << 20, 5 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", at).unwrap();
    }
    sparse.set_len(9 << 20).unwrap();
    fs::write(tree.join("n".repeat(180)), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(150), tree.join("link")).unwrap();
    for format in [
        "--format=gnu",
        "--format=pax",
        "--sparse-version=0.0",
        "--sparse-version=0.1",
    ] {
        let output = std::process::Command::new("tar")
            .args(["-c", "--sparse", "--format=pax", format, "-C"])
            .arg(&tree)
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let layer = Layer::of(&output.stdout).ok();
        assert_eq!(
            fs::read(layer.path("sparse")).unwrap(),
            fs::read(tree.join("sparse")).unwrap()
        );
        assert!(
            layer.meta("sparse").blocks() < 200,
            "{format}: holes were filled"
        );
        assert_eq!(layer.text(&"n".repeat(180)), "long");
        assert_eq!(
            fs::read_link(layer.path("link")).unwrap().as_os_str().len(),
            150
        );
    }
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let archive = Tar::default()
        .file("etc/.wh.passwd", "")
        .dir("var/")
        .file("var/.wh..wh..opq", "")
        .file("var/new", "x")
        .file(".wh..wh.plnk", "")
        .file("own", "kept")
        .file(".wh.own", "")
        .dir("dir/")
        .file(".wh.dir", "")
        .file(".wh.again", "")
        .dir("again/")
        .file(".wh.deep", "")
        .file("deep/er/file", "x")
        .end();
    let layer = Layer::of(&archive).ok();
    assert!(layer.is_whiteout("etc/passwd"));
    assert!(layer.is_opaque("var") && layer.text("var/new") == "x");
    assert_eq!(layer.text("own"), "kept");
    for name in ["dir", "again", "deep"] {
        assert!(layer.is_opaque(name), "{name}");
    }
    assert!(!layer.is_opaque("etc"));
    assert_eq!(layer.text("deep/er/file"), "x");
    assert!(!layer.path(".wh..wh.plnk").exists());
}

#[test]
fn later_entries_replace_earlier_ones() {
    let archive = Tar::default()
        .file("a", "one")
        .file("a", "two")
        .dir("d/")
        .file("d/f", "kept")
        .dir("d/")
        .file("d2/sub/f", "gone")
        .file("d2", "file now")
        .symlink("s", "nowhere")
        .dir("s/")
        .file("s/in", "x")
        .link("l", "a")
        .link("l", "a")
        .link("a", "a")
        .end();
    let layer = Layer::of(&archive).ok();
    assert_eq!(layer.text("a"), "two");
    assert_eq!(layer.text("d/f"), "kept");
    assert_eq!(layer.text("d2"), "file now");
    assert!(layer.meta("s").is_dir() && layer.text("s/in") == "x");
    assert_eq!(layer.meta("l").nlink(), 2);
}

#[test]
fn writing_through_links_of_the_layer_stays_in_the_layer() {
    let archive = Tar::default()
        .dir("usr/lib/")
        .symlink("lib", "usr/lib")
        .file("lib/x", "x")
        .symlink("abs", "/usr")
        .file("abs/y", "y")
        .symlink("run", "/../../../tmp/qlt-image-none")
        .file("run/z", "z")
        .symlink("up", "../../..")
        .file("up/w", "w")
        .end();
    let layer = Layer::of(&archive).ok();
    assert_eq!(layer.text("usr/lib/x"), "x");
    assert_eq!(layer.text("usr/y"), "y");
    assert_eq!(layer.text("tmp/qlt-image-none/z"), "z");
    assert_eq!(layer.text("w"), "w");
    assert!(!std::path::Path::new("/tmp/qlt-image-none").exists());
}

#[test]
fn no_link_leads_out() {
    let swap = Tar::default()
        .dir("d/")
        .file("d/f", "1")
        .symlink("d", "../outside")
        .file("d/secret", "overwritten")
        .file("d/planted", "planted")
        .end();
    let layer = Layer::of(&swap).ok();
    assert_eq!(layer.text("outside/planted"), "planted");
    let secret = layer.tmp.path().join("outside/secret");
    assert_eq!(fs::read_to_string(secret).unwrap(), "secret");

    // A directory's time is set at the end, when its name may have become a link.
    let late = Tar::default()
        .dir("a/")
        .dir("a/b/")
        .symlink("a", "/outside")
        .end();
    Layer::of(&late).ok();

    for target in ["../outside/secret", "/../outside/secret", "..", "/", ""] {
        let error = Layer::of(&Tar::default().link("steal", target).end()).refused();
        assert!(error.contains("steal"), "{error}");
    }
    // Inside the layer there is no /etc/passwd; the link waits for the layers below.
    let layer = Layer::of(&Tar::default().link("steal", "/etc/passwd").end()).ok();
    assert!(!layer.path("steal").exists());
    assert_eq!(layer.result.unwrap().unsettled.links.len(), 1);
    // A link to a link to the outside is a link to the link, not to the outside.
    let two = Tar::default()
        .symlink("s", "/etc/passwd")
        .link("h", "s")
        .end();
    assert!(Layer::of(&two).ok().meta("h").file_type().is_symlink());
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../outside/planted",
        "a/../../outside/planted",
        "/../outside/planted",
        "..",
    ] {
        let error = Layer::of(&Tar::default().file(name, "x").end()).refused();
        assert!(error.contains("leads out"), "{error}");
    }
    for name in [".wh.", ".wh..", "a/.wh..."] {
        Layer::of(&Tar::default().file(name, "").end()).refused();
    }
    let absolute = Layer::of(&Tar::default().file("/etc/x", "x").end()).ok();
    assert_eq!(absolute.text("etc/x"), "x");
    Layer::of(&Tar::default().file(".", "x").end()).refused();
    Layer::of(
        &Tar::default()
            .file("file", "x")
            .file("file/below", "x")
            .end(),
    )
    .refused();
    Layer::of(
        &Tar::default()
            .symlink("loop", "loop")
            .file("loop/x", "x")
            .end(),
    )
    .refused();
    let owner = Tar::default()
        .pax(&[("uid", b"4294967295")])
        .file("a", "x")
        .end();
    Layer::of(&owner).refused();
}

#[test]
fn bombs_stop_at_the_limits() {
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        entries: 100,
        depth: 10,
        path_bytes: 300,
        ..Limits::default()
    };
    let big = Tar::default()
        .entry(EntryType::Regular, "zeros", "", &vec![0; 2 << 20])
        .end();
    let error = Layer::limited(&big, &limits).refused();
    assert!(error.contains("bytes"), "{error}");
    let ratio = Limits {
        ratio: 10,
        ratio_from_bytes: 100_000,
        ..Limits::default()
    };
    let packed = zstd::encode_all(&big[..], 3).unwrap();
    assert!(
        Layer::limited(&packed, &ratio)
            .refused()
            .contains("compressed size")
    );
    let mut trailing = Tar::default().end();
    trailing.resize(3 << 20, 0);
    assert!(
        Layer::limited(&trailing, &limits)
            .refused()
            .contains("bytes unpacked")
    );
    let many = (0..101)
        .fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""))
        .end();
    assert!(
        Layer::limited(&many, &limits)
            .refused()
            .contains("100 entries")
    );
    let deep = Tar::default().file(&"d/".repeat(11), "").end();
    assert!(Layer::limited(&deep, &limits).refused().contains("levels"));
    let long = Tar::default()
        .pax(&[("path", &[b'x'; 301])])
        .file("a", "")
        .end();
    assert!(
        Layer::limited(&long, &limits)
            .refused()
            .contains("bytes of path")
    );
    let mut huge = Tar::header(EntryType::XHeader, b"pax", b"", 1 << 40);
    huge.set_cksum();
    let layer = Layer::of(&Tar::default().raw(&huge, b"").end());
    let Err(UnpackError::Archive {
        source: ArchiveError::ExtensionTooLarge(size),
        ..
    }) = layer.result
    else {
        panic!("{:?}", layer.result);
    };
    assert_eq!(size, 1 << 40);
}

#[test]
fn damaged_archives_are_refused() {
    let good = Tar::default().file("a", "hello").end();
    for cut in [1, 511, 513, 600] {
        Layer::of(&good[..cut]).refused();
    }
    let mut bad = good.clone();
    bad[3] ^= 1;
    assert!(Layer::of(&bad).refused().contains("after entry"));
    let lone_zero_block = Tar::default()
        .file("a", "x")
        .zeros(512)
        .file("b", "x")
        .end();
    Layer::of(&lone_zero_block).refused();
    Layer::of(
        &Tar::default()
            .entry(EntryType::new(b'M'), "multi", "", b"")
            .end(),
    )
    .refused();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&good).unwrap();
    let gzip = gzip.finish().unwrap();
    Layer::of(&gzip[..gzip.len() - 9]).refused();
    let map = Tar::default()
        .pax(&[("GNU.sparse.map", b"0,5,2,5"), ("GNU.sparse.size", b"100")])
        .file("s", "0123456789")
        .end();
    Layer::of(&map).refused();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn random_damage_never_escapes_or_panics(
        at in 0usize..8192,
        with in proptest::prelude::any::<u8>(),
    ) {
        let mut archive = Tar::default()
            .symlink("s", "../outside")
            .pax(&[("path", b"s/secret"), ("size", b"3")])
            .file("x", "abc")
            .link("h", "s/secret")
            .file("h", "def")
            .end();
        let at = at % archive.len();
        archive[at] = with;
        let layer = Layer::of(&archive);
        let secret = fs::read_to_string(layer.tmp.path().join("outside/secret")).unwrap();
        proptest::prop_assert_eq!(secret, "secret");
    }
}
