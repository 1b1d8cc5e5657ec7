//! Whether this node can give pods user namespaces: asked of the kernel by doing what a pod and its
//! containers will do, out of sight. Versions say little: it depends on limits of the node, on the
//! file system under the root directory, and on what covers its `/proc`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use super::error::{At, LaunchError, stage};
use super::plan::Rootfs;
use super::rootfs::{self, OverlayInterface, Site};
use crate::sys::clone::spawn;
use crate::sys::nsfd::unshare_namespaces;
use crate::sys::tree::remove_tree;
use crate::sys::userns::Holder;

/// Where a trial takes place.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// A directory on the file system of layers, made and removed here.
    pub directory: &'a Path,
    /// An empty directory to mount on.
    pub mount_point: &'a Path,
    /// Whether containers are overlays, or copies.
    pub overlays: bool,
}

/// Ids of the trial: nothing is ever made by them.
const IDS: &str = "0 65536 65536";

/// Tries it.
///
/// # Errors
///
/// What is missing.
pub fn user_namespaces(ground: Ground<'_>) -> Result<(), LaunchError> {
    let others = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    let holder = Holder::new(others).at(
        stage::NAMESPACE,
        || "make a user namespace (/proc/sys/user/max_user_namespaces says how many there may be)",
    )?;
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mapped = holder.map(IDS, IDS).map_err(errno);
    mapped.at(stage::NAMESPACE, || "map its ids")?;
    let users = holder.open("user").map_err(errno);
    let users = users.at(stage::NAMESPACE, || "open a user namespace")?;
    let shown = thread::scope(|scope| {
        let trial = thread::Builder::new().name("user-namespace".into());
        let trial = trial.spawn_scoped(scope, || show_layers(ground, users.as_fd()));
        match trial.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(shown)) => shown,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => Err(errno(error)).at(stage::ROOTFS, || "start a thread"),
        }
    });
    // What stays is swept.
    let _ = remove_tree(ground.directory);
    shown?;
    see_processes()
}

/// A root file system with mapped owners, in a mount namespace that ends with the thread.
fn show_layers(ground: Ground<'_>, users: std::os::fd::BorrowedFd<'_>) -> Result<(), LaunchError> {
    let made = |name: &str| -> Result<PathBuf, LaunchError> {
        let path = ground.directory.join(name);
        let made = std::fs::create_dir_all(&path);
        made.map_err(|error| {
            LaunchError::invalid(stage::ROOTFS, format!("make {path:?}: {error}"))
        })?;
        Ok(path)
    };
    let lower = match ground.overlays {
        true => vec![made("lower")?],
        false => Vec::new(),
    };
    let layers = Rootfs {
        lower,
        upper: made("upper")?,
        work: made("work")?,
        mount_point: ground.mount_point.to_owned(),
    };
    unshare_namespaces(UnshareFlags::NEWNS).at(stage::ROOTFS, || "create a mount namespace")?;
    rootfs::isolate_propagation()?;
    let site = Site {
        mount_point: ground.mount_point,
        with: OverlayInterface::of_this_kernel(),
        users: Some(users),
    };
    rootfs::assemble(&layers, site).map(drop)
}

/// A `/proc` of a PID namespace of its own, which the kernel gives only to who can see all of one
/// already.
fn see_processes() -> Result<(), LaunchError> {
    let created =
        ThreadNameSpaceType::USER | ThreadNameSpaceType::PROCESS_ID | ThreadNameSpaceType::MOUNT;
    let what = || "mount a /proc in a user namespace (is something mounted over the node's own?)";
    // A copy of a process with threads: system calls alone.
    let child = spawn(created, None, |_| match mount_proc() {
        Ok(()) => 0,
        Err(errno) => errno.raw_os_error(),
    });
    let child = child.at(stage::MOUNT, what)?;
    let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = status.at(stage::MOUNT, what)?;
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw_os_error(errno)).at(stage::MOUNT, what),
        None => Err(Errno::CHILD).at(stage::MOUNT, what),
    }
}

fn mount_proc() -> Result<(), Errno> {
    let fs = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_overlays_has_user_namespaces_and_a_file_system_that_maps_nothing_has_none() {
        let tmp = tempfile::tempdir().expect("a directory");
        let mount_point = tmp.path().join("mount");
        std::fs::create_dir(&mount_point).expect("mkdir");
        for overlays in [true, false] {
            let directory = tmp.path().join("ground");
            let ground = Ground {
                directory: &directory,
                mount_point: &mount_point,
                overlays,
            };
            assert_eq!(user_namespaces(ground), Ok(()));
            assert!(!directory.exists(), "it was left behind");
        }
        let ground = Ground {
            directory: Path::new("/proc/self/no-such"),
            mount_point: &mount_point,
            overlays: true,
        };
        let error = user_namespaces(ground).expect_err("nothing can be made there");
        assert_eq!(error.stage, stage::ROOTFS);
    }
}
