//! The first process of a container, from clone to exec, in numbered steps.
//!
//! Runs in the child. The order is not a matter of taste: each step says what it must come after.

use std::convert::Infallible;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::Mode;
use rustix::process::{setsid, umask};
use rustix::system::{setdomainname, sethostname};
use rustix::thread::UnshareFlags;

use super::capabilities::{self, Last, Sets};
use super::command::{self, Command};
use super::confine::Confinement;
use super::error::{At, LaunchError, stage};
use super::hooks::Gate;
use super::launch::ProcessStreams;
use super::namespaces::Namespaces;
use super::plan::{LaunchPlan, PlanUser};
use super::protect::leave_keyring;
use super::root::Root;
use super::rootfs::{self, OverlayInterface};
use super::spawn::{Born, reached};
use super::user::{self, Account};
use super::{cgroup_entry, channel, devices, hidden_paths, limits, mounts, namespaces, terminal};
use crate::sys::mounts::{MountAttributes, set_attributes};
use crate::sys::nsfd::unshare_namespaces;

/// Longest `/etc/passwd` or `/etc/group` of an image that is read.
const DATABASE_MAX_BYTES: usize = 4 << 20;
/// Of every process whose plan does not set one.
const UMASK: u32 = 0o022;

/// What the child was made for.
pub(super) struct Task<'a> {
    pub(super) plan: &'a LaunchPlan,
    pub(super) process: &'a Process,
    pub(super) namespaces: &'a Namespaces,
    pub(super) overlay: OverlayInterface,
    /// What has its hooks run, if it has any.
    pub(super) gate: Option<&'a Gate>,
}

/// Sets the process up and becomes the command.
pub(super) fn run(
    task: &Task<'_>,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<Infallible, LaunchError> {
    let (plan, process) = (task.plan, task.process);
    let arguments = process.args().as_deref().unwrap_or_default();
    let environment = process.env().as_deref().unwrap_or_default();
    let mut command = Command::new(arguments, environment)?;

    // 1. A session of its own, so that no terminal and no signal of the shim's reaches it. Modes
    //    of what is made from here on are given exactly.
    umask(Mode::empty());
    setsid().at(stage::CLONE, || "begin a session")?;
    leave_keyring().at(stage::CLONE, || "leave the session keyring")?;

    // 2. Cgroups, first of all: what follows is the container's work and counts as such.
    reached(stage::CGROUP);
    cgroup_entry::enter(&plan.cgroup, born.in_cgroup)?;

    // 3. The OOM score, and a hold on what is confined by, while /proc is still the node's.
    if let Some(score) = process.oom_score_adj() {
        limits::set_oom_score_adj(score)?;
    }
    let profile = process.apparmor_profile().as_deref();
    let confinement = Confinement::prepare(profile, plan.seccomp.as_ref())?;

    // 4. to 7. Namespaces and the root.
    join_namespaces(task)?;
    if let Some(gate) = task.gate {
        gate.ask()?;
    }
    let root = build_root(task)?;

    // 8. The terminal: its devpts is mounted now. The master goes out while there is a channel.
    let streams = match streams {
        Some(streams) => streams,
        None => open_terminal(&root, process, born)?,
    };

    // 9. Who it runs as, by the files of the image.
    reached(stage::USER);
    let account = find_user(&root, &plan.user)?;
    command.set_missing_home(&account.home);

    // 10. Streams belong to that user, or /dev/stdout could not be opened.
    command::own_streams(&streams, account.identity.uid)?;

    // 11. The working directory, which may have to be made.
    reached(stage::CWD);
    let cwd = process.cwd().to_str().unwrap_or_default();
    command::enter_directory(&root, cwd)?;

    // 12. Nothing more is made in the rootfs: it may become read-only.
    if plan
        .spec
        .root()
        .as_ref()
        .is_some_and(|root| root.readonly() == Some(true))
    {
        let change = MountAttributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Default::default()
        };
        set_attributes(root.directory(), false, change)
            .at(stage::ROOTFS, || "make the rootfs read-only")?;
    }

    // 13. Limits, while still capable of raising them.
    limits::set_rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    umask(Mode::from_raw_mode(
        process.user().umask().unwrap_or(UMASK) & 0o777,
    ));

    // 14. Streams take their places; everything else closes with exec.
    channel::send_identity(born.channel, &account.identity)
        .at(stage::EXEC, || "report the user")?;
    command::install_streams(streams)?;

    // 15. Ids and capabilities, last: from here on it can do no more than the container may.
    let sets = Sets::from_spec(process.capabilities().as_ref());
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let last = Last::of(&confinement, no_new_privileges);
    capabilities::become_user(&account.identity, sets, last)?;

    // 16. Hooks inside can do no more than the command could; then confinement, and the command.
    if let Some(gate) = task.gate {
        gate.run("startContainer", plan, Some(&confinement))?;
    }
    reached(stage::EXEC);
    command.exec(&confinement)
}

/// Steps 4 and 5: namespaces of the pod, then those that could not be made by clone.
fn join_namespaces(task: &Task<'_>) -> Result<(), LaunchError> {
    reached(stage::NAMESPACE);
    // 4. Those of the pod. Their paths are the node's, so before the root changes.
    for (kind, path) in &task.namespaces.joined {
        namespaces::join(*kind, path)?;
    }
    // 5. The cgroup namespace begins at the cgroups the process is in: after joining them.
    if task.namespaces.new_cgroup {
        unshare_namespaces(UnshareFlags::NEWCGROUP)
            .at(stage::NAMESPACE, || "create a cgroup namespace")?;
    }
    if task.namespaces.new_uts {
        let spec = &task.plan.spec;
        if let Some(name) = spec.hostname() {
            sethostname(name.as_bytes())
                .at(stage::NAMESPACE, || format!("set the host name {name:?}"))?;
        }
        if let Some(name) = spec.domainname() {
            setdomainname(name.as_bytes())
                .at(stage::NAMESPACE, || format!("set the domain name {name:?}"))?;
        }
    } else if task.plan.spec.hostname().is_some() && !uts_is_joined(&task.plan.spec) {
        let message = "a host name is given, but the UTS namespace is the node's";
        return Err(LaunchError::invalid(stage::PLAN, message));
    }
    Ok(())
}

/// Whether the container shares a UTS namespace that somebody else has named.
fn uts_is_joined(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let mut namespaces = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten();
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Uts)
}

/// Steps 6 and 7: from the node's tree to the container's.
fn build_root(task: &Task<'_>) -> Result<Root, LaunchError> {
    let (plan, spec) = (task.plan, &task.plan.spec);
    // 6. What comes from the node is taken hold of: bind sources before propagation is cut, since
    //    a shared or slave mount has to come from a mount that still has its peers.
    reached(stage::MOUNT);
    let mut mounts = mounts::prepare(spec.mounts().as_deref().unwrap_or_default(), &plan.cgroup)?;
    let devices = devices::prepare(spec)?;
    reached(stage::ROOTFS);
    rootfs::isolate_propagation()?;
    let (images, mount_point) = (&plan.image_volumes, &plan.rootfs.mount_point);
    mounts::assemble_images(&mut mounts, images, mount_point, task.overlay)?;
    let mount = rootfs::assemble(&plan.rootfs, task.overlay)?;
    if let Some(gate) = task.gate {
        gate.run("createContainer", plan, None)?;
    }
    rootfs::enter(&mount)?;
    drop(mount);
    let root = Root::of_this_process().at(stage::ROOTFS, || "open the new root")?;
    // 7. Mounts, devices in them, and then what is to be hidden of both.
    reached(stage::MOUNT);
    mounts::attach_all(&root, &mounts)?;
    drop(mounts);
    if let Some(devices) = devices {
        devices::create(&root, &devices)?;
    }
    if let Some(linux) = spec.linux() {
        let paths = linux.readonly_paths().as_deref().unwrap_or_default();
        hidden_paths::make_read_only(&root, paths)?;
        hidden_paths::mask(&root, linux.masked_paths().as_deref().unwrap_or_default())?;
        set_propagation(&root, linux.rootfs_propagation().as_deref())?;
    }
    Ok(root)
}

/// Of the root mount alone: mounts of the plan have their own.
fn set_propagation(root: &Root, wanted: Option<&str>) -> Result<(), LaunchError> {
    let propagation = match wanted {
        // A mount that no one else has is as good as private when it is a slave.
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => return Ok(()),
        Some("shared" | "rshared") => libc::MS_SHARED,
        Some("unbindable" | "runbindable") => libc::MS_UNBINDABLE,
        Some(other) => {
            let message = format!("there is no rootfs propagation {other:?}");
            return Err(LaunchError::invalid(stage::PLAN, message));
        }
    };
    let change = MountAttributes {
        propagation,
        ..Default::default()
    };
    set_attributes(root.directory(), false, change)
        .at(stage::ROOTFS, || "set the propagation of the rootfs")
}

fn open_terminal(
    root: &Root,
    process: &Process,
    born: &Born<'_>,
) -> Result<ProcessStreams, LaunchError> {
    reached(stage::TERMINAL);
    let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
    let size = process
        .console_size()
        .map(|size| (cells(size.height()), cells(size.width())));
    let terminal = terminal::open(root, size)?;
    terminal::make_console(root, &terminal.slave)?;
    channel::send_terminal(born.channel, &terminal.master)
        .at(stage::TERMINAL, || "hand over the terminal")?;
    terminal::into_streams(terminal.slave)
}

/// Looks the user up in the files of the root.
pub(super) fn find_user(root: &Root, wanted: &PlanUser) -> Result<Account, LaunchError> {
    user::resolve(wanted, |database| {
        let path = database.path();
        root.read_file(path, DATABASE_MAX_BYTES)
            .at(stage::USER, || format!("read the image's {path}"))
    })
}
