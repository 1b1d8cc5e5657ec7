//! The rules of a pod's attachment to a network that plugins make (CNI).
//!
//! ```text
//!       with its sandbox       ADD is about to be called       its result
//!  (no row) ───────► wanted ────────────────────────► adding ────────► added
//!     ▲                ▲                               │  │              │
//!     │ pod is down    └─── DEL of what was half done ─┤  ▼ ADD failed   │ namespace is lost:
//!     │ (from wanted)                                  │ failed          │ back to adding
//!     │                        DEL                     ▼  ▼              ▼
//!     └──────────────────────────────────────────── leaving ◄─── pod is down
//! ```
//!
//! In `adding` nobody knows how far the plugins have come: whoever finds a row so has DEL called
//! before anything else. DEL is called until it succeeds; the row is there that long, also when its
//! sandbox is not.

use super::stored_as_text;

stored_as_text! {
    /// What is so. Written by the back, but for the first.
    State {
        /// No plugin has been called, or all that they did is undone.
        Wanted = "wanted",
        /// ADD is called, or was when its daemon died.
        Adding = "adding",
        /// ADD has succeeded.
        Added = "added",
        /// ADD has failed for good; its sandbox is withdrawn.
        Failed = "failed",
        /// The pod is down: DEL is called until it succeeds.
        Leaving = "leaving",
    }
}

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is as it should be, or its sandbox' turn.
    Rest,
    /// Call ADD.
    Add,
    /// Call DEL for what a daemon left half done, and begin anew.
    Undo,
    /// Call DEL; then its row goes.
    Delete,
}

/// The next step for an attachment; `up` says that its pod is there and wished to be up.
#[must_use]
pub const fn next_step(state: State, up: bool) -> Step {
    match (state, up) {
        (State::Wanted, true) => Step::Add,
        (State::Wanted, false) | (State::Added | State::Failed, _) => Step::Rest,
        (State::Adding, _) => Step::Undo,
        (State::Leaving, _) => Step::Delete,
    }
}

/// Whether one state may come after another.
#[must_use]
pub const fn may_follow(from: State, to: State) -> bool {
    matches!(
        (from, to),
        (State::Wanted, State::Adding)
            | (State::Adding, State::Wanted | State::Added | State::Failed)
            | (State::Added, State::Adding)
            | (State::Adding | State::Added | State::Failed, State::Leaving)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a step that succeeds makes of a state; `None` is a deleted row.
    fn apply(step: Step, state: State) -> Option<State> {
        match step {
            Step::Rest => Some(state),
            Step::Add => Some(State::Added),
            Step::Undo => Some(State::Wanted),
            Step::Delete => None,
        }
    }

    #[test]
    fn a_pod_that_is_up_is_attached_and_one_that_leaves_is_not() {
        for &begin in State::ALL {
            for up in [true, false] {
                let mut now = Some(begin);
                for _ in 0..4 {
                    let Some(state) = now else { break };
                    now = apply(next_step(state, up), state);
                }
                match (begin, up) {
                    (State::Leaving, _) => assert_eq!(now, None),
                    (State::Failed, _) => assert_eq!(now, Some(State::Failed)),
                    (State::Added, _) | (_, true) => assert_eq!(now, Some(State::Added)),
                    (_, false) => assert_eq!(now, Some(State::Wanted)),
                }
            }
        }
    }

    #[test]
    fn plugins_are_never_called_twice_without_their_undoing() {
        for &state in State::ALL {
            if next_step(state, true) == Step::Add {
                assert_eq!(state, State::Wanted);
            }
        }
        assert!(!may_follow(State::Added, State::Wanted));
        assert!(!may_follow(State::Leaving, State::Wanted));
    }
}
