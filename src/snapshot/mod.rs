//! Snapshots: the writable half of a container's root file system.
//!
//! A snapshot is two directories under `snapshots/<container id>/`: `upper`, which takes the
//! container's writes, and `work`, which overlayfs needs beside it. Mounting them is not done here,
//! nor on the host at all: it happens in the container's own mount namespace. Idempotent in both
//! directions.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, RenameFlags};
use rustix::io::Errno;

use crate::sys::tree;
pub use crate::sys::tree::Usage;

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
}

/// The directories of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Takes the writes.
    pub upper: PathBuf,
    /// For overlayfs alone.
    pub work: PathBuf,
}

/// Makes the snapshot of a container under `root`, or finds it as it was.
///
/// # Errors
/// A bad id, or mkdir(2)'s.
pub fn ensure_snapshot(root: &Path, id: &str) -> Result<Snapshot, SnapshotError> {
    let home = home(root, id)?;
    let snapshot = Snapshot {
        upper: home.join("upper"),
        work: home.join("work"),
    };
    // Whoever reaches `upper` reaches set-uid programs that a container made.
    make(&root.join("snapshots"), 0o700)?;
    make(&home, 0o700)?;
    make(&snapshot.work, 0o700)?;
    // The mode of `upper` is the mode of `/` in the container until a layer says otherwise.
    make(&snapshot.upper, 0o755)?;
    Ok(snapshot)
}

/// Where the snapshot of a container is, without making it.
///
/// # Errors
/// A bad id.
pub fn locate(root: &Path, id: &str) -> Result<Snapshot, SnapshotError> {
    let home = home(root, id)?;
    Ok(Snapshot {
        upper: home.join("upper"),
        work: home.join("work"),
    })
}

/// Removes the snapshot of a container: out of the way at once, then off the disk. One that is not
/// there is no error. Blocks on the disk.
///
/// # Errors
/// A bad id, or rename(2)'s and unlink(2)'s; what is left is under `staging/` then.
pub fn remove_snapshot(root: &Path, id: &str) -> Result<(), SnapshotError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let home = home(root, id)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let staging = root.join("staging");
    let trash = staging.join(format!("trash-{id}-{}-{number}", std::process::id()));
    match rustix::fs::renameat_with(CWD, &home, CWD, &trash, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Nothing to remove, or nowhere to put it: only the first ends the work.
        Err(Errno::NOENT) if !home.exists() => return Ok(()),
        Err(Errno::NOENT) => {
            make(&staging, 0o700)?;
            rustix::fs::renameat_with(CWD, &home, CWD, &trash, RenameFlags::NOREPLACE)
                .map_err(|errno| failed("removing", &home)(errno.into()))?;
        }
        Err(errno) => return Err(failed("removing", &home)(errno.into())),
    }
    tree::remove_tree(&trash).map_err(failed("deleting", &trash))
}

/// What a container has written: bytes on disk, and inodes. Blocks on the disk, for as long as the
/// tree is large.
///
/// # Errors
/// A bad id, or stat(2)'s; `NotFound` when there is no such snapshot.
pub fn usage(root: &Path, id: &str) -> Result<Usage, SnapshotError> {
    let upper = home(root, id)?.join("upper");
    tree::usage(&upper).map_err(failed("measuring", &upper))
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

fn home(root: &Path, id: &str) -> Result<PathBuf, SnapshotError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match !id.is_empty() && id.len() <= 128 && id.bytes().all(plain) {
        true => Ok(root.join("snapshots").join(id)),
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
        let snapshot = ensure_snapshot(root.path(), "abc").unwrap();
        fs::write(snapshot.upper.join("file"), vec![1; 10_000]).unwrap();
        assert_eq!(ensure_snapshot(root.path(), "abc").unwrap(), snapshot);
        assert!(snapshot.upper.join("file").exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode(&snapshot.upper), mode(&snapshot.work)),
            (0o755, 0o700)
        );
        assert_eq!(list_snapshots(root.path()).unwrap(), ["abc"]);
        assert_eq!(usage(root.path(), "abc").unwrap().inodes, 2);
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
                ensure_snapshot(root.path(), id),
                Err(SnapshotError::Id(_))
            ));
            assert!(matches!(
                remove_snapshot(root.path(), id),
                Err(SnapshotError::Id(_))
            ));
        }
    }
}
