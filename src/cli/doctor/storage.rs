//! What the disks take.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{statfs, statvfs};

use super::probe::{Need, Node, Probe, always, passing_name, there, whole};
use crate::config::SnapshotDriver;
use crate::runtime::probe as trial;
use crate::snapshot;

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS: i64 = 0x0102_1994;
/// Free space and free inodes below which pulls are about to fail.
const FREE_BYTES: u64 = 2 << 30;
const FREE_INODES: u64 = 50_000;

/// What overlays need.
const OVERLAY_FS: &str = "ext4, xfs or btrfs under --root (an overlay does not take another), and \
                          a kernel with OVERLAY_FS";

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "storage.root",
        what: "the root directory takes what is written and synced",
        need: Need::Required,
        costs: "the daemon does not start",
        mend: "let --root be on a disk that can be written",
        applies: always,
        look: |node| within(&node.root, written),
    },
    Probe {
        name: "storage.overlay",
        what: "overlays are mounted on it",
        need: Need::Required,
        costs: "containers would need [snapshot] driver = \"native\", which copies every image",
        mend: OVERLAY_FS,
        applies: |node| node.config.snapshot.driver == SnapshotDriver::Overlay,
        look: overlay,
    },
    Probe {
        name: "storage.overlays",
        what: "overlays are mounted on it",
        need: Need::Wanted,
        costs: "each container copies its image, which takes time and space",
        mend: OVERLAY_FS,
        applies: |node| node.config.snapshot.driver == SnapshotDriver::Auto,
        look: overlay,
    },
    Probe {
        name: "storage.space",
        what: "there is room for images",
        need: Need::Wanted,
        costs: "pulls are about to fail, and kubelet to evict",
        mend: "remove images (crictl rmi --prune), or let --root be on a larger disk",
        applies: always,
        look: space,
    },
    Probe {
        name: "storage.state",
        what: "the state directory is in memory",
        need: Need::Wanted,
        costs: "sockets and namespaces of another boot lie about, and container output goes to \
                a disk first",
        mend: "let --state be below /run, which is a tmpfs",
        applies: always,
        look: |node| match statfs(Node::present(&node.state)) {
            Ok(seen) if i128::from(seen.f_type) == i128::from(TMPFS) => Ok(String::new()),
            Ok(_) => Err(format!("{} is on a disk", node.state.display())),
            Err(errno) => Err(errno.to_string()),
        },
    },
];

/// Tries something in a directory that is there for no longer, beside what the daemon has or will
/// have.
fn within(
    place: &Path,
    work: impl FnOnce(&Path) -> Result<String, String>,
) -> Result<String, String> {
    let name = format!(".{}", passing_name());
    let dir: PathBuf = Node::present(place).join(name);
    let text = |error: std::io::Error| format!("{}: {error}", dir.display());
    fs::create_dir(&dir).map_err(text)?;
    let tried = work(&dir);
    let removed = fs::remove_dir_all(&dir).map_err(text);
    tried.and_then(|detail| removed.map(|()| detail))
}

fn written(dir: &Path) -> Result<String, String> {
    let path = dir.join("file");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(b"x")?;
        file.sync_all()
    });
    there(written)
}

fn overlay(node: &Node) -> Result<String, String> {
    within(&node.root, |dir| {
        let mounted = snapshot::probe(dir).map_err(whole);
        there(mounted)
    })
}

/// Does what the daemon does at its start to find out.
pub(super) fn user_namespaces(node: &Node) -> Result<String, String> {
    within(&node.root, |dir| {
        let mount_point = dir.join("mount");
        fs::create_dir(&mount_point).map_err(|error| error.to_string())?;
        let overlays = match node.config.snapshot.driver {
            SnapshotDriver::Native => false,
            SnapshotDriver::Overlay => true,
            SnapshotDriver::Auto => snapshot::probe(dir).is_ok(),
        };
        let ground = trial::Ground {
            directory: &dir.join("ground"),
            mount_point: &mount_point,
            overlays,
        };
        trial::user_namespaces(ground)
            .map(|()| String::new())
            .map_err(|error| format!("cannot {error}"))
    })
}

fn space(node: &Node) -> Result<String, String> {
    let seen = statvfs(Node::present(&node.root)).map_err(|errno| errno.to_string())?;
    let bytes = seen.f_bavail.saturating_mul(seen.f_frsize);
    let text = format!("{} MiB free", bytes >> 20);
    if bytes < FREE_BYTES {
        return Err(text);
    }
    // Some file systems make inodes as they need them, and say 0.
    if seen.f_files > 0 && seen.f_favail < FREE_INODES {
        return Err(format!("{} inodes free", seen.f_favail));
    }
    Ok(text)
}
