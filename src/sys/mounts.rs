//! mount_setattr(2): changing flags and propagation of a mount, or of a whole tree of them.
//!
//! And what the kernel says about a file system context; the rest of the new mount API is safe in
//! rustix.
#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// What to change; the default changes nothing. Flags are those of mount_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear first.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
}

/// Applies `attributes` to the mount that `mount` refers to and, if `recursive`, to all below it.
///
/// # Errors
///
/// What mount_setattr(2) returns. Either all mounts are changed or none.
pub fn set_attributes(
    mount: impl AsFd,
    recursive: bool,
    attributes: MountAttributes,
) -> Result<(), Errno> {
    let argument = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and the struct outlives the call, which gets its right size.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const argument,
            size_of_val(&argument),
        )
    };
    super::process::check(returned)
}

/// What the kernel logged about a file system context, as ` (…)`, or nothing.
pub fn kernel_says(fs: impl AsFd) -> String {
    let mut buffer = [0_u8; 512];
    let mut said = String::new();
    while let Ok(length @ 1..) = rustix::io::read(&fs, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        // Each begins with its level: `e overlay: …`.
        let text = text.trim_end().split_once(' ').map_or("", |(_, text)| text);
        said.push_str(if said.is_empty() { " (" } else { "; " });
        said.push_str(text);
    }
    if !said.is_empty() {
        said.push(')');
    }
    said
}
