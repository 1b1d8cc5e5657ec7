//! Wake-ups: who waits for an object hears of each commit that touched it.
//!
//! A wake-up carries no news; whoever is woken reads the row. So a missed or a needless one does no
//! harm beyond a look at the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::id::ObjectKey;

/// Everybody who waits for something.
#[derive(Default)]
pub struct Wakes {
    // Held for map operations only, never across an await.
    waiters: Mutex<HashMap<ObjectKey, Arc<Notify>>>,
    dispatcher: Notify,
    readers: Arc<Notify>,
}

/// A place to wait for one object; made before the row is read.
pub struct Subscription<'w> {
    wakes: &'w Wakes,
    key: ObjectKey,
    notify: Arc<Notify>,
}

impl Wakes {
    /// Starts to listen for `key`. Subscribe, then read, then wait: nothing is missed.
    #[must_use]
    pub fn subscribe(&self, key: ObjectKey) -> Subscription<'_> {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let notify = Arc::clone(waiters.entry(key.clone()).or_default());
        drop(waiters);
        Subscription {
            wakes: self,
            key,
            notify,
        }
    }

    /// Wakes everybody who waits for `key`.
    pub(super) fn wake(&self, key: &ObjectKey) {
        let waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = waiters.get(key) {
            notify.notify_waiters();
        }
    }

    /// Tells the dispatcher that there is work.
    pub(super) fn wake_dispatcher(&self) {
        self.dispatcher.notify_one();
    }

    /// Tells who reads events as they come that there are more.
    pub(super) fn wake_readers(&self) {
        self.readers.notify_waiters();
    }

    /// Arms the next wake-up of a reader of events: make it, read, then await it.
    pub fn next_event(&self) -> OwnedNotified {
        Arc::clone(&self.readers).notified_owned()
    }

    /// Whether a call waits for this object just now.
    #[must_use]
    pub fn is_awaited(&self, key: &ObjectKey) -> bool {
        let waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.contains_key(key)
    }

    /// Waits until there may be work.
    pub async fn work(&self) {
        self.dispatcher.notified().await;
    }
}

impl Subscription<'_> {
    /// Arms the next wake-up: make it, read the row, then await it. A `Notified` hears
    /// `notify_waiters` from the moment it is made.
    pub fn next(&self) -> OwnedNotified {
        Arc::clone(&self.notify).notified_owned()
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        let mut waiters = self
            .wakes
            .waiters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The map and this subscription: nobody else listens.
        if Arc::strong_count(&self.notify) <= 2 {
            waiters.remove(&self.key);
        }
    }
}
