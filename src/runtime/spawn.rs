//! Creating a child and hearing how it fared.
//!
//! ```text
//! begin ─► child sets itself up ─► exec        ─► channel closes        ─► Started
//!    │            ├──────────────► successor   ─► goes on in its place
//!    │            └──────────────► error       ─► message, child reaped ─► LaunchError
//!    │            └──────────────► killed      ─► channel closes        ─► LaunchError
//!    └─ no end in LAUNCH_TIMEOUT ─────────────── killed, reaped          ─► LaunchError
//! ```
//!
//! A child keeps none of its parent's descriptors but those it needs: one that hangs for long would
//! keep everything open that the parent closes meanwhile.
//!
//! The shim's own namespaces are never left, with one exception that lasts two system calls: the
//! PID namespace *for children*, when a child has to be born in an existing one. That is cheaper
//! than a process in between, and leaves the shim the parent that reaps the child.
//!
//! A process in between there is for a pod with a user namespace: its PID namespace has to be made
//! by somebody who is in the user namespace already, and whoever is has lost the node's privileges.
//! So the first child takes hold of all that only the node's root can, and its successor, a child
//! of the same parent, goes on inside.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, setsid, waitid};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space};

use super::channel::{self, Message};
use super::error::{At, LaunchError, stage};
use super::launch::{Progress, Started};
use super::protect::protect_self;
use super::user::Identity;
use crate::sys::clone::{self, Child};
use crate::sys::process::{close_all_but, exit_now};

/// How long a child may take to set itself up. Only a hung file system or a frozen cgroup takes
/// that long.
pub const LAUNCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a killed child may take to go.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);
/// Exit status of a child that failed before exec; it reported why.
const FAILED: i32 = 125;

/// The PID namespace a child is born in.
pub(super) enum PidNamespace<'a> {
    /// The shim's, or a new one, as the clone flags say.
    Inherited,
    /// That of a running process.
    Of(BorrowedFd<'a>),
    /// That at a path.
    At(&'a Path),
}

/// What has to be decided before a child exists.
pub(super) struct Birth<'a> {
    pub(super) created: ThreadNameSpaceType,
    pub(super) pid: PidNamespace<'a>,
    /// A cgroup v2 directory.
    pub(super) cgroup: Option<&'a Path>,
    /// Descriptors of the parent that the child needs besides its standard streams.
    pub(super) kept: Vec<RawFd>,
}

/// What a child knows of its birth.
pub(super) struct Born<'a> {
    pub(super) channel: BorrowedFd<'a>,
    /// Whether it is in the cgroup v2 directory already.
    pub(super) in_cgroup: bool,
}

/// A child on its way to exec.
#[derive(Debug)]
pub struct Launching {
    /// Gone once it is known how the launch ended.
    child: Option<Child>,
    /// Whom it has succeeded, to be reaped.
    former: Option<Child>,
    channel: OwnedFd,
    identity: Option<Identity>,
    terminal: Option<OwnedFd>,
    /// The child has somebody else start the process, and this is it.
    process: Option<Child>,
    is_driver: bool,
}

/// Creates a child that runs `body`, which ends in exec or in an error.
pub(super) fn begin(
    birth: &Birth<'_>,
    body: impl FnOnce(Born<'_>) -> Result<Infallible, LaunchError>,
) -> Result<Launching, LaunchError> {
    let what = || "create a channel to the new process";
    let (parent_end, child_end) = channel::pair().at(stage::CLONE, what)?;
    let cgroup = birth.cgroup.map(|directory| {
        openat(
            CWD,
            directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .at(stage::CGROUP, || format!("open cgroup {directory:?}"))
    });
    let cgroup = cgroup.transpose()?;
    let home = enter_pid_namespace(&birth.pid)?;
    let child = clone::spawn(
        birth.created,
        cgroup.as_ref().map(AsFd::as_fd),
        |in_cgroup| {
            let channel = child_end.as_fd();
            reached(stage::CLONE);
            let ready = make_ready(channel, &birth.kept);
            let error = match ready.and_then(|()| body(Born { channel, in_cgroup })) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            channel::send_failure(channel, &error);
            FAILED
        },
    );
    leave_pid_namespace(home);
    let child = child.at(stage::CLONE, || "create a process")?;
    Ok(Launching {
        child: Some(child),
        former: None,
        channel: parent_end,
        identity: None,
        terminal: None,
        process: None,
        is_driver: false,
    })
}

/// Goes on in a successor, which is in new namespaces of the kinds in `created` and otherwise where
/// the calling child is, and ends that child.
///
/// The successor does nothing before the parent can hear of it: it could not be told from others
/// when it ends.
pub(super) fn go_on(
    created: ThreadNameSpaceType,
    born: &Born<'_>,
    body: impl FnOnce() -> Result<Infallible, LaunchError>,
) -> Result<Infallible, LaunchError> {
    let what = || "create a process in the user namespace";
    let (gate, key) = pipe_with(PipeFlags::CLOEXEC).at(stage::CLONE, what)?;
    let mut key = Some(key);
    let successor = clone::spawn_sibling(created, || {
        drop(key.take());
        let mut word = [0_u8; 1];
        if rustix::io::retry_on_intr(|| rustix::io::read(&gate, &mut word)) != Ok(1) {
            return FAILED;
        }
        let ready = begin_again();
        let error = match ready.and_then(|()| body()) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        channel::send_failure(born.channel, &error);
        FAILED
    });
    let successor = successor.at(stage::CLONE, what)?;
    channel::send_successor(born.channel, &successor.pidfd)
        .at(stage::CLONE, || "name the process in the user namespace")?;
    if let Some(key) = &key {
        rustix::io::write(key, b"1").at(stage::CLONE, what)?;
    }
    exit_now(0)
}

/// What a successor does for itself: the user namespace has made it dumpable by the node's rules.
fn begin_again() -> Result<(), LaunchError> {
    protect_self().at(stage::CLONE, || "make the process non-dumpable")?;
    setsid().at(stage::CLONE, || "begin a session").map(drop)
}

/// The first steps of every child: out of reach of the container, and with nothing in hand that is
/// its parent's.
fn make_ready(channel: BorrowedFd<'_>, kept: &[RawFd]) -> Result<(), LaunchError> {
    protect_self().at(stage::CLONE, || "make the process non-dumpable")?;
    let mut kept = kept.to_vec();
    kept.extend([0, 1, 2, channel.as_raw_fd()]);
    close_all_but(&mut kept).at(stage::CLONE, || "close descriptors")
}

/// Chooses the PID namespace of the next child; returns the way back.
fn enter_pid_namespace(wanted: &PidNamespace<'_>) -> Result<Option<OwnedFd>, LaunchError> {
    let open = |path: &Path| {
        openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at(stage::NAMESPACE, || format!("open PID namespace {path:?}"))
    };
    let kind = Some(LinkNameSpaceType::ProcessID);
    let what = || "join the PID namespace";
    match wanted {
        PidNamespace::Inherited => Ok(None),
        PidNamespace::At(path) => {
            let (there, home) = (open(path)?, open(Path::new("/proc/self/ns/pid"))?);
            // The process that the path names may have ended, and its number be another's.
            if is_same_file(&there, &home)? {
                let what = format!("{path:?} is the node's own PID namespace");
                return Err(LaunchError::refused(stage::NAMESPACE, what, Errno::PERM));
            }
            move_into_link_name_space(there.as_fd(), kind).at(stage::NAMESPACE, what)?;
            Ok(Some(home))
        }
        PidNamespace::Of(process) => {
            let home = open(Path::new("/proc/self/ns/pid"))?;
            move_into_link_name_space(*process, kind).map_err(|errno| match errno {
                Errno::SRCH => {
                    LaunchError::refused(stage::NAMESPACE, "the container has ended", errno)
                }
                _ => LaunchError::refused(stage::NAMESPACE, what(), errno),
            })?;
            Ok(Some(home))
        }
    }
}

fn is_same_file(one: &OwnedFd, other: &OwnedFd) -> Result<bool, LaunchError> {
    let file = |fd: &OwnedFd| {
        let found = rustix::fs::fstat(fd).at(stage::NAMESPACE, || "look at a PID namespace")?;
        Ok((found.st_dev, found.st_ino))
    };
    Ok(file(one)? == file(other)?)
}

/// A shim whose children were born in a container's namespace would be worse than none: the daemon
/// starts another, and the containers do not notice. The kernel has no reason to refuse.
fn leave_pid_namespace(home: Option<OwnedFd>) {
    if let Some(home) = home {
        let kind = Some(LinkNameSpaceType::ProcessID);
        if move_into_link_name_space(home.as_fd(), kind).is_err() {
            std::process::abort();
        }
    }
}

impl Launching {
    /// Becomes readable whenever [`Launching::advance`] can make progress, and hangs up when that
    /// will tell how the launch ended: for an event loop.
    #[must_use]
    pub fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// The same for a child that executes nothing: it has another process started, tells which, and
    /// ends. That process is the caller's child from then on.
    pub(super) fn of_driver(mut self) -> Self {
        self.is_driver = true;
        self
    }

    /// Whether the process to come is orphaned to the caller, which may see its end before it has
    /// heard of it: [`Launching::advance`] before reaping.
    #[must_use]
    pub fn is_driver(&self) -> bool {
        self.is_driver
    }

    /// The child's process id in the caller's PID namespace, before exec and after.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.pid)
    }

    /// Takes in what the child has said, without waiting.
    ///
    /// # Errors
    ///
    /// The child's error. It has been killed, and is the caller's to reap.
    pub fn advance(mut self) -> Result<Progress, LaunchError> {
        if self.listen()? {
            self.started().map(Progress::Started)
        } else {
            Ok(Progress::Waiting(self))
        }
    }

    /// Waits until the child has executed its command or failed, at most [`LAUNCH_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// The child's error, or a timeout; the child has been reaped.
    pub fn wait(mut self) -> Result<Started, LaunchError> {
        let deadline = Instant::now() + LAUNCH_TIMEOUT;
        let outcome = loop {
            match self.listen() {
                Ok(true) => break Ok(()),
                Ok(false) if wait_readable(self.channel.as_fd(), deadline) => {}
                Ok(false) => break Err(self.timed_out()),
                Err(error) => break Err(error),
            }
        };
        if let Some(former) = self.former.take() {
            end(&former);
        }
        match outcome {
            Ok(()) => self.started(),
            Err(error) => {
                if let Some(child) = self.child.take() {
                    end(&child);
                }
                Err(error)
            }
        }
    }

    /// Whether the command runs.
    fn listen(&mut self) -> Result<bool, LaunchError> {
        loop {
            match channel::receive(self.channel.as_fd()) {
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => {
                    let what = "hear from the process";
                    return Err(LaunchError::refused(stage::CLONE, what, errno));
                }
                Ok(Some(Message::Failed(error))) => return Err(error),
                Ok(Some(Message::Identity(identity))) => self.identity = Some(identity),
                Ok(Some(Message::Terminal(master))) => self.terminal = Some(master),
                Ok(Some(Message::Process(pid, pidfd))) => self.process = Some(Child { pid, pidfd }),
                Ok(Some(Message::Ready)) => return Ok(true),
                Ok(Some(Message::Successor(pidfd))) => self.is_succeeded_by(pidfd)?,
                Ok(None) if self.is_driver => return self.driver_is_through(),
                Ok(None) => return self.died_early().map_or(Ok(true), Err),
            }
        }
    }

    /// From here on another process is the child.
    fn is_succeeded_by(&mut self, pidfd: OwnedFd) -> Result<(), LaunchError> {
        let what = || "find the process in the user namespace";
        let Some(pid) = pid_of(pidfd.as_fd()) else {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            return Err(LaunchError::refused(stage::CLONE, what(), Errno::SRCH));
        };
        self.former = self.child.replace(Child { pid, pidfd });
        Ok(())
    }

    fn driver_is_through(&self) -> Result<bool, LaunchError> {
        let message = "the driver of the runtime ended before it was through";
        let died = || LaunchError::invalid(stage::RUNTIME, message);
        self.process.as_ref().map(|_| true).ok_or_else(died)
    }

    /// At the end of file the child has become the command, or is dying. A dying process has no
    /// program, and a name that it cannot change any more.
    fn died_early(&self) -> Option<LaunchError> {
        let child = self.child.as_ref()?;
        if std::fs::read_link(format!("/proc/{}/exe", child.pid)).is_ok() {
            return None;
        }
        let reached = stage_of(child)?;
        let message = format!("the process was killed before it ran its command, at: {reached}");
        Some(LaunchError::invalid(stage::CLONE, message))
    }

    fn started(mut self) -> Result<Started, LaunchError> {
        let gone = || LaunchError::invalid(stage::CLONE, "the launch has ended already");
        let child = self.child.take().ok_or_else(gone)?;
        let Child { pid, pidfd } = self.process.take().unwrap_or(child);
        let terminal = self.terminal.take();
        Ok(Started {
            pid,
            pidfd,
            terminal,
            identity: self.identity.take(),
        })
    }

    /// The error for a child that takes too long. Drop the value to end the child.
    #[must_use]
    pub fn timed_out(&self) -> LaunchError {
        let reached = self.child.as_ref().and_then(stage_of);
        let reached = reached.as_deref().unwrap_or("its beginning");
        let seconds = LAUNCH_TIMEOUT.as_secs();
        let message = format!("the launch did not finish in {seconds} s; it reached: {reached}");
        LaunchError::invalid(stage::TIMEOUT, message)
    }
}

/// A launch that is given up is ended. Its process is the caller's to reap, as every child.
impl Drop for Launching {
    fn drop(&mut self) {
        let Some(child) = &self.child else { return };
        kill(child);
        // It may have got a successor that nobody has heard of. A later one finds its gate shut.
        while let Ok(Some(message)) = channel::receive(self.channel.as_fd()) {
            if let Message::Successor(pidfd) = message {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
}

fn kill(child: &Child) {
    let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
}

/// Kills and reaps. One that cannot die (a hung file system) is left to whoever reaps orphans.
fn end(child: &Child) {
    kill(child);
    if wait_readable(child.pidfd.as_fd(), Instant::now() + REAP_TIMEOUT) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), options);
    }
}

/// The number of a process in our own PID namespace (proc(5), `fdinfo`); none once it is reaped.
fn pid_of(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    number.trim().parse().ok().filter(|pid| *pid > 0)
}

/// A child keeps its stage in its name: readable from here whatever it is stuck in.
fn stage_of(child: &Child) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{}/comm", child.pid)).ok()?;
    name.trim().strip_prefix(STAGE_PREFIX).map(str::to_owned)
}

pub(super) fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// What a child's name begins with while it sets itself up.
const STAGE_PREFIX: &str = "quilt:";

/// Marks the stage that the calling child is at, for whoever wonders what it is waiting for.
pub(super) fn reached(stage: &str) {
    if let Ok(name) = std::ffi::CString::new(format!("{STAGE_PREFIX}{stage}")) {
        let _ = rustix::thread::set_name(&name);
    }
}
