//! Handles on the processes of containers: pidfds, which name a process for good, where a number
//! may come to name another.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::mpsc;

use super::{ReconcileError, blocking};
use crate::cgroup::{CgroupError, CgroupPath, Cgroups, Holder};
use crate::id::ContainerId;

/// What is held of a container while its process lives.
pub struct Handle {
    /// The process.
    pub pidfd: OwnedFd,
    /// Reading ends of its output: what it wrote stays readable for the next shim, should this one
    /// die.
    pub(super) _outputs: Vec<OwnedFd>,
    /// The master side of its terminal, for the next shim too.
    pub(super) terminal: Option<OwnedFd>,
    /// Processes of it that the kernel had killed for want of memory when it was first told to end.
    pub(super) ooms_before_stop: OnceLock<u64>,
}

/// Handles by container, and news of each new one for the monitor.
pub struct Processes {
    held: Mutex<HashMap<ContainerId, Arc<Handle>>>,
    news: mpsc::UnboundedSender<Watched>,
}

/// A process to be watched.
pub struct Watched {
    /// Whose it is.
    pub id: ContainerId,
    /// Its handle.
    pub handle: Arc<Handle>,
}

impl Processes {
    /// Nothing is held; the other end goes to the monitor. It holds at most one entry for each
    /// container, so it needs no bound of its own.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Watched>) {
        let (news, watched) = mpsc::unbounded_channel();
        (
            Self {
                held: Mutex::default(),
                news,
            },
            watched,
        )
    }

    /// Holds a container's process, and has it watched.
    pub fn put(&self, id: &ContainerId, handle: Handle) {
        let handle = Arc::new(handle);
        let known = self
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), Arc::clone(&handle));
        if known.is_none() {
            // Without a monitor the daemon is going down, and nobody needs to watch.
            let _ = self.news.send(Watched {
                id: id.clone(),
                handle,
            });
        }
    }

    /// The handle on a container's process.
    #[must_use]
    pub fn get(&self, id: &ContainerId) -> Option<Arc<Handle>> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// Lets go.
    pub fn remove(&self, id: &ContainerId) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

/// Sends a signal; a process that is gone is no error.
pub(super) fn signal(pidfd: &OwnedFd, number: i32) -> Result<(), ReconcileError> {
    let failed = || ReconcileError::file("signal", "a container's process");
    match Signal::from_named_raw(number) {
        Some(signal) => match pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(failed()(errno.into())),
        },
        // Real-time signals have no name there.
        None => crate::sys::pidfd_info::send_signal(pidfd.as_fd(), number).map_err(failed()),
    }
}

/// Opens a pidfd for the process that has this number and this start time; `None` when that one is
/// gone, whoever has the number now.
#[must_use]
pub(super) fn open(pid: i32, start: u64) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Read after opening: if it matches now, the pidfd is that process'.
    (start_time(pid) == Some(start)).then_some(pidfd)
}

/// Whether the process with this number and start time lives.
#[must_use]
pub fn is_alive(pid: i32, start: u64) -> bool {
    start_time(pid) == Some(start)
}

/// Start time in clock ticks since boot: field 22 of /proc/pid/stat (proc_pid_stat(5)). A zombie
/// counts as gone.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in field 2 may hold anything, also parentheses and spaces.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

/// Ends the process that has kept a scope until another came in, if there is one.
pub(super) async fn let_go(holder: Option<Holder>) -> Result<(), ReconcileError> {
    match holder {
        // It is waited for.
        Some(holder) => {
            blocking(move || {
                drop(holder);
                Ok(())
            })
            .await
        }
        None => Ok(()),
    }
}

/// One look at a cgroup that has to go: what is in it is killed, and an empty one is removed.
/// `false` says that something in it still ends; that can take for ever (a frozen cgroup), so
/// nobody waits for it here. Idempotent.
pub(super) fn end_cgroup(cgroups: &Cgroups, path: &CgroupPath) -> Result<bool, ReconcileError> {
    if !cgroups.exists(path) {
        return Ok(true);
    }
    if cgroups.is_populated(path)? {
        cgroups.kill(path)?;
        return Ok(false);
    }
    match cgroups.remove(path) {
        Ok(()) => Ok(true),
        // For a moment after the last one was reaped.
        Err(CgroupError::StillPopulated(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_with_another_start_time_is_another_process() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let start = start_time(pid).expect("our own start time");
        assert!(is_alive(pid, start));
        assert!(open(pid, start).is_some());
        assert!(!is_alive(pid, start + 1));
        assert!(open(pid, start + 1).is_none());
    }
}
