//! One hook: a program with the container's state as its input, a bound on its time, and a bound on
//! what is kept of its output.

use std::ffi::{CString, OsString};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, SeekFrom, fcntl_setfl, memfd_create, seek};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, set_parent_process_death_signal};
use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process_group, setpgid, waitid};
use rustix::thread::ThreadNameSpaceType;

use super::super::confine::Confinement;
use crate::sys::clone::{self, Child};
use crate::sys::process::{close_on_exec_from, reset_signals};

/// What is kept of the output; the rest is read and thrown away.
const SAID_MAX: usize = 4096;
/// For a hook that names none.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long output may go on after the end of the hook.
const AFTER_END: Duration = Duration::from_millis(200);
/// Exit status of a child that could not become the hook.
const NOT_EXECUTED: i32 = 127;

/// Why a hook has failed.
#[derive(Debug)]
pub(super) enum Failure {
    Start(Errno),
    TimedOut(Duration),
    Status(i32),
    Killed,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(errno) => write!(f, "cannot be started: {errno}"),
            Self::TimedOut(after) => {
                write!(f, "did not end in {} s and was killed", after.as_secs())
            }
            Self::Status(NOT_EXECUTED) => write!(f, "cannot be executed, or ended with 127"),
            Self::Status(code) => write!(f, "ended with {code}"),
            Self::Killed => write!(f, "was killed by a signal"),
        }
    }
}

/// Runs it to its end, and returns what it has said in any case.
pub(super) fn run(
    hook: &Hook,
    state: &[u8],
    confinement: Option<&Confinement>,
) -> (String, Result<(), Failure>) {
    let mut said = Vec::new();
    let result = start(hook, state, confinement).map_err(Failure::Start);
    let result = result.and_then(|(child, output)| {
        let own = hook
            .timeout()
            .and_then(|seconds| u64::try_from(seconds).ok());
        let within = own.map_or(TIMEOUT, Duration::from_secs);
        follow(&child, &output, within, &mut said)
    });
    let text = String::from_utf8_lossy(&said);
    (text.trim_end().to_owned(), result)
}

fn start(
    hook: &Hook,
    state: &[u8],
    confinement: Option<&Confinement>,
) -> Result<(Child, OwnedFd), Errno> {
    let words = |texts: &[String]| -> Result<Vec<CString>, Errno> {
        let texts = texts.iter();
        let texts = texts.map(|text| CString::new(text.as_str()).map_err(|_| Errno::INVAL));
        texts.collect()
    };
    let path = OsString::from(hook.path()).into_vec();
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let mut arguments = words(hook.args().as_deref().unwrap_or_default())?;
    if arguments.is_empty() {
        arguments.push(path.clone());
    }
    let environment = words(hook.env().as_deref().unwrap_or_default())?;
    // A file and no pipe: a hook that reads nothing holds nobody up.
    let input = memfd_create(c"state", MemfdFlags::CLOEXEC)?;
    let mut rest = state;
    while !rest.is_empty() {
        let written = rustix::io::write(&input, rest)?;
        rest = &rest[written..];
    }
    seek(&input, SeekFrom::Start(0))?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    let child = clone::spawn(ThreadNameSpaceType::empty(), None, |_| {
        let ready = setpgid(None, None)
            .and_then(|()| set_parent_process_death_signal(Some(Signal::KILL)))
            .and_then(|()| rustix::stdio::dup2_stdin(&input))
            .and_then(|()| rustix::stdio::dup2_stdout(&writer))
            .and_then(|()| rustix::stdio::dup2_stderr(&writer))
            .and_then(|()| close_on_exec_from(3));
        let confined = confinement.is_none_or(|confinement| confinement.put_on_child().is_ok());
        if ready.is_ok() && confined {
            reset_signals();
            let _ = nix::unistd::execve(&path, &arguments, &environment);
        }
        NOT_EXECUTED
    })?;
    Ok((child, reader))
}

/// Reads what it says until it has ended, and kills it with its children when its time is over.
fn follow(
    child: &Child,
    output: &OwnedFd,
    within: Duration,
    said: &mut Vec<u8>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + within;
    let mut open = true;
    loop {
        let ended = wait_for(child, output, open, deadline).map_err(Failure::Start)?;
        open = open && read_some(output, said);
        match ended {
            Some(true) => break,
            Some(false) => {}
            None => {
                kill_all(child);
                return Err(Failure::TimedOut(within));
            }
        }
    }
    let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = status.map_err(Failure::Start)?;
    let last = Instant::now() + AFTER_END;
    while open && matches!(readable(output, last), Ok(true)) {
        open = read_some(output, said);
    }
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Status(code)),
        None => Err(Failure::Killed),
    }
}

/// Whether it has ended; `None` is the end of its time.
fn wait_for(
    child: &Child,
    output: &OwnedFd,
    open: bool,
    deadline: Instant,
) -> Result<Option<bool>, Errno> {
    let mut both = vec![PollFd::new(&child.pidfd, PollFlags::IN)];
    if open {
        both.push(PollFd::new(output, PollFlags::IN));
    }
    match poll(&mut both, Some(&left(deadline))) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(!both[0].revents().is_empty())),
        Err(Errno::INTR) => Ok(Some(false)),
        Err(errno) => Err(errno),
    }
}

fn readable(output: &OwnedFd, deadline: Instant) -> Result<bool, Errno> {
    let count = poll(
        &mut [PollFd::new(output, PollFlags::IN)],
        Some(&left(deadline)),
    )?;
    Ok(count > 0)
}

fn left(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}

/// `false` at the end of file.
fn read_some(output: &OwnedFd, said: &mut Vec<u8>) -> bool {
    let mut piece = [0_u8; 4096];
    match rustix::io::read(output, &mut piece) {
        Ok(0) => false,
        Ok(count) => {
            let room = SAID_MAX - said.len();
            said.extend_from_slice(&piece[..count.min(room)]);
            true
        }
        Err(Errno::AGAIN | Errno::INTR) => true,
        Err(_) => false,
    }
}

fn kill_all(child: &Child) {
    if let Some(group) = Pid::from_raw(child.pid) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::HookBuilder;

    use super::*;
    use crate::runtime::launch_tests::alone;

    fn shell(script: &str) -> Hook {
        let words = ["sh", "-c", script].map(str::to_owned);
        let hook = HookBuilder::default()
            .path("/bin/sh")
            .args(words)
            .env(["A=b".to_owned(), "PATH=/usr/bin:/bin".to_owned()])
            .timeout(1);
        hook.build().expect("a hook")
    }

    #[test]
    fn a_hook_reads_the_state_and_what_it_says_is_kept_in_part() {
        alone(|| {
            let (said, result) = run(&shell("cat; echo $A; echo no >&2; exit 3"), b"{}", None);
            assert_eq!(said, "{}b\nno");
            assert!(matches!(result, Err(Failure::Status(3))));
            let (said, result) = run(&shell("yes | head -c 100000"), b"", None);
            assert_eq!((said.len(), result.is_ok()), (SAID_MAX - 1, true));
        });
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed() {
        alone(|| {
            let (said, result) = run(&shell("echo before; sleep 1000 & wait"), b"", None);
            assert_eq!(said, "before");
            assert!(matches!(result, Err(Failure::TimedOut(_))));
        });
    }
}
