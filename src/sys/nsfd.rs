//! Leaving namespaces for new ones: unshare(2) restricted to namespaces.
//!
//! Joining existing ones (setns) is safe in rustix.
#![expect(
    unsafe_code,
    reason = "unshare can also split descriptor tables, and is unsafe for it"
)]

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
