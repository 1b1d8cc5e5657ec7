//! Containers of an OCI runtime that is a program of its own (runc, crun, …).
//!
//! ```text
//! shim ── driver: a subreaper with a mount namespace of its own, in which the rootfs is mounted
//!            ├── RUNTIME create ── the container's first process, orphaned to the driver
//!            ├── RUNTIME start
//!            └── tells the shim its pid and pidfd, and ends: the process becomes the shim's child
//! ```
//!
//! The shim itself waits for nothing: the driver is a launch like any other. And no exit is missed:
//! an orphan that dies at once stays the driver's to reap, which it never does, until the shim has
//! heard of it. From then on a container is what ours are: a child of the shim, with its FIFOs and
//! its cgroup. Only who enters it differs: joining its namespaces is not the way into every
//! runtime's container, so commands go through `RUNTIME exec`.

mod bundle;
mod console;
mod create;
mod driver;
mod exec;

use std::os::fd::AsRawFd;

pub(super) use bundle::write_for_hooks as write_bundle;
pub(super) use driver::end_children;

use rustix::thread::ThreadNameSpaceType;

use super::error::LaunchError;
use super::launch::{ProcessStreams, Target, raw};
use super::limits;
use super::plan::{ExecPlan, ExternalRuntime, LaunchPlan};
use super::rootfs::OverlayInterface;
use super::spawn::{Birth, Launching, PidNamespace, begin};

/// Begins the launch of a container by `runtime`.
pub(super) fn begin_create(
    plan: &LaunchPlan,
    runtime: &ExternalRuntime,
    streams: Option<ProcessStreams>,
) -> Result<Launching, LaunchError> {
    let overlay = OverlayInterface::of_this_kernel();
    let birth = Birth {
        created: ThreadNameSpaceType::MOUNT,
        pid: PidNamespace::Inherited,
        cgroup: None,
        kept: raw(streams.as_ref()),
    };
    let launching = begin(&birth, |born| {
        create::run(plan, runtime, overlay, streams, &born)
    })?;
    Ok(launching.of_driver())
}

/// Begins a further process in a container of `runtime`.
pub(super) fn begin_exec(
    target: &Target,
    plan: &ExecPlan,
    runtime: &ExternalRuntime,
    streams: Option<ProcessStreams>,
) -> Result<Launching, LaunchError> {
    let inherited = limits::of_process(target.pid);
    let mut kept = raw(streams.as_ref());
    kept.push(target.pidfd.as_raw_fd());
    let birth = Birth {
        created: ThreadNameSpaceType::empty(),
        pid: PidNamespace::Inherited,
        cgroup: None,
        kept,
    };
    let launching = begin(&birth, |born| {
        exec::run(target, plan, runtime, &inherited, streams, &born)
    })?;
    Ok(launching.of_driver())
}
