//! Where a panic is caught and counts as a failed step. Everywhere else it ends the daemon.

use std::cell::Cell;
use std::future::Future;

tokio::task_local! {
    static STEP: ();
}

thread_local! {
    static BLOCKING_STEP: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic here and now is caught.
#[must_use]
pub fn is_here() -> bool {
    STEP.try_with(|()| ()).is_ok() || BLOCKING_STEP.get()
}

/// A step that runs as a task.
pub(super) fn inside<F: Future>(step: F) -> impl Future<Output = F::Output> {
    STEP.scope((), step)
}

/// A part of a step that runs on a thread which may block. A panic leaves that thread to the
/// runtime, which gives it to the next one, so the mark is taken off in any case.
pub(super) fn inside_blocking<T>(work: impl FnOnce() -> T) -> T {
    struct Mark;
    impl Drop for Mark {
        fn drop(&mut self) {
            BLOCKING_STEP.set(false);
        }
    }
    BLOCKING_STEP.set(true);
    let _mark = Mark;
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_steps_are_caught() {
        assert!(!is_here());
        assert!(inside(async { is_here() }).await);
        assert!(inside_blocking(is_here));
        assert!(!is_here());
        let died = std::panic::catch_unwind(|| inside_blocking(|| panic!("a bug")));
        assert!(died.is_err() && !is_here());
    }
}
