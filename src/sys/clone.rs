//! Creating a process: clone3(2) with a pidfd, new namespaces, and a cgroup to be born in.
//!
//! Not a thread library: memory is never shared with the child, which runs a closure and ends
//! with it. The child of a single-threaded caller may do what it likes: nobody can have held the
//! allocator's lock while it was copied. That of any other makes system calls, and nothing else.
#![expect(unsafe_code, reason = "clone3 and clone have no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use super::process::exit_now;

/// Exit status of a child whose closure panicked before it could say why.
const PANICKED: i32 = 125;

/// A child as its parent sees it.
#[derive(Debug)]
pub struct Child {
    /// Process id in the parent's PID namespace.
    pub pid: i32,
    /// Refers to the child for as long as it is open, whatever becomes of the number.
    pub pidfd: OwnedFd,
}

/// Ends the process when it goes out of scope, so that no panic in a child unwinds into code that
/// belongs to its parent.
struct NeverReturn;

impl Drop for NeverReturn {
    fn drop(&mut self) {
        exit_now(PANICKED);
    }
}

/// Creates a process that runs `child` and exits with what it returns, in new namespaces of the
/// kinds in `namespaces`, and in the cgroup v2 directory `cgroup` if there is one. The parent's
/// copy of `child` is dropped.
///
/// The child is told whether it is in the cgroup. Where the kernel refuses that (or a seccomp
/// filter around us knows no clone3, and clone(2) has to do) it is not, and has to move itself.
///
/// # Errors
///
/// What clone3(2) returns.
pub fn spawn(
    namespaces: ThreadNameSpaceType,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(bool) -> i32,
) -> Result<Child, Errno> {
    let flags = Flags::child(namespaces);
    let mut pidfd: i32 = -1;
    let mut in_cgroup = cgroup.is_some();
    let mut result = clone3(flags, cgroup, &mut pidfd);
    if in_cgroup && result.is_err() {
        in_cgroup = false;
        result = clone3(flags, None, &mut pidfd);
    }
    if result == Err(Errno::NOSYS) {
        result = clone2(flags, &mut pidfd);
    }
    become_or_return(result?, pidfd, || child(in_cgroup))
}

/// Creates a process as [`spawn`] does, but as another child of the caller's parent, who is told of
/// its end as of the caller's own. It is where the caller is: cgroups, and namespaces that are not
/// new.
///
/// # Errors
///
/// What clone3(2) returns; `INVAL` to the first process of a PID namespace.
pub fn spawn_sibling(
    namespaces: ThreadNameSpaceType,
    child: impl FnOnce() -> i32,
) -> Result<Child, Errno> {
    let flags = Flags::sibling(namespaces);
    let mut pidfd: i32 = -1;
    let mut result = clone3(flags, None, &mut pidfd);
    if result == Err(Errno::NOSYS) {
        result = clone2(flags, &mut pidfd);
    }
    become_or_return(result?, pidfd, child)
}

/// Goes on as the child, or as its parent, who gets a hold on it.
fn become_or_return(pid: i32, pidfd: i32, child: impl FnOnce() -> i32) -> Result<Child, Errno> {
    if pid == 0 {
        let _guard = NeverReturn;
        exit_now(child());
    }
    // SAFETY: the kernel stored a new descriptor, which nobody else owns, because the call
    // succeeded and asked for CLONE_PIDFD.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid, pidfd })
}

/// How a process is created.
#[derive(Clone, Copy)]
struct Flags {
    bits: u64,
    exit_signal: u64,
}

impl Flags {
    fn child(namespaces: ThreadNameSpaceType) -> Self {
        Self {
            bits: u64::from(namespaces.bits()) | libc::CLONE_PIDFD.cast_unsigned_64(),
            exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        }
    }

    /// A sibling ends with the signal of its creator's own end, and none may be given (clone(2)).
    fn sibling(namespaces: ThreadNameSpaceType) -> Self {
        Self {
            bits: Self::child(namespaces).bits | libc::CLONE_PARENT.cast_unsigned_64(),
            exit_signal: 0,
        }
    }
}

fn clone3(flags: Flags, cgroup: Option<BorrowedFd<'_>>, pidfd: &mut i32) -> Result<i32, Errno> {
    // SAFETY: clone_args is a C struct of integers, for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags.bits;
    args.pidfd = std::ptr::from_mut(pidfd).expose_provenance() as u64;
    args.exit_signal = flags.exit_signal;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the struct and the integer it points to outlive the call; without CLONE_VM and with
    // no stack given the child continues on its own copy of this stack.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of_val(&args)) };
    pid_from(returned)
}

fn clone2(flags: Flags, pidfd: &mut i32) -> Result<i32, Errno> {
    let flags = flags.bits | flags.exit_signal;
    // SAFETY: as for clone3; the third argument is where CLONE_PIDFD stores the descriptor, on
    // x86-64 and on arm64 alike, and the last two are unused without their flags.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            0_usize,
            std::ptr::from_mut(pidfd),
            0_usize,
            0_usize,
        )
    };
    pid_from(returned)
}

/// `CLONE_INTO_CGROUP`: the libc crate cuts it to 32 bits, where it vanishes.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Widening without sign extension.
trait Unsigned64 {
    fn cast_unsigned_64(self) -> u64;
}

impl Unsigned64 for libc::c_int {
    fn cast_unsigned_64(self) -> u64 {
        u64::from(self.cast_unsigned())
    }
}

fn pid_from(returned: libc::c_long) -> Result<i32, Errno> {
    if returned < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    i32::try_from(returned).map_err(|_| Errno::OVERFLOW)
}
