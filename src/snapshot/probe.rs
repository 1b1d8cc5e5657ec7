//! Whether overlayfs takes the file system under the root directory: asked of the kernel by doing
//! what a container will do, on a mount that nobody can see.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::{SnapshotError, failed, make, unused};
use crate::sys::mounts::kernel_says;
use crate::sys::overlay::{OPAQUE, OPAQUE_SET, SETTINGS, VOLATILE};
use crate::sys::{inroot, tree, xattr};

/// Why there can be no overlays.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel refuses to mount one here.
    #[error("the kernel mounts no overlay on it{says}")]
    Mount {
        /// What the kernel logged, in parentheses.
        says: String,
        /// Its answer.
        source: io::Error,
    },
    /// One that is mounted does not do what containers need.
    #[error("an overlay on it cannot {0}")]
    Lacking(&'static str, #[source] io::Error),
    /// The directories for the trial could not be made.
    #[error(transparent)]
    Prepare(#[from] SnapshotError),
}

/// Mounts an overlay of directories under `root`, out of sight; deletes a file of the lower one
/// through it, and looks for the deletion and for the attributes by which layers are marked.
///
/// # Errors
/// [`ProbeError`], which says what is missing.
pub fn probe(root: &Path) -> Result<(), ProbeError> {
    let ground = unused(root, "probe", "overlay")?;
    make(&ground, 0o700)?;
    let tried = trial(&ground);
    let removed = tree::remove_tree(&ground).map_err(failed("deleting", &ground));
    tried?;
    Ok(removed?)
}

fn trial(ground: &Path) -> Result<(), ProbeError> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| ground.join(name));
    for path in [&lower, &upper, &work] {
        make(path, 0o700)?;
    }
    std::fs::write(lower.join("file"), "x").map_err(failed("writing", &lower))?;
    let overlay = mount(&lower, &upper, &work)?;
    let lacking = |what| move |source: io::Error| ProbeError::Lacking(what, source);
    rustix::fs::unlinkat(&overlay, "file", AtFlags::empty())
        .map_err(|errno| lacking("delete")(errno.into()))?;
    let seen = std::fs::File::open(&upper).map_err(failed("opening", &upper))?;
    let deletion = inroot::kind_at(&seen, b"file").map_err(lacking("mark what is deleted"))?;
    if !matches!(deletion, Some((FileType::CharacterDevice, stat)) if stat.st_rdev == 0) {
        return Err(lacking("mark what is deleted")(Errno::INVAL.into()));
    }
    let attributes = lacking("keep attributes (trusted.*)");
    xattr::set(&seen, OPAQUE, OPAQUE_SET).map_err(&attributes)?;
    match xattr::get(&seen, OPAQUE).map_err(&attributes)? {
        Some(value) if value == OPAQUE_SET => Ok(()),
        _ => Err(attributes(Errno::NODATA.into())),
    }
}

/// The options are those of every container (`runtime::rootfs`); which is more than needed, and
/// finds out whether the kernel knows them.
fn mount(lower: &Path, upper: &Path, work: &Path) -> Result<OwnedFd, ProbeError> {
    let refused = |errno: Errno| ProbeError::Mount {
        says: String::new(),
        source: errno.into(),
    };
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(refused)?;
    let mut handles = Vec::new();
    for (key, path) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        // A descriptor's name is short, and has nothing in it that would need escaping.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(refused)?;
        let name = format!("/proc/self/fd/{}", handle.as_raw_fd());
        fsconfig_set_string(&fs, key, name.as_str()).map_err(refused)?;
        handles.push(handle);
    }
    for (key, value) in SETTINGS {
        fsconfig_set_string(&fs, key, value).map_err(refused)?;
    }
    fsconfig_set_flag(&fs, VOLATILE).map_err(refused)?;
    fsconfig_create(&fs).map_err(|errno| ProbeError::Mount {
        says: kernel_says(&fs),
        source: errno.into(),
    })?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_takes_overlays_and_an_overlay_does_not() {
        let tmp = tempfile::tempdir().unwrap();
        probe(tmp.path()).unwrap();
        assert_eq!(
            std::fs::read_dir(tmp.path().join("staging"))
                .unwrap()
                .count(),
            0
        );
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| tmp.path().join(name));
        for path in [&lower, &upper, &work] {
            make(path, 0o700).unwrap();
        }
        let overlay = mount(&lower, &upper, &work).unwrap();
        let inside = format!("/proc/self/fd/{}", overlay.as_raw_fd());
        let error = probe(Path::new(&inside)).unwrap_err();
        assert!(matches!(error, ProbeError::Mount { .. }), "{error:?}");
        assert_eq!(std::fs::read_dir(upper.join("staging")).unwrap().count(), 0);
    }
}
