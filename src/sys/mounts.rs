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
    change(
        mount,
        recursive,
        &libc::mount_attr {
            attr_set: attributes.set,
            attr_clr: attributes.clear,
            propagation: attributes.propagation,
            userns_fd: 0,
        },
    )
}

/// Shows the owners of files as the user namespace `users` maps them: what belongs to 0 on the disk
/// belongs to the namespace' own 0. For a mount that has never been attached, of a file system that
/// takes it (Linux 5.12; overlays 5.19 for their layers, tmpfs 6.3).
///
/// # Errors
///
/// What mount_setattr(2) returns; `INVAL` above all, when the file system does not take it. Either
/// all mounts are changed or none.
pub fn map_ids(mount: impl AsFd, recursive: bool, users: impl AsFd) -> Result<(), Errno> {
    let users = users.as_fd().as_raw_fd();
    change(
        mount,
        recursive,
        &libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: u64::from(users.cast_unsigned()),
        },
    )
}

fn change(mount: impl AsFd, recursive: bool, argument: &libc::mount_attr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and the struct outlives the call, which gets its right size.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(argument),
            size_of_val(argument),
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
