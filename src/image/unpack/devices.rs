//! Which device nodes of a layer are made.
//!
//! A node in an image is a way to a device of the machine for whoever may open it, and whether a
//! container may is another part's business. What every container has in `/dev` is harmless
//! anywhere; other nodes (images of whole systems carry disks, memory and terminals) are left out,
//! as they are by every unpacker without privileges, unless the operator wants them.

use super::entries::{Entry, Kind};

/// What becomes of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is made.
    Make,
    /// Nothing is there, and what a layer below has there is hidden.
    Hide,
    /// The layer is refused: the node would be a deletion to overlayfs, and no archiver reads one
    /// off an overlay (which makes none: mknod(2) gives EPERM).
    Refuse,
}

/// null, zero, full, random, urandom, tty, console, ptmx (Linux `devices.txt`).
const HARMLESS: [(u32, u32); 8] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];

pub(super) fn verdict(entry: &Entry, all: bool) -> Verdict {
    match entry.kind {
        Kind::CharDevice if entry.device == (0, 0) => Verdict::Refuse,
        Kind::CharDevice if HARMLESS.contains(&entry.device) => Verdict::Make,
        Kind::CharDevice | Kind::BlockDevice if !all => Verdict::Hide,
        _ => Verdict::Make,
    }
}
