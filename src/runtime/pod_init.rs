//! PID 1 of a PID namespace that the containers of a pod share: reaps orphans, and is there.
//!
//! ```text
//! set up ─► wait ─► SIGCHLD: reap ─► wait …
//!                └► SIGTERM from outside: end (and with it every process of the namespace)
//! ```
//!
//! Containers see this process. So it has an empty root in a mount namespace of its own, no
//! capability, no open file and is not dumpable; and it works from its stack alone, the heap it
//! inherited from the shim having been given back.

use std::convert::Infallible;
use std::os::fd::AsFd;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::process::{setsid, umask};
use rustix::thread::ThreadNameSpaceType;

use super::capabilities::{self, Last, Sets};
use super::error::{At, LaunchError, stage};
use super::launch::PodInitPlan;
use super::namespaces::{join, link_type_named};
use super::spawn::{Born, go_on};
use super::user::Identity;
use super::{cgroup_entry, channel, rootfs, user_namespace};
use crate::sys::process::{close_from, reset_signals};
use crate::sys::reaper::{Heap, reap_until_told};

/// Namespaces of its own.
pub(super) const CREATED: ThreadNameSpaceType =
    ThreadNameSpaceType::PROCESS_ID.union(ThreadNameSpaceType::MOUNT);

/// Sets the process up and stays.
pub(super) fn run(plan: &PodInitPlan, born: &Born<'_>) -> Result<Infallible, LaunchError> {
    umask(Mode::empty());
    setsid().at(stage::CLONE, || "begin a session")?;
    // Blocked from the start, or a signal between reset and wait would be lost.
    reset_signals();
    let all = SigSet::all();
    let errno = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    all.thread_set_mask()
        .map_err(errno)
        .at(stage::CLONE, || "block signals")?;

    cgroup_entry::enter(&plan.cgroup, born.in_cgroup)?;
    for (kind, path) in &plan.namespaces {
        join(link_type_named(kind)?, path)?;
    }
    match &plan.user {
        None => stay(&all, born),
        Some(path) => {
            let users = user_namespace::open(path)?;
            user_namespace::join(users.as_fd())?;
            go_on(CREATED, born, || {
                user_namespace::become_root()?;
                stay(&all, born)
            })
        }
    }
}

/// The rest, in the namespaces that it stays in. `all` signals are blocked.
fn stay(all: &SigSet, born: &Born<'_>) -> Result<Infallible, LaunchError> {
    let errno = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    let heap = Heap::of_this_process();
    enter_empty_root()?;
    let _ = rustix::thread::set_name(c"quilt-pod");
    let nobody = Identity {
        uid: 0,
        gid: 0,
        groups: vec![0],
    };
    capabilities::become_user(&nobody, Sets::NONE, Last::NoNewPrivileges)?;
    channel::send_ready(born.channel).at(stage::EXEC, || "report that the pod is ready")?;

    // No descriptor of the shim's stays, then the one that is waited on.
    close_from(0).at(stage::EXEC, || "close descriptors")?;
    let signals = SignalFd::with_flags(all, SfdFlags::SFD_CLOEXEC);
    let signals = signals
        .map_err(errno)
        .at(stage::EXEC, || "wait for signals")?;
    reap_until_told(signals, heap)
}

/// A read-only tmpfs with nothing in it. It covers the node's /proc for a moment, in this mount
/// namespace only, because pivot_root(2) wants a mount and /proc is a directory on every node.
fn enter_empty_root() -> Result<(), LaunchError> {
    rootfs::isolate_propagation()?;
    let mount = || {
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", "pod")?;
        fsconfig_set_string(&fs, "mode", "555")?;
        fsconfig_create(&fs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(
            &mount,
            c"",
            CWD,
            "/proc",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        Ok(mount)
    };
    let mount = mount().at(stage::ROOTFS, || "mount an empty root")?;
    rootfs::enter(&mount)
}
