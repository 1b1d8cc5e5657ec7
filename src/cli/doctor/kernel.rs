//! What the kernel does.

use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::thread::ThreadNameSpaceType;

use super::probe::{Need, Node, Probe, always, apart, there};
use super::storage;
use crate::confinement::lsm;
use crate::sys::mounts::{MountAttributes, set_attributes};
use crate::sys::pidfd_info::{PidfdExit, exit_status};
use crate::sys::{clone, seccomp};

const NEWER: &str = "run Linux 5.15 or newer, and no seccomp filter around the daemon";

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "kernel.pidfd",
        what: "processes are held by descriptors (pidfd_open)",
        need: Need::Required,
        costs: "no container can be watched",
        mend: NEWER,
        applies: always,
        look: pidfd,
    },
    Probe {
        name: "kernel.clone",
        what: "processes start in namespaces of their own (clone3)",
        need: Need::Required,
        costs: "no container starts",
        mend: NEWER,
        applies: always,
        look: |_| child(ThreadNameSpaceType::empty(), || 0),
    },
    Probe {
        name: "kernel.namespaces",
        what: "mount, network, IPC, UTS, PID and cgroup namespaces",
        need: Need::Required,
        costs: "no pod runs",
        mend: "a kernel with NAMESPACES, and sysctls user.max_*_namespaces above 0",
        applies: always,
        look: namespaces,
    },
    Probe {
        name: "kernel.user_namespaces",
        what: "user namespaces, with layers of mapped owners under --root",
        need: Need::Wanted,
        costs: "pods with hostUsers: false are refused",
        mend: "Linux 5.19 with USER_NS, the sysctl user.max_user_namespaces above 0, ext4, xfs or \
               btrfs under --root, and nothing mounted over parts of /proc",
        applies: always,
        look: storage::user_namespaces,
    },
    Probe {
        name: "kernel.openat2",
        what: "paths are resolved inside a root (openat2, RESOLVE_IN_ROOT)",
        need: Need::Required,
        costs: "no container starts: its paths could lead to the node",
        mend: NEWER,
        applies: always,
        look: in_root,
    },
    Probe {
        name: "kernel.mounts",
        what: "mounts by descriptor, read-only with all below them (open_tree, mount_setattr)",
        need: Need::Required,
        costs: "no container starts",
        mend: NEWER,
        applies: always,
        look: mounts,
    },
    Probe {
        name: "kernel.seccomp",
        what: "system calls are filtered (seccomp)",
        need: Need::Wanted,
        costs: "containers with a seccomp profile, RuntimeDefault included, do not start",
        mend: "a kernel with SECCOMP_FILTER",
        applies: always,
        look: filtered,
    },
    Probe {
        name: "kernel.exit_codes",
        what: "exit codes outlast the parent (PIDFD_INFO_EXIT)",
        need: Need::Wanted,
        costs: "what ends while the shim is dead is reported with 255, ShimLost",
        mend: "run Linux 6.15 or newer",
        applies: always,
        look: exit_codes,
    },
    Probe {
        name: "kernel.apparmor",
        what: "AppArmor profiles",
        need: Need::Wanted,
        costs: "containers that ask for a profile are refused; the others run without one",
        mend: "boot with apparmor=1 security=apparmor, and install Debian's package apparmor",
        applies: always,
        look: apparmor,
    },
    Probe {
        name: "kernel.no_selinux",
        what: "no SELinux, whose labels this runtime does not set",
        need: Need::Wanted,
        costs: "containers run with the daemon's label, or are denied what they need",
        mend: "boot with selinux=0, or let the policy of the node be permissive",
        applies: always,
        look: |_| match lsm::has_selinux() {
            true => Err("SELinux is on".into()),
            false => Ok(String::new()),
        },
    },
    Probe {
        name: "kernel.pressure",
        what: "pressure is measured (PSI)",
        need: Need::Wanted,
        costs: "statistics have no pressure",
        mend: "a kernel with PSI, booted with psi=1",
        applies: always,
        look: |_| there(std::fs::read_to_string("/proc/pressure/memory")),
    },
];

fn pidfd(_node: &Node) -> Result<String, String> {
    let own = rustix::process::getpid();
    there(pidfd_open(own, PidfdFlags::empty()))
}

/// Starts a child that ends with what `work` returns, and waits for it.
fn child(namespaces: ThreadNameSpaceType, work: impl FnOnce() -> i32) -> Result<String, String> {
    let child = clone::spawn(namespaces, None, |_| work()).map_err(|errno| errno.to_string())?;
    let status = Pid::from_raw(child.pid).map(|pid| waitpid(Some(pid), WaitOptions::empty()));
    match status {
        Some(Ok(Some((_, status)))) if status.exit_status() == Some(0) => Ok(String::new()),
        Some(Ok(Some((_, status)))) => Err(match status.exit_status() {
            // What the child has to say is an errno.
            Some(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
            None => format!("the child ended with {status:?}"),
        }),
        other => Err(format!("the child cannot be waited for: {other:?}")),
    }
}

fn namespaces(_node: &Node) -> Result<String, String> {
    let kinds = [
        ("mount", CloneFlags::CLONE_NEWNS),
        ("network", CloneFlags::CLONE_NEWNET),
        ("IPC", CloneFlags::CLONE_NEWIPC),
        ("UTS", CloneFlags::CLONE_NEWUTS),
        ("PID", CloneFlags::CLONE_NEWPID),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ];
    for (name, kind) in kinds {
        apart(|| unshare(kind).map_err(|errno| format!("no {name} namespace: {errno}")))?;
    }
    Ok(String::new())
}

fn in_root(_node: &Node) -> Result<String, String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::IN_ROOT);
    there(opened)
}

/// On a copy of a mount that nobody can see.
fn mounts(_node: &Node) -> Result<String, String> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(CWD, "/proc", flags).map_err(|errno| format!("open_tree: {errno}"))?;
    let read_only = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
    };
    set_attributes(&copy, true, read_only).map_err(|errno| format!("mount_setattr: {errno}"))?;
    Ok(String::new())
}

/// A filter that allows everything, on a child.
fn filtered(_node: &Node) -> Result<String, String> {
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    let mut program = [0; 8];
    program[..2].copy_from_slice(&RETURN.to_ne_bytes());
    program[4..].copy_from_slice(&ALLOW.to_ne_bytes());
    child(
        ThreadNameSpaceType::empty(),
        move || match seccomp::install(&program, 0) {
            Ok(()) => 0,
            Err(errno) => errno.raw_os_error(),
        },
    )
}

fn exit_codes(_node: &Node) -> Result<String, String> {
    let child = clone::spawn(ThreadNameSpaceType::empty(), None, |_| 7)
        .map_err(|errno| errno.to_string())?;
    let pid = Pid::from_raw(child.pid).ok_or("the child has no pid")?;
    waitpid(Some(pid), WaitOptions::empty()).map_err(|errno| errno.to_string())?;
    match exit_status(child.pidfd.as_fd()) {
        Ok(PidfdExit::Status(status)) if status >> 8 == 7 => Ok(String::new()),
        Ok(_) => Err("this kernel does not keep them".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn apparmor(_node: &Node) -> Result<String, String> {
    if !lsm::has_apparmor() {
        return Err("AppArmor is off".into());
    }
    let loaded = lsm::apparmor_profile_is_loaded(lsm::APPARMOR_DEFAULT);
    Ok(match loaded {
        true => format!("{} is loaded", lsm::APPARMOR_DEFAULT),
        false => format!(
            "{} is not loaded; the daemon loads it at its start (docs/apparmor.md)",
            lsm::APPARMOR_DEFAULT
        ),
    })
}
