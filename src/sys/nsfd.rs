//! Leaving namespaces for new ones: unshare(2) restricted to namespaces. And who owns one.
//!
//! Joining existing ones (setns) is safe in rustix.
#![expect(
    unsafe_code,
    reason = "unshare can also split descriptor tables, and ioctl has no safe wrapper"
)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling process into new namespaces.
///
/// # Errors
///
/// `INVAL` if `flags` holds anything but namespaces; else what unshare(2) returns.
pub fn unshare_namespaces(flags: UnshareFlags) -> Result<(), Errno> {
    let other = UnshareFlags::FILES | UnshareFlags::FS | UnshareFlags::SYSVSEM;
    if flags.intersects(other) {
        return Err(Errno::INVAL);
    }
    // SAFETY: what makes unshare unsafe is splitting the descriptor table, refused above.
    unsafe { unshare_unsafe(flags) }
}

/// The user namespace that owns a namespace (ioctl_nsfs(2), `NS_GET_USERNS`).
///
/// # Errors
///
/// What the ioctl returns; `PERM` for one that is no descendant of the caller's own.
pub fn owner_of(namespace: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the request takes no argument, and returns a descriptor or an error.
    let returned = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_USERNS) };
    if returned < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    // SAFETY: it is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(returned) })
}
