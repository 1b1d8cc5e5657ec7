//! The rules of a pod's address.
//!
//! ```text
//!             with its sandbox              link is up
//!  (no row) ──────────────────► allocated ──────────────► active
//!     ▲                             │ pod is down            │
//!     │         link is gone        ▼                        ▼
//!     └────────────────────── cleanup_pending ◄──────────────┘
//! ```
//!
//! No other pod gets the address before the row is gone. `cleaned` stands for a row whose link is
//! gone and that is kept to be looked at; at present such rows are deleted at once.

use super::stored_as_text;

stored_as_text! {
    /// What is so. Written by the back, but for the first.
    State {
        /// Given to a sandbox that is not up yet.
        Allocated = "allocated",
        /// A link carries it.
        Active = "active",
        /// Its sandbox is down; a cleanup task makes sure of the link.
        CleanupPending = "cleanup_pending",
        /// The link is gone.
        Cleaned = "cleaned",
    }
}

/// Whether one state may come after another.
#[must_use]
pub const fn may_follow(from: State, to: State) -> bool {
    matches!(
        (from, to),
        (State::Allocated, State::Active | State::CleanupPending)
            | (State::Active, State::CleanupPending)
            | (State::CleanupPending, State::Cleaned)
    )
}
