//! Owner, mode, extended attributes and times of what has been written.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::entries::{Entry, Kind};
use super::numbers::Time;
use crate::sys::inroot::Dir;
use crate::sys::xattr;

/// Numeric owner and group, where both are ids that exist (-1 means "unchanged" to the kernel).
pub(super) fn owner(entry: &Entry) -> Option<(Uid, Gid)> {
    let id = |id: i64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    Some((Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)))
}

pub(super) fn timestamps(time: Time) -> Timestamps {
    let spec = Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds),
    };
    Timestamps {
        last_access: spec,
        last_modification: spec,
    }
}

/// Owner, mode, extended attributes and, for what is not filled later, time; in this order,
/// because a change of owner clears the set-id bits and file capabilities.
pub(super) fn attributes(fd: &OwnedFd, entry: &Entry, with_time: bool) -> io::Result<()> {
    let (uid, gid) = owner(entry).ok_or(Errno::INVAL)?;
    rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in wanted(entry) {
        set_attribute(name, || xattr::set(fd.as_fd(), name, value))?;
    }
    if with_time {
        rustix::fs::futimens(fd, &timestamps(entry.mtime))?;
    }
    Ok(())
}

/// The same for what cannot be opened: symlinks, devices, fifos.
pub(super) fn attributes_at(dir: &Dir, name: &[u8], entry: &Entry) -> io::Result<()> {
    let (uid, gid) = owner(entry).ok_or(Errno::INVAL)?;
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(&dir.fd, name, Some(uid), Some(gid), nofollow)?;
    if entry.kind != Kind::Symlink {
        // Just made by us in a directory that nobody else reaches: it is no symlink.
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::chmodat(&dir.fd, name, mode, AtFlags::empty())?;
    }
    for (attribute, value) in wanted(entry) {
        set_attribute(attribute, || xattr::set_at(&dir.fd, name, attribute, value))?;
    }
    Ok(rustix::fs::utimensat(
        &dir.fd,
        name,
        &timestamps(entry.mtime),
        nofollow,
    )?)
}

/// The attributes to set.
fn wanted(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()));
    pairs.filter(|(name, _)| may_be_set(name))
}

/// Not those by which overlayfs steers, which are ours alone; and of those that the kernel's
/// security modules read only file capabilities: labels are the node's to give.
fn may_be_set(name: &[u8]) -> bool {
    let steering = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let label = name.starts_with(b"security.") && name != b"security.capability";
    !steering && !label && !name.contains(&0)
}

/// Sets an attribute, unless the file system cannot hold it, or the thing cannot have it: symlinks
/// and devices take no `user.` attribute. Neither is a reason to refuse an image.
fn set_attribute(name: &[u8], set: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Err(error) = set() else { return Ok(()) };
    match Errno::from_io_error(&error) {
        Some(Errno::OPNOTSUPP) => Ok(()),
        Some(Errno::PERM) if name.starts_with(b"user.") => Ok(()),
        _ => Err(error),
    }
}
