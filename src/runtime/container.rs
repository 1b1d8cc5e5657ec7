//! The first process of a container, from clone to exec, in numbered steps.
//!
//! Runs in the child. The order is not a matter of taste: each step says what it must come after.
//! In a user namespace, steps from 7 on are those of its successor (`spawn::go_on`).

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{setsid, umask};
use rustix::system::{setdomainname, sethostname};
use rustix::thread::UnshareFlags;

use super::capabilities::{self, Last, Sets};
use super::command::{self, Command};
use super::confine::Confinement;
use super::error::{At, LaunchError, stage};
use super::hooks::{self, Gate};
use super::id_maps::IdMaps;
use super::launch::ProcessStreams;
use super::namespaces::Namespaces;
use super::plan::{LaunchPlan, PlanUser};
use super::protect::leave_keyring;
use super::root::Root;
use super::rootfs::{self, OverlayInterface, Site};
use super::scratch::move_to;
use super::spawn::{Born, go_on, reached};
use super::user::{self, Account};
use super::user_namespace::{self, Users};
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

/// What was taken hold of while the node's tree was in sight.
struct Held {
    mounts: Vec<mounts::Prepared>,
    devices: Option<devices::Prepared>,
    rootfs: OwnedFd,
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
    let command = Command::new(arguments, environment, &plan.environment_bytes)?;
    let users = task.namespaces.user.as_deref();
    let users = users.map(|path| Users::of_plan(&plan.spec, path));
    let users = users.transpose()?;

    // 1. A session of its own, so that no terminal and no signal of the shim's reaches it. Modes
    //    of what is made from here on are given exactly.
    umask(Mode::empty());
    setsid().at(stage::CLONE, || "begin a session")?;
    leave_keyring().at(stage::CLONE, || "leave the session keyring")?;

    // 2. Cgroups, first of all: what follows is the container's work and counts as such.
    reached(stage::CGROUP);
    cgroup_entry::enter(&plan.cgroup, born.in_cgroup)?;

    // 3. The OOM score, while /proc is still the node's.
    if let Some(score) = process.oom_score_adj() {
        limits::set_oom_score_adj(score)?;
    }

    // 4. What comes from the node.
    let held = take_hold(task, users.as_ref())?;

    // 5. Namespaces of the pod. Their paths are the node's, so before the root changes.
    reached(stage::NAMESPACE);
    for (kind, path) in &task.namespaces.joined {
        namespaces::join(*kind, path)?;
    }
    let Some(users) = &users else {
        return go_inside(task, held, None, (command, streams), born);
    };

    // 6. The user namespace, last of them: from here on the node's root is nobody. What only he
    //    can do comes right before.
    limits::set_hard_limits(process.rlimits().as_deref().unwrap_or_default())?;
    if let Some(streams) = &streams {
        command::give_streams(streams, users.root()?)?;
    }
    users.join()?;
    go_on(task.namespaces.created, born, || {
        go_inside(task, held, Some(users), (command, streams), born)
    })
}

/// Bind sources come first: a shared or slave mount has to come from a mount that still has its
/// peers. Then nothing travels between this mount namespace and the node's any more, and layers are
/// put together.
fn take_hold(task: &Task<'_>, users: Option<&Users>) -> Result<Held, LaunchError> {
    let (plan, spec) = (task.plan, &task.plan.spec);
    reached(stage::MOUNT);
    let mut id_maps = IdMaps::new(users);
    let wanted = spec.mounts().as_deref().unwrap_or_default();
    let mut mounts = mounts::prepare(wanted, &plan.cgroup, &mut id_maps)?;
    reached(stage::ROOTFS);
    rootfs::isolate_propagation()?;
    let site = Site {
        mount_point: &plan.rootfs.mount_point,
        with: task.overlay,
        users: users.map(Users::namespace),
    };
    let devices = devices::prepare(spec, users, site.mount_point)?;
    mounts::assemble_images(&mut mounts, &plan.image_volumes, site, &mut id_maps)?;
    if let Some(users) = users {
        // An overlay looks at the owner once, when it is mounted.
        rootfs::give_upper(&plan.rootfs, users.root()?)?;
    }
    let rootfs = rootfs::assemble(&plan.rootfs, site)?;
    Ok(Held {
        mounts,
        devices,
        rootfs,
    })
}

/// The rest, in a mount namespace and a user namespace that it stays in.
fn go_inside(
    task: &Task<'_>,
    held: Held,
    users: Option<&Users>,
    (mut command, streams): (Command, Option<ProcessStreams>),
    born: &Born<'_>,
) -> Result<Infallible, LaunchError> {
    let (plan, process) = (task.plan, task.process);

    // 7. The cgroup namespace begins at the cgroups the process is in.
    make_namespaces(task)?;
    if let Some(gate) = task.gate {
        gate.ask()?;
    }

    // 8. The root, and all that is in it; and a hold on what it will be confined by.
    let (root, confinement) = build_root(task, held, users)?;

    // 9. The terminal: its devpts is mounted now. The master goes out while there is a channel.
    let streams = match streams {
        Some(streams) => streams,
        None => open_terminal(&root, process, born)?,
    };

    // 10. Who it runs as, by the files of the image.
    reached(stage::USER);
    let account = find_user(&root, &plan.user)?;
    if let Some(users) = users {
        user_namespace::check(users.maps(), &account.identity)?;
    }
    command.set_missing_home(&account.home);

    // 11. Streams belong to that user, or /dev/stdout could not be opened.
    command::own_streams(&streams, account.identity.uid)?;

    // 12. The working directory, which may have to be made. Then nothing more is made in the
    //     rootfs: it may become read-only.
    reached(stage::CWD);
    let cwd = process.cwd().to_str().unwrap_or_default();
    command::enter_directory(&root, cwd)?;
    close_rootfs(&root, &plan.spec)?;

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

/// Makes the rootfs read-only if it is to be.
fn close_rootfs(root: &Root, spec: &Spec) -> Result<(), LaunchError> {
    let wanted = spec.root().as_ref().and_then(|root| root.readonly());
    if wanted != Some(true) {
        return Ok(());
    }
    let change = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    set_attributes(root.directory(), false, change)
        .at(stage::ROOTFS, || "make the rootfs read-only")
}

/// Namespaces that clone could not make, or that have to be told something.
fn make_namespaces(task: &Task<'_>) -> Result<(), LaunchError> {
    reached(stage::NAMESPACE);
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

/// From the node's tree to the container's.
fn build_root(
    task: &Task<'_>,
    held: Held,
    users: Option<&Users>,
) -> Result<(Root, Confinement), LaunchError> {
    let Held {
        mut mounts,
        devices,
        rootfs,
    } = held;
    reached(stage::ROOTFS);
    // Whoever is somebody else by now may not find the way to the mount point.
    move_to(&rootfs, &task.plan.rootfs.mount_point)?;
    if users.is_some() {
        user_namespace::become_root()?;
    }
    // The node's /proc is in sight for the last time.
    let profile = task.process.apparmor_profile().as_deref();
    let mut confinement = Confinement::prepare(profile, task.plan.seccomp.as_ref())?;
    if hooks::are_inside(&task.plan.spec) {
        confinement = confinement.for_children()?;
    }
    reached(stage::MOUNT);
    mounts::create_all(&mut mounts)?;
    let furnish = |root: &Root| {
        // Mounts, and devices in them.
        reached(stage::MOUNT);
        mounts::attach_all(root, &mounts)?;
        let devices = devices.as_ref();
        devices.map_or(Ok(()), |devices| devices::create(root, devices))
    };
    // Hooks of the node's that work on what the container will see need the node's files and the
    // container's at once. Without any, nothing is done before the node's tree is gone.
    let gate = task.gate.filter(|_| hooks::are_for_new(&task.plan.spec));
    if let Some(gate) = gate {
        let root = rootfs.try_clone().map_err(|_| Errno::MFILE);
        furnish(&Root::at(root.at(stage::ROOTFS, || "hold the rootfs")?))?;
        gate.run("createContainer", task.plan, None)?;
    }
    reached(stage::ROOTFS);
    rootfs::enter(&rootfs)?;
    drop(rootfs);
    let root = Root::of_this_process().at(stage::ROOTFS, || "open the new root")?;
    if gate.is_none() {
        furnish(&root)?;
    }
    // Then what is to be hidden of it.
    reached(stage::PATHS);
    if let Some(linux) = task.plan.spec.linux() {
        let paths = linux.readonly_paths().as_deref().unwrap_or_default();
        hidden_paths::make_read_only(&root, paths)?;
        hidden_paths::mask(&root, linux.masked_paths().as_deref().unwrap_or_default())?;
        set_propagation(&root, linux.rootfs_propagation().as_deref())?;
    }
    Ok((root, confinement))
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
