//! The rules of a layer on disk.
//!
//! ```text
//!            row before directory        in its place, synced
//!  (no row) ─────────────────────► fetching ─────────────────► present
//!     ▲                               │ ▲ ◄── found gone ────────┤
//!     │                               │ its pull failed           │ no image, container or
//!     │        directory deleted      ▼                           ▼ pull needs it any more
//!     └────────────────────────── removing ◄──────────────────────┘
//! ```
//!
//! What is leaving does not come back: a pull that needs it waits until it is gone.

use super::stored_as_text;

stored_as_text! {
    /// What is so. Written by the back alone.
    State {
        /// On its way; its directory may not be there.
        Fetching = "fetching",
        /// On disk, whole.
        Present = "present",
        /// A cleanup task deletes it.
        Removing = "removing",
    }
}

/// Whether one state may come after another.
#[must_use]
pub const fn may_follow(from: State, to: State) -> bool {
    matches!(
        (from, to),
        (State::Fetching, State::Present | State::Removing)
            // The sweep found that it is gone from the disk: the next pull brings it back.
            | (State::Present, State::Removing | State::Fetching)
    )
}
