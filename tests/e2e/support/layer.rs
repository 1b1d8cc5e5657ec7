//! Image layers made in memory: a tar of what a test needs, packed as registries hold them.

use std::io::Write;
use std::process::Command;

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// How a layer's tar is packed, which its media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Zstd,
    Plain,
}

/// A packed layer.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) packing: Packing,
    /// Of the tar.
    pub(crate) diff_id: String,
    /// What the registry holds.
    pub(crate) blob: Vec<u8>,
}

/// `sha256:` and 64 hexadecimal digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hash}")
}

/// A layer under construction. Every method adds an entry, and paths have no leading slash.
pub(crate) struct Contents(tar::Builder<Vec<u8>>);

impl Contents {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, path, mode, (0, 0), b"")
    }

    pub(crate) fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.add(EntryType::Regular, path, mode, (0, 0), content)
    }

    pub(crate) fn owned(self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        self.add(EntryType::Regular, path, mode, owner, content)
    }

    pub(crate) fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let Self(mut tar) = self;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, path, target)
            .expect("an entry in memory");
        Self(tar)
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    /// The entry that follows gets this extended attribute.
    pub(crate) fn xattr(self, name: &str, value: &[u8]) -> Self {
        let Self(mut tar) = self;
        let key = format!("SCHILY.xattr.{name}");
        tar.append_pax_extensions([(key.as_str(), value)])
            .expect("an entry in memory");
        Self(tar)
    }

    pub(crate) fn pack(self, packing: Packing) -> Layer {
        let tar = self.0.into_inner().expect("a tar in memory");
        let diff_id = digest(&tar);
        let blob = match packing {
            Packing::Plain => tar,
            Packing::Zstd => zstd::encode_all(tar.as_slice(), 1).expect("a stream in memory"),
            Packing::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&tar).expect("a stream in memory");
                encoder.finish().expect("a stream in memory")
            }
        };
        Layer {
            packing,
            diff_id,
            blob,
        }
    }

    fn add(
        self,
        kind: EntryType,
        path: &str,
        mode: u32,
        (uid, gid): (u64, u64),
        content: &[u8],
    ) -> Self {
        let Self(mut tar) = self;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)
            .expect("an entry in memory");
        Self(tar)
    }
}

/// Debian's static busybox with every applet a hard link to it, and the few users tests name. It
/// has no `/proc`, `/sys` or `/dev`: those are the runtime's to make.
pub(crate) fn busybox() -> Contents {
    let binary = std::fs::read("/bin/busybox").expect("Debian's busybox-static is installed");
    let passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n\
                  tester:x:1000:1000::/home/tester:/bin/sh\n";
    let group = "root:x:0:\nwww-data:x:33:\ntester:x:1000:\nextra:x:2000:tester\n";
    let mut contents = Contents::new()
        .dir("bin/", 0o755)
        .dir("etc/", 0o755)
        .dir("root/", 0o700)
        .dir("tmp/", 0o1777)
        .dir("home/", 0o755)
        .file("etc/passwd", 0o644, passwd.as_bytes())
        .file("etc/group", 0o644, group.as_bytes())
        .file("etc/not-executable", 0o644, b"#!/bin/sh\n")
        .file("bin/busybox", 0o755, &binary);
    let list = Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .expect("busybox runs");
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        contents = contents.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    contents
}

/// Bytes that no packing makes smaller, the same for the same seed (xorshift64).
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next)
        .flatten()
        .take(length)
        .collect()
}
