//! The rules of a container.
//!
//! ```text
//!  preparing ──► created ──► starting ──► running ──► exited ──► (row deleted)
//!      │            │            │                       ▲             ▲
//!      │            │            └── launch failed ──────┘             │
//!      ▼            └── removed before it ran ─────────────────────────┤
//!    error ────────────────────────────────────────────────────────────┘
//! ```
//!
//! What a container should be is its own wish or its sandbox's, whichever goes further: stopping a
//! sandbox stops its containers without writing to their rows.

use super::{Impossible, Verdict, sandbox, stored_as_text};

stored_as_text! {
    /// What the client wants. Written by the front alone; it only ever moves down this list.
    Desired {
        /// Prepared, not running.
        Created = "created",
        /// Run once.
        Running = "running",
        /// Ended.
        Stopped = "stopped",
        /// Gone, with its record.
        Removed = "removed",
    }
}

stored_as_text! {
    /// What is so. Written by the back alone.
    State {
        /// Being prepared; not shown to clients.
        Preparing = "preparing",
        /// Ready to start.
        Created = "created",
        /// Being launched.
        Starting = "starting",
        /// Its process lives.
        Running = "running",
        /// Its process ended, or could not be started.
        Exited = "exited",
        /// Preparing failed; it is being withdrawn. Not shown to clients.
        Error = "error",
    }
}

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: wish and fact agree.
    Rest,
    /// Make the snapshot and the directories; then it is `created`.
    Prepare,
    /// Launch it, or find out that it was launched; then it is `running` or `exited`.
    Launch,
    /// Put the limits that are wanted now in force, or say why they cannot be.
    Limit,
    /// Send the stop signal, once; the exit or the end of the grace comes next.
    Signal,
    /// The grace is not over: come back when it is, or when the process ends.
    AwaitGrace,
    /// Kill everything in its cgroup; the exit comes next.
    Kill,
    /// Remove its cgroup; the record and the snapshot stay.
    Release,
    /// Remove what is left on disk and the record.
    Remove,
}

/// What the worker knows beyond the two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// A stop signal has been sent.
    pub signalled: bool,
    /// The grace of the stop is over (or there is none).
    pub grace_over: bool,
    /// Its cgroup is gone.
    pub released: bool,
    /// Other limits have been asked for than are in force.
    pub limits_wanted: bool,
}

/// What a container should be, given its own wish and its sandbox.
#[must_use]
pub fn effective(
    own: Desired,
    sandbox: sandbox::Desired,
    sandbox_state: sandbox::State,
) -> Desired {
    let from_sandbox = match (sandbox, sandbox_state) {
        (sandbox::Desired::Removed, _) | (_, sandbox::State::Failed) => Desired::Removed,
        // One that came down by itself, with its node, takes its containers along.
        (sandbox::Desired::Stopped, _) | (_, sandbox::State::Stopped) => Desired::Stopped,
        (sandbox::Desired::Ready, _) => Desired::Created,
    };
    own.max(from_sandbox)
}

/// Whether a container may be asked to become `to`.
#[must_use]
pub fn admit(to: Desired, desired: Desired, state: State) -> Verdict {
    let refuse = |because| {
        Verdict::Refused(Impossible {
            noun: "container",
            id: String::new(),
            from: state.as_str(),
            to: to.as_str(),
            because,
        })
    };
    match (to, state) {
        (Desired::Created, _) => Verdict::Already,
        (Desired::Running, State::Error) => refuse("it could not be created"),
        (Desired::Running, _) if desired > Desired::Running => {
            refuse("it has been asked to stop; create a new container")
        }
        (Desired::Running, State::Exited) => refuse("it has run; create a new container"),
        (Desired::Running, _) if desired == Desired::Running => Verdict::Already,
        // What never ran has nothing to stop, and may still be started.
        (Desired::Stopped, State::Preparing | State::Created) if desired == Desired::Created => {
            Verdict::Already
        }
        (Desired::Stopped, State::Exited | State::Error) => Verdict::Already,
        _ if desired > to => Verdict::Already,
        // A second stop may bring a shorter grace: it is written again.
        _ if desired == to && to != Desired::Stopped => Verdict::Already,
        _ => Verdict::Admitted,
    }
}

/// Whether a wish to start a container that has ended is the retry of its one start: as long as no
/// caller has been told how that ended, its answer was lost, and who asks again gets it now. Once
/// it has been told, the same request is a second start, which `admit` refuses.
#[must_use]
pub fn is_lost_start(desired: Desired, state: State, answered: bool) -> bool {
    state == State::Exited && desired == Desired::Running && !answered
}

/// Whether a container may be given other limits. One that has ended may: there is nothing left to
/// limit, and its status shows them. One that is being made may not: nobody has its id yet.
#[must_use]
pub fn admit_update(desired: Desired, state: State) -> Verdict {
    let because = match state {
        State::Preparing => "it is being made",
        State::Error => "it could not be created",
        _ if desired == Desired::Removed => "it is being removed",
        _ => return Verdict::Admitted,
    };
    Verdict::Refused(Impossible {
        noun: "container",
        id: String::new(),
        from: state.as_str(),
        to: "updated",
        because,
    })
}

/// Whether one state may come after another.
#[must_use]
pub const fn may_follow(from: State, to: State) -> bool {
    matches!(
        (from, to),
        (State::Preparing, State::Created | State::Error)
            | (State::Created, State::Starting)
            | (State::Starting, State::Running | State::Exited)
            | (State::Running, State::Exited)
    )
}

/// Whether one wish may come after another.
#[must_use]
pub fn wish_may_follow(from: Desired, to: Desired) -> bool {
    to > from
}

/// The next step for a container whose effective wish is `desired`.
#[must_use]
pub fn next_step(desired: Desired, state: State, facts: Facts) -> Step {
    let stays = matches!(state, State::Created | State::Running | State::Exited);
    if facts.limits_wanted && stays && desired != Desired::Removed {
        return Step::Limit;
    }
    match (desired, state) {
        (Desired::Removed, State::Preparing | State::Created | State::Error) => Step::Remove,
        (Desired::Removed, State::Exited) if facts.released => Step::Remove,
        (_, State::Exited) if !facts.released => Step::Release,
        (_, State::Exited) => Step::Rest,
        // As with a failed sandbox, failure is a wish to be gone.
        (_, State::Error) => Step::Remove,
        (Desired::Stopped, State::Preparing) => Step::Rest,
        (_, State::Preparing) => Step::Prepare,
        (Desired::Created | Desired::Stopped, State::Created) => Step::Rest,
        (Desired::Running, State::Created) | (_, State::Starting) => Step::Launch,
        (Desired::Created | Desired::Running, State::Running) => Step::Rest,
        (Desired::Removed, State::Running) => Step::Kill,
        (Desired::Stopped, State::Running) => match facts {
            Facts {
                grace_over: true, ..
            } => Step::Kill,
            Facts {
                signalled: false, ..
            } => Step::Signal,
            _ => Step::AwaitGrace,
        },
    }
}

/// Whether a container in this state has, or may have, a process.
#[must_use]
pub fn may_live(state: State) -> bool {
    matches!(state, State::Starting | State::Running)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_desired() -> impl Strategy<Value = Desired> {
        prop::sample::select(Desired::ALL)
    }
    fn any_state() -> impl Strategy<Value = State> {
        prop::sample::select(State::ALL)
    }

    /// What a step leads to when it goes well; killing and signalling end in an exit.
    fn apply(step: Step, state: State, facts: &mut Facts) -> Option<State> {
        match step {
            Step::Rest => Some(state),
            Step::Prepare => Some(State::Created),
            Step::Launch => {
                facts.released = false;
                Some(State::Running)
            }
            Step::Limit => {
                facts.limits_wanted = false;
                Some(state)
            }
            Step::Signal => {
                facts.signalled = true;
                Some(state)
            }
            Step::AwaitGrace => {
                facts.grace_over = true;
                Some(state)
            }
            Step::Kill => Some(State::Exited),
            Step::Release => {
                facts.released = true;
                Some(state)
            }
            Step::Remove => None,
        }
    }

    proptest! {
        #[test]
        fn a_wish_is_reached_and_then_everything_rests(
            desired in any_desired(), state in any_state(),
            signalled: bool, over: bool, released: bool, limits_wanted: bool,
        ) {
            let mut facts = Facts { signalled, grace_over: over, released, limits_wanted };
            let mut now = Some(state);
            let mut last = None;
            for _ in 0..10 {
                let Some(current) = now else { break };
                let step = next_step(desired, current, facts);
                last = Some(step);
                now = apply(step, current, &mut facts);
            }
            if desired == Desired::Removed || state == State::Error {
                prop_assert_eq!(now, None);
            } else {
                prop_assert_eq!(last, Some(Step::Rest));
            }
            if desired == Desired::Stopped {
                prop_assert!(now != Some(State::Running) && now != Some(State::Starting));
            }
        }

        #[test]
        fn a_removed_sandbox_leaves_no_container(own in any_desired(), state in any_state()) {
            let wish = effective(own, sandbox::Desired::Removed, sandbox::State::Ready);
            prop_assert_eq!(wish, Desired::Removed);
            let _ = state;
        }

        #[test]
        fn only_an_unanswered_start_of_an_ended_container_is_a_retry(
            desired in any_desired(), state in any_state(), answered: bool,
        ) {
            if is_lost_start(desired, state, answered) {
                prop_assert!(!answered);
                // Telling its result starts nothing.
                prop_assert_ne!(next_step(desired, state, Facts::default()), Step::Launch);
            }
            prop_assert!(!is_lost_start(desired, state, true));
        }

        #[test]
        fn a_container_never_runs_twice(desired in any_desired()) {
            prop_assert_ne!(admit(Desired::Running, desired, State::Exited), Verdict::Admitted);
            let step = next_step(desired, State::Exited, Facts::default());
            prop_assert_ne!(step, Step::Launch);
        }

        #[test]
        fn nothing_on_disk_is_removed_under_a_living_process(
            desired in any_desired(), signalled: bool, over: bool, released: bool,
            limits_wanted: bool,
        ) {
            let facts = Facts { signalled, grace_over: over, released, limits_wanted };
            for &state in State::ALL {
                if may_live(state) {
                    prop_assert_ne!(next_step(desired, state, facts), Step::Remove);
                    prop_assert_ne!(next_step(desired, state, facts), Step::Release);
                }
            }
        }
    }

    #[test]
    fn stopping_what_never_ran_changes_nothing() {
        assert_eq!(
            admit(Desired::Stopped, Desired::Created, State::Created),
            Verdict::Already
        );
    }

    #[test]
    fn starting_again_while_it_starts_joins() {
        for state in [State::Created, State::Starting, State::Running] {
            assert_eq!(
                admit(Desired::Running, Desired::Running, state),
                Verdict::Already
            );
        }
    }
}
