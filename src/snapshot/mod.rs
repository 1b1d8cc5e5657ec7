//! Snapshots: the writable half of a container's root file system, or all of it.
//!
//! An overlay snapshot is two directories under `snapshots/<container id>/`: `upper`, which takes
//! the container's writes, and `work`, which overlayfs needs beside it. A native one is a single
//! directory `rootfs`, a copy of all layers put together, for file systems that overlayfs does not
//! take. What a snapshot is can be seen from its directories, for as long as it lives. Where there
//! are no overlays, images that the container mounts are copies beside it.
//!
//! Mounting is not done here, nor on the host at all: it happens in the container's own mount
//! namespace. Idempotent in both directions.

mod native;
mod probe;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{CWD, Mode, RenameFlags};
use rustix::io::Errno;

use crate::fault::{self, Fault};
use crate::sys::tree;
pub use crate::sys::tree::Usage;
pub use probe::{ProbeError, probe};

/// The one directory of a native snapshot.
const ROOTFS: &str = "rootfs";

/// How snapshots are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes go beside the layers, which containers share.
    Overlay,
    /// Each container has a copy of its image, with shared blocks where the file system can
    /// (reflinks of btrfs and xfs), else bytes.
    Native,
}

impl Kind {
    /// As it is configured and recorded.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Native => "native",
        }
    }
}

/// What went wrong with a snapshot, and where.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// An id that is not a plain directory name.
    #[error("{0:?} is not a snapshot id (lowercase letters, digits and '-' are)")]
    Id(String),
    /// The file system refused something.
    #[error("{action} {}", path.display())]
    Storage {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A point made the step fail (`crate::fault`).
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The directories of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether `upper` stands on layers, or is all there is.
    pub kind: Kind,
    /// Takes the writes.
    pub upper: PathBuf,
    /// For overlayfs alone.
    pub work: PathBuf,
}

/// Makes the snapshot of a container under `root`, or finds it as it was, whatever its kind.
/// `lower` are the directories of its layers, topmost first; a native snapshot copies them, which
/// blocks on the disk for as long as they are large.
///
/// # Errors
/// A bad id, or those of the file system.
pub fn ensure_snapshot(
    root: &Path,
    id: &str,
    kind: Kind,
    lower: &[PathBuf],
) -> Result<Snapshot, SnapshotError> {
    let home = home(root, id)?;
    // Whoever reaches `upper` reaches set-uid programs that a container made.
    make(&root.join("snapshots"), 0o700)?;
    make(&home, 0o700)?;
    let found = locate(root, id)?;
    if found.kind == Kind::Native || found.upper.exists() {
        return Ok(found);
    }
    match kind {
        Kind::Overlay => {
            make(&found.work, 0o700)?;
            // The mode of `upper` is the mode of `/` in the container until a layer says otherwise.
            make(&found.upper, 0o755)?;
        }
        Kind::Native => place_copy(root, id, lower, &home.join(ROOTFS))?,
    }
    locate(root, id)
}

/// Makes a copy of an image that a container mounts, beside its snapshot, with which it goes; or
/// finds it. `image` is the image's id in hexadecimal digits, `lower` the directories of its
/// layers, topmost first. Blocks on the disk for as long as they are large.
///
/// # Errors
/// A bad id, or those of the file system.
pub fn ensure_volume(
    root: &Path,
    id: &str,
    image: &str,
    lower: &[PathBuf],
) -> Result<(), SnapshotError> {
    let place = volume_place(root, id, image)?;
    if place.exists() {
        return Ok(());
    }
    make(&root.join("snapshots"), 0o700)?;
    make(&home(root, id)?, 0o700)?;
    place_copy(root, id, lower, &place)
}

/// Where the copy of an image that a container mounts is, if it has one.
///
/// # Errors
/// A bad id.
pub fn volume(root: &Path, id: &str, image: &str) -> Result<Option<PathBuf>, SnapshotError> {
    let place = volume_place(root, id, image)?;
    Ok(place.exists().then_some(place))
}

fn volume_place(root: &Path, id: &str, image: &str) -> Result<PathBuf, SnapshotError> {
    check_id(image)?;
    Ok(home(root, id)?.join(format!("image-{image}")))
}

/// Puts a copy of layers in its place, whole or not at all.
fn place_copy(root: &Path, id: &str, lower: &[PathBuf], place: &Path) -> Result<(), SnapshotError> {
    let staged = unused(root, "native", id)?;
    make(&staged, 0o755)?;
    let copied = native::copy(&staged, lower);
    let placed = copied.and_then(|()| {
        fault::blocking_point("snapshot.copied")?;
        rustix::fs::renameat_with(CWD, &staged, CWD, place, RenameFlags::NOREPLACE)
            .map_err(|errno| failed("putting in place", place)(errno.into()))
    });
    if placed.is_err() {
        // What cannot be deleted either is found at the next start.
        drop(tree::remove_tree(&staged));
    }
    placed
}

/// Where the snapshot of a container is, without making it.
///
/// # Errors
/// A bad id.
pub fn locate(root: &Path, id: &str) -> Result<Snapshot, SnapshotError> {
    let home = home(root, id)?;
    let rootfs = home.join(ROOTFS);
    let (kind, upper) = match rootfs.exists() {
        true => (Kind::Native, rootfs),
        false => (Kind::Overlay, home.join("upper")),
    };
    Ok(Snapshot {
        kind,
        upper,
        work: home.join("work"),
    })
}

/// Removes the snapshot of a container: out of the way at once, then off the disk. One that is not
/// there is no error. Blocks on the disk.
///
/// # Errors
/// A bad id, or rename(2)'s and unlink(2)'s; what is left is under `staging/` then.
pub fn remove_snapshot(root: &Path, id: &str) -> Result<(), SnapshotError> {
    let home = home(root, id)?;
    if !home.exists() {
        return Ok(());
    }
    let trash = unused(root, "trash", id)?;
    match rustix::fs::renameat_with(CWD, &home, CWD, &trash, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Another was faster.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed("removing", &home)(errno.into())),
    }
    tree::remove_tree(&trash).map_err(failed("deleting", &trash))
}

/// What a container has written (and what it has copied, if its snapshot is native): bytes on disk,
/// and inodes. Blocks on the disk, for as long as the tree is large, but not beyond `end`.
///
/// # Errors
/// A bad id, or stat(2)'s; `NotFound` when there is no such snapshot, `TimedOut` at the end.
pub fn usage(root: &Path, id: &str, end: Option<Instant>) -> Result<Usage, SnapshotError> {
    let upper = locate(root, id)?.upper;
    tree::usage_until(&upper, end).map_err(failed("measuring", &upper))
}

/// The ids of all snapshots, in no order.
///
/// # Errors
/// readdir(3)'s.
pub fn list_snapshots(root: &Path) -> Result<Vec<String>, SnapshotError> {
    let all = root.join("snapshots");
    let failed = failed("listing", &all);
    let entries = match fs::read_dir(&all) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(&failed)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        ids.extend(entry.map_err(&failed)?.file_name().into_string().ok());
    }
    Ok(ids)
}

/// A name in `staging/` that nothing has; the directory itself is made.
fn unused(root: &Path, what: &str, id: &str) -> Result<PathBuf, SnapshotError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let staging = root.join("staging");
    make(&staging, 0o700)?;
    Ok(staging.join(format!("{what}-{id}-{}-{number}", std::process::id())))
}

fn home(root: &Path, id: &str) -> Result<PathBuf, SnapshotError> {
    check_id(id)?;
    Ok(root.join("snapshots").join(id))
}

/// An id is a plain name.
fn check_id(id: &str) -> Result<(), SnapshotError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match !id.is_empty() && id.len() <= 128 && id.bytes().all(plain) {
        true => Ok(()),
        false => Err(SnapshotError::Id(id.chars().take(128).collect())),
    }
}

/// Makes a directory with exactly this mode, whatever the umask; one that exists stays as it is.
fn make(path: &Path, mode: u32) -> Result<(), SnapshotError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.map_err(failed("making", path))?,
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
        .map_err(|errno| failed("setting the mode of", path)(errno.into()))
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl Fn(io::Error) -> SnapshotError + 'p {
    move |source| SnapshotError::Storage {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_snapshot_is_made_once_and_removed_once() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = ensure_snapshot(root.path(), "abc", Kind::Overlay, &[]).unwrap();
        fs::write(snapshot.upper.join("file"), vec![1; 10_000]).unwrap();
        assert_eq!(
            ensure_snapshot(root.path(), "abc", Kind::Overlay, &[]).unwrap(),
            snapshot
        );
        assert!(snapshot.upper.join("file").exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode(&snapshot.upper), mode(&snapshot.work)),
            (0o755, 0o700)
        );
        assert_eq!(list_snapshots(root.path()).unwrap(), ["abc"]);
        assert_eq!(usage(root.path(), "abc", None).unwrap().inodes, 2);
        remove_snapshot(root.path(), "abc").unwrap();
        remove_snapshot(root.path(), "abc").unwrap();
        assert!(list_snapshots(root.path()).unwrap().is_empty());
        assert_eq!(
            fs::read_dir(root.path().join("staging")).unwrap().count(),
            0
        );
    }

    #[test]
    fn an_id_cannot_be_a_path() {
        let root = tempfile::tempdir().unwrap();
        for id in ["", "..", "a/b", "A", "a\0"] {
            assert!(matches!(
                ensure_snapshot(root.path(), id, Kind::Overlay, &[]),
                Err(SnapshotError::Id(_))
            ));
            assert!(matches!(
                remove_snapshot(root.path(), id),
                Err(SnapshotError::Id(_))
            ));
        }
    }
}
