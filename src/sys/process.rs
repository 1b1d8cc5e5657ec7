//! What a child does to itself before exec: signals back to their defaults, descriptors closed.
//!
//! Also the way out of a process that must not run its parent's exit handlers.
#![expect(
    unsafe_code,
    reason = "sigaction, close_range, prlimit, keyctl and _exit have no safe wrapper"
)]

use std::os::fd::RawFd;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

/// Turns the return value of `libc::syscall` into a result.
pub(super) fn check(returned: libc::c_long) -> Result<(), Errno> {
    if returned == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

/// Ends the process at once: no exit handler, no unwinding, no flush of buffers it inherited.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Gives the calling process a session keyring of its own, with nothing in it (keyctl(2),
/// `KEYCTL_JOIN_SESSION_KEYRING` without a name).
///
/// # Errors
///
/// What keyctl(2) returns; `NOSYS` where the kernel keeps no keys.
pub fn new_session_keyring() -> Result<(), Errno> {
    let nameless = std::ptr::null::<libc::c_char>();
    let join = libc::KEYCTL_JOIN_SESSION_KEYRING;
    // SAFETY: without a name the kernel reads no memory of ours.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, join, nameless) };
    check(serial.min(0))
}

/// Signals of Linux: 1 to 64 (signal(7)).
const SIGNALS: libc::c_int = 64;

/// Gives every signal its default disposition and unblocks all. exec keeps ignored signals ignored
/// and blocked signals blocked (signal(7)), and the Rust runtime ignores SIGPIPE.
pub fn reset_signals() {
    // The kernel's own struct: handler, flags, restorer, mask. All zeroes means SIG_DFL. Not the C
    // library's call, which keeps two signals to itself that a parent may have ignored.
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: the struct outlives the call and nothing is handled by us. SIGKILL and SIGSTOP
        // are refused, and are at their default anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: sigset_t is a C struct for which all zeroes is the empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Marks every descriptor from `first` on close-on-exec. exec does the closing.
///
/// # Errors
///
/// What close_range(2) returns.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on.
///
/// Values that own such a descriptor must not be dropped afterwards: for a process that only waits
/// and exits.
///
/// # Errors
///
/// What close_range(2) returns.
pub fn close_from(first: u32) -> Result<(), Errno> {
    close_range(first, 0)
}

/// Closes every descriptor that is not in `kept`, which is sorted on the way.
///
/// Values that own one that is closed must not be dropped afterwards, as those of the parent are
/// not in a child that ends in exec or _exit.
///
/// # Errors
///
/// What close_range(2) returns.
pub fn close_all_but(kept: &mut [RawFd]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut next = 0;
    for fd in kept.iter().filter_map(|fd| u32::try_from(*fd).ok()) {
        if next < fd {
            close_span(next, fd - 1, 0)?;
        }
        next = fd + 1;
    }
    close_range(next, 0)
}

fn close_range(first: u32, flags: u32) -> Result<(), Errno> {
    close_span(first, u32::MAX, flags)
}

fn close_span(first: u32, last: u32, flags: u32) -> Result<(), Errno> {
    // SAFETY: three integers. Closing descriptors is not a matter of memory safety.
    let returned = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(returned)
}

/// Reads a resource limit of another process.
///
/// # Errors
///
/// What prlimit(2) returns.
pub fn limit_of(pid: i32, resource: Resource) -> Result<Rlimit, Errno> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: with no new limit the call only writes the struct, which outlives it.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource as libc::c_uint,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut limit,
        )
    };
    check(returned)?;
    let bound = |value: u64| (value != libc::RLIM64_INFINITY).then_some(value);
    Ok(Rlimit {
        current: bound(limit.rlim_cur),
        maximum: bound(limit.rlim_max),
    })
}
