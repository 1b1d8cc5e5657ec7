//! What the shim calls: start a container, a further process in one, or the init of a pod.
//!
//! For a caller with one thread. Each call comes in two forms: one that returns when the child has
//! executed its command (or reported why not), and one, `begin_…`, that returns at once, for an
//! event loop that has other things to do meanwhile.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

pub use super::error::LaunchError;
use super::error::stage;
use super::hooks::Gate;
use super::namespaces::Namespaces;
use super::plan::{CgroupEntry, ExecPlan, LaunchPlan};
use super::rootfs::OverlayInterface;
use super::spawn::{Birth, PidNamespace, begin};
pub use super::spawn::{LAUNCH_TIMEOUT, Launching};
pub use super::user::Identity;
use super::{container, external, hooks, join, limits, pod_init as init, unsupported};

/// A process that runs its command.
#[derive(Debug)]
pub struct Started {
    /// Process id in the caller's PID namespace. The process is the caller's child, to be reaped.
    pub pid: i32,
    /// Refers to the process even when the number has been given away.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    /// Who it runs as; `None` for the init of a pod.
    pub identity: Option<Identity>,
}

/// How far a launch has come.
#[derive(Debug)]
pub enum Progress {
    /// The child is still at it; [`Launching::channel`] tells when to look again.
    Waiting(Launching),
    /// The command runs.
    Started(Started),
}

/// Streams handed to a process that has no terminal.
#[derive(Debug)]
pub struct ProcessStreams {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// The numbers of descriptors that a child keeps.
pub(super) fn raw(streams: Option<&ProcessStreams>) -> Vec<RawFd> {
    let all = |streams: &ProcessStreams| {
        [&streams.stdin, &streams.stdout, &streams.stderr]
            .map(AsRawFd::as_raw_fd)
            .to_vec()
    };
    streams.map(all).unwrap_or_default()
}

/// The first process of a running container, whose namespaces and root an exec joins.
#[derive(Debug)]
pub struct Target {
    /// Process id in the caller's PID namespace.
    pub pid: i32,
    /// Of the same process.
    pub pidfd: OwnedFd,
}

/// The first process of a PID namespace that the containers of a pod share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInitPlan {
    /// Namespaces it joins, as (`net`, `ipc` or `uts`; path).
    pub namespaces: Vec<(String, PathBuf)>,
    /// Cgroups it enters.
    pub cgroup: CgroupEntry,
    /// The pod's user namespace, which its PID namespace is to belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<PathBuf>,
}

/// Starts the first process of a container. `streams` is `None` exactly if it has a terminal.
///
/// On success the process has executed its command. On failure nothing is left of it.
///
/// # Errors
///
/// At which stage what failed, see [`LaunchError`].
pub fn launch(plan: &LaunchPlan, streams: Option<ProcessStreams>) -> Result<Started, LaunchError> {
    begin_launch(plan, streams)?.wait()
}

/// [`launch`] without the wait.
///
/// # Errors
///
/// What fails before the child exists; the rest comes from [`Launching`].
pub fn begin_launch(
    plan: &LaunchPlan,
    streams: Option<ProcessStreams>,
) -> Result<Launching, LaunchError> {
    let invalid = |message: &str| LaunchError::invalid(stage::PLAN, message);
    let process = plan.spec.process().as_ref();
    let process = process.ok_or_else(|| invalid("no process is given"))?;
    let terminal = plan.stdio.terminal || process.terminal() == Some(true);
    if terminal == streams.is_some() {
        return Err(invalid("a process has either streams or a terminal"));
    }
    match &plan.external {
        Some(runtime) => external::begin_create(plan, runtime, streams),
        None if hooks::are_in(&plan.spec) => hooks::begin(plan, streams),
        None => begin_native(plan, streams, None),
    }
}

/// Begins a container of our own. With a `gate` it has its hooks run.
pub(super) fn begin_native(
    plan: &LaunchPlan,
    streams: Option<ProcessStreams>,
    gate: Option<&Gate>,
) -> Result<Launching, LaunchError> {
    let process = plan.spec.process().as_ref();
    let process =
        process.ok_or_else(|| LaunchError::invalid(stage::PLAN, "no process is given"))?;
    unsupported::refuse(&plan.spec, plan.seccomp.is_some())?;
    let linux = plan.spec.linux().as_ref();
    let given = linux.and_then(|linux| linux.namespaces().as_deref());
    let namespaces = Namespaces::from_spec(given.unwrap_or_default())?;
    let overlay = OverlayInterface::of_this_kernel();
    let mut kept = raw(streams.as_ref());
    kept.extend(gate.map(Gate::descriptors).into_iter().flatten());
    let birth = Birth {
        // In a user namespace the others are its successor's.
        created: match namespaces.user {
            Some(_) => ThreadNameSpaceType::MOUNT,
            None => namespaces.created,
        },
        pid: namespaces
            .pid
            .as_deref()
            .map_or(PidNamespace::Inherited, PidNamespace::At),
        cgroup: plan.cgroup.unified_dir.as_deref(),
        kept,
    };
    begin(&birth, |born| {
        let task = container::Task {
            plan,
            process,
            namespaces: &namespaces,
            overlay,
            gate,
        };
        container::run(&task, streams, &born)
    })
}

/// Starts a further process in the container of `target`. `streams` is `None` exactly if it gets a
/// `terminal`. It inherits the resource limits and the OOM score of the container's first process.
///
/// # Errors
///
/// At which stage what failed, see [`LaunchError`].
pub fn exec(
    target: &Target,
    plan: &ExecPlan,
    streams: Option<ProcessStreams>,
    terminal: bool,
) -> Result<Started, LaunchError> {
    begin_exec(target, plan, streams, terminal)?.wait()
}

/// [`exec`] without the wait.
///
/// # Errors
///
/// What fails before the child exists; the rest comes from [`Launching`].
pub fn begin_exec(
    target: &Target,
    plan: &ExecPlan,
    streams: Option<ProcessStreams>,
    terminal: bool,
) -> Result<Launching, LaunchError> {
    if terminal == streams.is_some() {
        let message = "a process has either streams or a terminal";
        return Err(LaunchError::invalid(stage::PLAN, message));
    }
    if let Some(runtime) = &plan.external {
        return external::begin_exec(target, plan, runtime, streams);
    }
    let inherited = limits::of_process(target.pid);
    let mut kept = raw(streams.as_ref());
    kept.push(target.pidfd.as_raw_fd());
    let birth = Birth {
        created: ThreadNameSpaceType::empty(),
        // Also the proof that the limits were those of the target: a process that can still be
        // joined cannot have lost its number before.
        pid: PidNamespace::Of(target.pidfd.as_fd()),
        cgroup: plan.cgroup.unified_dir.as_deref(),
        kept,
    };
    begin(&birth, |born| {
        join::run(target, plan, &inherited, streams, &born)
    })
}

/// Starts PID 1 of a pod that shares its PID namespace. It reaps what is orphaned there, ignores
/// everything else, and ends with SIGTERM (from outside of the namespace) or SIGKILL.
///
/// Its end takes the pod's other processes with it, and is complete (its pidfd readable, its status
/// to be had) only when the caller has reaped those that are its children.
///
/// It is this program, not a command: a process with an empty root, no capability, no descriptor,
/// and only its stack to work on.
///
/// # Errors
///
/// At which stage what failed, see [`LaunchError`].
pub fn pod_init(plan: &PodInitPlan) -> Result<Started, LaunchError> {
    begin_pod_init(plan)?.wait()
}

/// [`pod_init`] without the wait.
///
/// # Errors
///
/// What fails before the child exists; the rest comes from [`Launching`].
pub fn begin_pod_init(plan: &PodInitPlan) -> Result<Launching, LaunchError> {
    let birth = Birth {
        created: match plan.user {
            Some(_) => ThreadNameSpaceType::empty(),
            None => init::CREATED,
        },
        pid: PidNamespace::Inherited,
        cgroup: plan.cgroup.unified_dir.as_deref(),
        kept: Vec::new(),
    };
    begin(&birth, |born| init::run(plan, &born))
}
