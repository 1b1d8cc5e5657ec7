//! How much may be sent before the peer asks for more (SPDY/3.1 draft, section 2.6.8).
//!
//! Kubernetes' SPDY library never says how much it has taken. So a window holds a sender back only
//! once the peer has shown that it keeps windows: by setting their size or by enlarging one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What every window begins with, unless the peer says otherwise.
pub(super) const INITIAL_BYTES: u32 = 64 * 1024;
/// What no window may exceed.
const MAX_BYTES: i64 = 0x7fff_ffff;

/// What may still be sent on a stream, or on a connection.
#[derive(Debug)]
pub(super) struct Window {
    left: Mutex<i64>,
    kept: AtomicBool,
    changed: Notify,
}

impl Window {
    /// A window of this size. `kept`: the peer is known to keep it.
    pub(super) fn new(bytes: u32, kept: bool) -> Self {
        Self {
            left: Mutex::new(i64::from(bytes)),
            kept: AtomicBool::new(kept),
            changed: Notify::new(),
        }
    }

    fn left(&self) -> MutexGuard<'_, i64> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `wanted` bytes, and waits until there is one at least. Taking nothing does not
    /// wait.
    pub(super) async fn take(&self, wanted: usize) -> usize {
        loop {
            let changed = self.changed.notified();
            if let Some(taken) = self.try_take(wanted) {
                return taken;
            }
            changed.await;
        }
    }

    fn try_take(&self, wanted: usize) -> Option<usize> {
        let mut left = self.left();
        let taken = if self.kept.load(Ordering::Acquire) {
            wanted.min(usize::try_from(*left).unwrap_or(0))
        } else {
            wanted
        };
        // Counted all the same: the peer may yet show that it keeps windows.
        *left -= i64::try_from(taken).unwrap_or(MAX_BYTES);
        (taken > 0 || wanted == 0).then_some(taken)
    }

    /// Gives back what was taken and not sent.
    pub(super) fn give_back(&self, bytes: usize) {
        *self.left() += i64::try_from(bytes).unwrap_or(0);
        self.changed.notify_waiters();
    }

    /// The peer keeps windows, and moves this one by `delta`; `false` when it becomes too large.
    pub(super) fn change(&self, delta: i64) -> bool {
        let fits = {
            let mut left = self.left();
            *left = left.saturating_add(delta);
            *left <= MAX_BYTES
        };
        self.kept.store(true, Ordering::Release);
        self.changed.notify_waiters();
        fits
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_keeps_no_windows_is_not_waited_for() {
        let window = Window::new(10, false);
        assert_eq!(window.take(1000).await, 1000);
        assert_eq!(window.take(1000).await, 1000);
        // From here on what was sent counts.
        assert!(window.change(1995));
        assert_eq!(window.take(1000).await, 5);
        assert_eq!(window.try_take(1), None);
        assert_eq!(window.take(0).await, 0);
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_when_the_window_opens() {
        let window = Arc::new(Window::new(4, true));
        assert_eq!(window.take(10).await, 4);
        let other = Arc::clone(&window);
        let waiting = tokio::spawn(async move { other.take(10).await });
        tokio::task::yield_now().await;
        assert!(window.change(6));
        assert_eq!(waiting.await.unwrap(), 6);
        window.give_back(6);
        assert_eq!(window.take(10).await, 6);
    }

    #[test]
    fn a_window_has_a_largest_size() {
        let window = Window::new(INITIAL_BYTES, true);
        assert!(window.change(MAX_BYTES - i64::from(INITIAL_BYTES)));
        assert!(!window.change(1));
    }
}
