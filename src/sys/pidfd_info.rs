//! `PIDFD_GET_INFO`: how a process ended, asked of its pidfd by somebody who is not its parent.
//!
//! The kernel (6.15 and later) keeps the wait status of a reaped process for as long as a pidfd
//! of it is open. It is not there before the parent has reaped: until then the answer is `NotYet`.
#![expect(unsafe_code, reason = "system calls that no safe crate has")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct pidfd_info` of `linux/pidfd.h`, its first published size (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    credentials: [u32; 8],
    exit_code: i32,
}

/// What a pidfd tells about the end of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidfdExit {
    /// The process has ended and been reaped; a wait status as in wait(2).
    Status(i32),
    /// The process runs, or nobody has reaped it yet.
    NotYet,
    /// The process has been reaped, and this kernel did not keep how it ended.
    Unknown,
}

/// Asks `pidfd` how its process ended (ioctl `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`).
///
/// # Errors
/// What ioctl(2) returned, except for the answers that mean "this kernel cannot tell", which are
/// [`PidfdExit::Unknown`].
pub fn exit_status(pidfd: BorrowedFd<'_>) -> io::Result<PidfdExit> {
    let wanted = u64::from(libc::PIDFD_INFO_EXIT);
    let mut info = PidfdInfo {
        mask: wanted,
        ..PidfdInfo::default()
    };
    // SAFETY: the descriptor is open for the call, and `info` is a writable structure of exactly
    // the size that the request number encodes.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    if result == 0 {
        let known = info.mask & wanted != 0;
        return Ok(if known {
            PidfdExit::Status(info.exit_code)
        } else {
            PidfdExit::NotYet
        });
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // ESRCH: reaped, nothing kept. ENOTTY, EINVAL: a kernel before 6.13.
        Some(libc::ESRCH | libc::ENOTTY | libc::EINVAL) => Ok(PidfdExit::Unknown),
        _ => Err(error),
    }
}

/// Sends a signal by number, real-time ones too (`pidfd_send_signal(2)`). A process that is gone is
/// no error.
///
/// # Errors
/// What the system call returned.
pub fn send_signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; no signal information is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<()>(),
            0,
        )
    };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

/// The process a pidfd stands for, from its `fdinfo` (`proc_pid_fdinfo(5)`).
///
/// # Errors
/// `fdinfo` could not be read, or names no process: it has been reaped (`NotFound`).
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse::<i32>().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the pidfd names no live process"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn a_reaped_child_leaves_its_code_in_its_pidfd() {
        assert_eq!(std::mem::size_of::<PidfdInfo>(), 64);
        let mut child = Command::new("/bin/busybox")
            .args(["sh", "-c", "exit 7"])
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(pid_of(pidfd.as_fd()).unwrap(), pid.as_raw_nonzero().get());
        assert_ne!(
            exit_status(pidfd.as_fd()).unwrap(),
            PidfdExit::Status(7 << 8)
        );
        child.wait().unwrap();
        assert!(pid_of(pidfd.as_fd()).is_err());
        // A kernel before 6.15 does not know; a newer one must.
        let told = exit_status(pidfd.as_fd()).unwrap();
        assert!(
            matches!(told, PidfdExit::Unknown | PidfdExit::Status(0x700)),
            "{told:?}"
        );
    }
}
