//! An owned descriptor whose readiness tokio awaits.
#![expect(unsafe_code, reason = "tokio asks for a promise about descriptors")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers `fd` with the current tokio runtime. Must be called in one.
///
/// # Errors
/// What `epoll_ctl(2)` returned: `fd` cannot be polled, or a limit is reached.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and keeps its number until it is dropped, which its owner, the
    // `AsyncFd`, does after it has been deregistered.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}
