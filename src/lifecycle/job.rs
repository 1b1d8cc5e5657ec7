//! The rules of a job: a key in the queue.
//!
//! ```text
//!               claimed                     wish and fact agree, and nobody asked meanwhile
//!  pending ───────────────► running ───────────────────────────────────────► (row deleted)
//!     ▲                        │
//!     ├── asked for meanwhile ─┤  due at once
//!     ├── has to wait ─────────┤  due after that
//!     ├── failed ──────────────┤  due after a pause that doubles
//!     └── its daemon died ─────┘  due at once, claimed by the next daemon
//! ```
//!
//! A key is never looked at twice at a time. Jobs run in lanes, each with slots of its own, so that
//! a hundred slow pulls do not keep a pod waiting.

use super::stored_as_text;
use crate::id::ObjectKey;

/// First pause after a failure and the longest one, ns.
pub const BACKOFF_NS: i64 = 100_000_000;
/// Longest pause between two tries, ns; up to a quarter more by chance.
pub const BACKOFF_MAX_NS: i64 = 60_000_000_000;

/// Failures in a row after which a job is reported, once. It has been tried for ten minutes then,
/// and goes on being tried after the longest pause: what cannot be removed today may be tomorrow.
pub const REPORTED_AFTER: i64 = 20;

stored_as_text! {
    /// Where a job is.
    State {
        /// Due, now or later.
        Pending = "pending",
        /// A worker looks at its object.
        Running = "running",
    }
}

stored_as_text! {
    /// What a job's key names.
    Kind {
        /// A pod sandbox.
        Sandbox = "sandbox",
        /// A container.
        Container = "container",
        /// An image that is to go.
        Image = "image",
        /// A reference that is being pulled.
        Pull = "pull",
        /// Something to be removed off everybody's path.
        Cleanup = "cleanup",
        /// Networks that are made before a pod asks for one.
        Prepared = "prepared",
        /// A pod's attachment to a network that plugins make.
        Attachment = "attachment",
    }
}

/// Jobs that share slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Sandboxes and containers: what kubelet waits for.
    Pods,
    /// Pulls, which take as long as a registry takes.
    Pulls,
    /// Removal of images, cleanup, and what is made before anybody asks for it.
    Cleanup,
    /// Attachments, which take as long as plugins take.
    Plugins,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 4] = [Self::Pods, Self::Pulls, Self::Cleanup, Self::Plugins];

    /// How many of its jobs run side by side.
    #[must_use]
    pub const fn slots(self) -> usize {
        match self {
            Self::Pods => 32,
            Self::Pulls | Self::Cleanup => 8,
            Self::Plugins => 16,
        }
    }
}

impl Kind {
    /// What a key names.
    #[must_use]
    pub const fn of(key: &ObjectKey) -> Self {
        match key {
            ObjectKey::Sandbox(_) => Self::Sandbox,
            ObjectKey::Container(_) => Self::Container,
            ObjectKey::Image(_) => Self::Image,
            ObjectKey::Pull(_) => Self::Pull,
            ObjectKey::Cleanup(_) => Self::Cleanup,
            ObjectKey::Prepared => Self::Prepared,
            ObjectKey::Attachment(_) => Self::Attachment,
        }
    }

    /// Whose slots it takes.
    #[must_use]
    pub const fn lane(self) -> Lane {
        match self {
            Self::Sandbox | Self::Container => Lane::Pods,
            Self::Pull => Lane::Pulls,
            Self::Image | Self::Cleanup | Self::Prepared => Lane::Cleanup,
            Self::Attachment => Lane::Plugins,
        }
    }

    /// What goes first among those that are due: what a client waits for before what nobody does.
    #[must_use]
    pub const fn priority(self) -> i64 {
        match self {
            Self::Sandbox | Self::Container | Self::Attachment => 100,
            Self::Pull | Self::Image => 50,
            Self::Cleanup | Self::Prepared => 0,
        }
    }
}

/// Whether a job in one state may come to another.
#[must_use]
pub const fn may_follow(from: State, to: State) -> bool {
    matches!(
        (from, to),
        (State::Pending, State::Running) | (State::Running, State::Pending)
    )
}

/// The pause before the try after `failures` in a row: doubling, with up to a quarter more by
/// `chance`, so that what failed together does not come back together.
#[must_use]
pub fn backoff_ns(failures: i64, chance: u8) -> i64 {
    let doublings = u32::try_from(failures.clamp(0, 20)).unwrap_or(20);
    let pause = BACKOFF_NS
        .saturating_mul(1_i64 << doublings)
        .min(BACKOFF_MAX_NS);
    pause + pause / 4 * i64::from(chance) / 255
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_grow_and_stay_bounded(failures in 0_i64..1000, chance: u8) {
            let pause = backoff_ns(failures, chance);
            prop_assert!(pause >= BACKOFF_NS);
            prop_assert!(pause <= BACKOFF_MAX_NS + BACKOFF_MAX_NS / 4);
            prop_assert!(backoff_ns(failures + 1, 0) >= backoff_ns(failures, 0));
        }
    }

    #[test]
    fn what_a_client_waits_for_goes_before_what_nobody_waits_for() {
        for &kind in Kind::ALL {
            assert!(kind.priority() >= Kind::Cleanup.priority());
            assert!(kind.priority() <= Kind::Sandbox.priority());
        }
    }

    #[test]
    fn neither_pulls_nor_cleanup_take_a_slot_of_a_pod() {
        for &kind in Kind::ALL {
            let pod = matches!(kind, Kind::Sandbox | Kind::Container);
            assert_eq!(kind.lane() == Lane::Pods, pod, "{kind:?}");
        }
    }
}
