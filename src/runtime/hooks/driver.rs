//! The process between the shim and a container with hooks.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, getpid, set_child_subreaper, set_parent_process_death_signal};
use rustix::thread::ThreadNameSpaceType;

use super::super::channel;
use super::super::error::{At, LaunchError, stage};
use super::super::external::{end_children, write_bundle};
use super::super::launch::{ProcessStreams, Progress, Started, begin_native, raw};
use super::super::plan::LaunchPlan;
use super::super::spawn::{Birth, Born, LAUNCH_TIMEOUT, Launching, PidNamespace, reached};
use super::{Gate, RECORD, State, of_prestart, run_all};
use crate::sys::process::exit_now;

/// Begins the launch of a container with hooks.
pub(in super::super) fn begin(
    plan: &LaunchPlan,
    streams: Option<ProcessStreams>,
) -> Result<Launching, LaunchError> {
    let birth = Birth {
        created: ThreadNameSpaceType::empty(),
        pid: PidNamespace::Inherited,
        cgroup: None,
        kept: raw(streams.as_ref()),
    };
    let launching = super::super::spawn::begin(&birth, |born| run(plan, streams, &born))?;
    Ok(launching.of_driver())
}

fn run(
    plan: &LaunchPlan,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<Infallible, LaunchError> {
    match drive(plan, streams, born) {
        Ok(()) => exit_now(0),
        Err(error) => {
            end_children();
            Err(error)
        }
    }
}

fn drive(
    plan: &LaunchPlan,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<(), LaunchError> {
    let what = || "become the driver of a container with hooks";
    set_parent_process_death_signal(Some(Signal::KILL)).at(stage::HOOK, what)?;
    set_child_subreaper(Some(getpid())).at(stage::HOOK, what)?;
    write_bundle(plan)?;
    let record = open_record(plan)?;
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .at(stage::HOOK, what)?;
    let gate = Gate {
        socket: theirs,
        record: record.try_clone().map_err(as_errno).at(stage::HOOK, what)?,
    };
    let launching = begin_native(plan, streams, Some(&gate))?;
    drop(gate);
    let started = attend(plan, launching, &ours, &record)?;
    reached(stage::HOOK);
    let hooks = plan
        .spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststart().as_deref());
    let state = State::of(plan, "running", Some(started.pid));
    // The command runs: what fails now is told, and stops nothing.
    let _ = run_all(
        "poststart",
        hooks.unwrap_or_default(),
        &state,
        &record,
        None,
    );
    tell(&started, born)
}

/// Waits until the command runs; runs the hooks of the node when they are asked for.
fn attend(
    plan: &LaunchPlan,
    mut launching: Launching,
    gate: &OwnedFd,
    record: &File,
) -> Result<Started, LaunchError> {
    let deadline = Instant::now() + LAUNCH_TIMEOUT;
    let mut asked = false;
    loop {
        let (channel_said, gate_said) = {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let channel = launching.channel();
            let mut both = [
                PollFd::new(&channel, PollFlags::IN),
                PollFd::new(
                    gate,
                    if asked {
                        PollFlags::empty()
                    } else {
                        PollFlags::IN
                    },
                ),
            ];
            match poll(&mut both, Some(&timeout)) {
                Ok(0) => return Err(launching.timed_out()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(LaunchError::refused(stage::HOOK, "wait", errno)),
            }
            let said = |one: &PollFd<'_>| !one.revents().is_empty();
            (said(&both[0]), !asked && said(&both[1]))
        };
        // Also before it is answered: whoever asks may have succeeded another, and has said so.
        if channel_said || gate_said {
            match launching.advance()? {
                Progress::Started(started) => return Ok(started),
                Progress::Waiting(waiting) => launching = waiting,
            }
        }
        if gate_said {
            asked = true;
            if matches!(rustix::io::read(gate, &mut [0_u8; 1]), Ok(1)) {
                of_node(plan, launching.pid(), record)?;
                rustix::io::write(gate, b"!").at(stage::HOOK, || "let the launch go on")?;
            }
        }
    }
}

/// The two stages that run on the node before the command.
fn of_node(plan: &LaunchPlan, pid: Option<i32>, record: &File) -> Result<(), LaunchError> {
    reached(stage::HOOK);
    let state = State::of(plan, "creating", pid);
    let first = of_prestart(&plan.spec).as_deref().unwrap_or_default();
    run_all("prestart", first, &state, record, None)?;
    let hooks = plan.spec.hooks().as_ref();
    let second = hooks.and_then(|hooks| hooks.create_runtime().as_deref());
    run_all(
        "createRuntime",
        second.unwrap_or_default(),
        &state,
        record,
        None,
    )
}

fn open_record(plan: &LaunchPlan) -> Result<File, LaunchError> {
    let path = plan.stdio.fifo_dir.join(RECORD);
    let _ = std::fs::remove_file(&path);
    let mut options = OpenOptions::new();
    options.append(true).create_new(true).mode(0o600);
    let opened = options.open(&path).map_err(as_errno);
    opened.at(stage::HOOK, || format!("make {path:?}"))
}

fn tell(started: &Started, born: &Born<'_>) -> Result<(), LaunchError> {
    let what = || "tell of the process";
    if let Some(identity) = &started.identity {
        channel::send_identity(born.channel, identity).at(stage::HOOK, what)?;
    }
    if let Some(master) = &started.terminal {
        channel::send_terminal(born.channel, master).at(stage::HOOK, what)?;
    }
    channel::send_process(born.channel, started.pid, started.pidfd.as_fd()).at(stage::HOOK, what)
}

fn as_errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
