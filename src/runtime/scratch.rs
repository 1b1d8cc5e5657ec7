//! A small tmpfs for what is put together on the way, in a mount namespace from which nothing
//! travels. It is gone when it is dropped; what was bound out of it stays.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::error::{At, LaunchError, stage};

/// A tmpfs on a mount point.
#[derive(Debug)]
pub(super) struct Scratch {
    point: PathBuf,
    directory: OwnedFd,
}

impl Scratch {
    /// Mounts it. Device nodes in it can be opened.
    pub(super) fn on(point: &Path) -> Result<Self, LaunchError> {
        let mount = || {
            let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(&fs, "source", "scratch")?;
            fsconfig_set_string(&fs, "mode", "700")?;
            fsconfig_create(&fs)?;
            fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        };
        let tree = mount().at(stage::ROOTFS, || "mount a tmpfs")?;
        move_to(&tree, point)?;
        // By its path again: before Linux 6.15 what was opened detached cannot be cloned below.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, point, flags, Mode::empty())
            .at(stage::ROOTFS, || format!("open {point:?}"))?;
        Ok(Self {
            point: point.to_owned(),
            directory,
        })
    }

    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Makes a directory in it and returns its path.
    pub(super) fn make_directory(&self, name: &str) -> Result<PathBuf, LaunchError> {
        mkdirat(&self.directory, name, Mode::RWXU)
            .at(stage::ROOTFS, || format!("make the directory {name:?}"))?;
        Ok(self.point.join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays ends with the mount namespace.
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}

/// Attaches a mount that is attached nowhere.
pub(super) fn move_to(tree: &OwnedFd, place: &Path) -> Result<(), LaunchError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, c"", CWD, place, flags).at(stage::ROOTFS, || format!("mount on {place:?}"))
}
