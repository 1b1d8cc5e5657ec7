//! The rules of a pod sandbox.
//!
//! ```text
//!  desired ready            desired stopped               desired removed
//!  preparing ──► ready ───────────► stopped ───────────────► (row deleted)
//!      │           containers killed,     containers removed
//!      ▼           network withdrawn
//!    failed ───────────────────────────────────────────────► (row deleted)
//! ```
//! A sandbox that is asked to stop before it was set up goes from `preparing` to `stopped`.
//!
//! A step that fails for good makes the sandbox `failed`, and `failed` is treated as if removal had
//! been asked for: undoing is the removal path (invariant I4).

use super::{Impossible, Verdict, stored_as_text};

stored_as_text! {
    /// What the client wants. Written by the front alone; it only ever moves down this list.
    Desired {
        /// Up, with its network.
        Ready = "ready",
        /// Down: nothing runs, the address is given back, the record remains.
        Stopped = "stopped",
        /// Gone, with its containers and its record.
        Removed = "removed",
    }
}

stored_as_text! {
    /// What is so. Written by the back alone.
    State {
        /// Being set up; not shown to clients.
        Preparing = "preparing",
        /// Set up.
        Ready = "ready",
        /// Down.
        Stopped = "stopped",
        /// Setting up failed; it is being withdrawn. Not shown to clients.
        Failed = "failed",
    }
}

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: wish and fact agree.
    Rest,
    /// Make namespaces, network and files; then it is `ready`.
    SetUp,
    /// Ask every container to end now, and come back when they have.
    StopContainers,
    /// Withdraw namespaces and network; then it is `stopped`.
    TearDown,
    /// Ask every container to be removed, and come back when they have.
    RemoveContainers,
    /// Remove what is left on disk and the record.
    Remove,
}

/// What the worker knows about the sandbox's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Containers {
    /// Those with a record.
    pub known: u64,
    /// Those with a process, or that may have one.
    pub alive: u64,
}

/// Whether a sandbox may be asked to become `to`.
#[must_use]
pub fn admit(to: Desired, desired: Desired, state: State) -> Verdict {
    match to {
        Desired::Ready if desired == Desired::Ready && state != State::Failed => Verdict::Already,
        Desired::Ready => Verdict::Refused(Impossible {
            noun: "sandbox",
            id: String::new(),
            from: state.as_str(),
            to: "ready",
            because: "a sandbox is started once; run a new one",
        }),
        _ if desired >= to => Verdict::Already,
        _ => Verdict::Admitted,
    }
}

/// Whether a sandbox may be given other limits: only one that is up and is to stay so.
#[must_use]
pub fn admit_update(desired: Desired, state: State) -> Verdict {
    if desired == Desired::Ready && state == State::Ready {
        return Verdict::Admitted;
    }
    Verdict::Refused(Impossible {
        noun: "sandbox",
        id: String::new(),
        from: state.as_str(),
        to: "updated",
        because: "only a ready sandbox has limits to change",
    })
}

/// Whether one state may come after another.
#[must_use]
pub const fn may_follow(from: State, to: State) -> bool {
    matches!(
        (from, to),
        (
            State::Preparing,
            State::Ready | State::Stopped | State::Failed
        ) | (State::Ready, State::Stopped)
    )
}

/// Whether one wish may come after another.
#[must_use]
pub fn wish_may_follow(from: Desired, to: Desired) -> bool {
    to > from
}

/// What a sandbox should be: what the client wants, or down, once the process that held its PID
/// namespace has ended and nothing can run in it any more.
#[must_use]
pub fn effective(desired: Desired, init_ended: bool) -> Desired {
    if init_ended {
        desired.max(Desired::Stopped)
    } else {
        desired
    }
}

/// The next step for a sandbox.
#[must_use]
pub fn next_step(desired: Desired, state: State, containers: Containers) -> Step {
    let desired = if state == State::Failed {
        Desired::Removed
    } else {
        desired
    };
    match (desired, state) {
        (Desired::Ready, State::Preparing) => Step::SetUp,
        (Desired::Ready, _) | (Desired::Stopped, State::Stopped) => Step::Rest,
        (Desired::Stopped | Desired::Removed, State::Preparing | State::Ready | State::Failed)
            if containers.alive > 0 =>
        {
            Step::StopContainers
        }
        (Desired::Stopped | Desired::Removed, State::Preparing | State::Ready) => Step::TearDown,
        (Desired::Stopped | Desired::Removed, _) if containers.known > 0 => Step::RemoveContainers,
        (Desired::Stopped | Desired::Removed, _) => Step::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies a step as the worker would; `None` is a deleted row.
    fn apply(step: Step, state: State, containers: &mut Containers) -> Option<State> {
        match step {
            Step::Rest => Some(state),
            Step::SetUp => Some(State::Ready),
            Step::StopContainers => {
                containers.alive -= 1;
                Some(state)
            }
            Step::TearDown => Some(State::Stopped),
            Step::RemoveContainers => {
                containers.known -= 1;
                containers.alive = containers.alive.min(containers.known);
                Some(state)
            }
            Step::Remove => None,
        }
    }

    #[test]
    fn every_wish_is_reached_from_every_state_in_few_steps() {
        for &desired in Desired::ALL {
            for &state in State::ALL {
                for known in 0..4 {
                    for alive in 0..=known {
                        let mut containers = Containers { known, alive };
                        let mut now = Some(state);
                        let mut last = Step::SetUp;
                        for _ in 0..12 {
                            let Some(current) = now else { break };
                            last = next_step(desired, current, containers);
                            now = apply(last, current, &mut containers);
                        }
                        match (desired, state) {
                            (Desired::Removed, _) | (_, State::Failed) => assert_eq!(now, None),
                            (Desired::Stopped, _) => {
                                assert_eq!((now, last), (Some(State::Stopped), Step::Rest));
                            }
                            (Desired::Ready, _) => assert_eq!(last, Step::Rest),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn wishes_only_move_down() {
        for &to in Desired::ALL {
            for &desired in Desired::ALL {
                for &state in State::ALL {
                    if admit(to, desired, state) == Verdict::Admitted {
                        assert!(to > desired);
                    }
                }
            }
        }
    }

    #[test]
    fn a_pod_without_its_init_comes_down_and_never_up() {
        for &desired in Desired::ALL {
            assert_eq!(effective(desired, false), desired);
            assert!(effective(desired, true) >= Desired::Stopped.max(desired));
        }
    }

    #[test]
    fn nothing_is_torn_down_while_a_container_may_live() {
        for &desired in Desired::ALL {
            for &state in State::ALL {
                let step = next_step(desired, state, Containers { known: 1, alive: 1 });
                assert_ne!(step, Step::Remove);
                assert!(step != Step::TearDown);
            }
        }
    }
}
