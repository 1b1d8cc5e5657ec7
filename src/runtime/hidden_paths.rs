//! Masked paths (nothing to be seen) and read-only paths of a container.
//!
//! Each is opened once, inside the root, and mounted over through that descriptor. What does not
//! exist needs no hiding.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::devices::open_null;
use super::error::{At, LaunchError, stage};
use super::mounts::{attach, clone_of, is_directory};
use super::root::Root;
use crate::sys::mounts::{MountAttributes, set_attributes};

/// Covers files with `/dev/null` and directories with an empty read-only tmpfs.
pub(super) fn mask(root: &Root, paths: &[String]) -> Result<(), LaunchError> {
    let mut null = None;
    let mut empty = None;
    for path in paths {
        let what = || format!("mask {path:?}");
        let Some(target) = open(root, path).at(stage::PATHS, what)? else {
            continue;
        };
        let cover = if is_directory(&target).at(stage::PATHS, what)? {
            cover_with(&mut empty, empty_directory)
        } else {
            cover_with(&mut null, || {
                open_null(root).and_then(|null| clone_of(&null, false))
            })
        };
        cover
            .and_then(|cover| attach(&cover, &target))
            .at(stage::PATHS, what)?;
    }
    Ok(())
}

/// The first mount is made; the others are clones of it, which is cheaper than new file systems.
/// Cloned from the attached one: before Linux 6.15 a detached mount could not be.
fn cover_with(
    first: &mut Option<OwnedFd>,
    make: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    match first {
        Some(first) => clone_of(first, false),
        None => {
            let made = make()?;
            *first = Some(made.try_clone().map_err(|_| Errno::MFILE)?);
            Ok(made)
        }
    }
}

fn empty_directory() -> Result<OwnedFd, Errno> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", "masked")?;
    fsconfig_set_string(&fs, "mode", "555")?;
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Binds each path read-only on itself, with everything below.
pub(super) fn make_read_only(root: &Root, paths: &[String]) -> Result<(), LaunchError> {
    let read_only = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttributes::default()
    };
    for path in paths {
        let what = || format!("make {path:?} read-only");
        let Some(target) = open(root, path).at(stage::PATHS, what)? else {
            continue;
        };
        let tree = clone_of(&target, true).at(stage::PATHS, what)?;
        set_attributes(&tree, true, read_only).at(stage::PATHS, what)?;
        attach(&tree, &target).at(stage::PATHS, what)?;
    }
    Ok(())
}

fn open(root: &Root, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match root.open(path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
