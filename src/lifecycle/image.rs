//! The rules of an image.
//!
//! ```text
//!                 all layers on disk            removal asked for
//!  (no row) ───────────────────────► present ─────────────────────► removed ───► (row deleted)
//!     ▲                                                                │
//!     └───────────── pulled again before it was gone: a new row ◄──────┘
//! ```
//!
//! An image has one wish and no state of its own: its row is there when it is whole, and its layers
//! (`layer`) have theirs. A removal is not taken back. Who pulls again what is leaving gets a new
//! row for it, and the old one has left.

use super::stored_as_text;

/// The word at the beginning of an error by which kubelet knows that an image could not be mounted
/// (`k8s.io/cri-api/pkg/errors`).
pub const VOLUME_FAILED: &str = "ImageVolumeMountFailed";

stored_as_text! {
    /// What the client wants. Written by the front alone.
    Desired {
        /// Kept.
        Present = "present",
        /// Gone, with its names.
        Removed = "removed",
    }
}

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: wish and fact agree.
    Rest,
    /// Delete names and row; layers that nothing else needs go to cleanup.
    Remove,
}

/// Whether one wish may come after another.
#[must_use]
pub const fn may_follow(from: Desired, to: Desired) -> bool {
    matches!((from, to), (Desired::Present, Desired::Removed))
}

/// The next step for an image that has a row.
#[must_use]
pub const fn next_step(desired: Desired) -> Step {
    match desired {
        Desired::Present => Step::Rest,
        Desired::Removed => Step::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_to_go_is_removed_and_that_is_not_taken_back() {
        assert_eq!(next_step(Desired::Present), Step::Rest);
        assert_eq!(next_step(Desired::Removed), Step::Remove);
        assert!(!may_follow(Desired::Removed, Desired::Present));
    }
}
