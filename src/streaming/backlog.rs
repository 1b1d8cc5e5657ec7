//! What a client has sent and nobody has read yet: a queue a channel, and a bound for all of a
//! connection together.
//!
//! ```text
//! reader of the connection ── push, never waits ──► Feed ══ queue ══► Unread ── read ──► session
//!            └── waits for room: 64 KiB a channel, and so much more for all ──┘
//! ```
//!
//! Kubernetes' clients keep no windows, so whoever reads their connection cannot hold back one
//! channel alone. It goes on with the others as long as there is room for what the one has sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BytesMut};
use tokio::sync::{Notify, watch};

/// What every channel may hold for itself; the windows of SPDY begin with the same size.
pub(super) const OWN_BYTES: usize = 64 * 1024;

/// What the channels of one connection hold beyond their own room, and how much that may be.
#[derive(Debug, Clone)]
pub(super) struct Backlog {
    beyond: Arc<watch::Sender<usize>>,
    more: usize,
}

impl Backlog {
    /// Room for `more` bytes beside what each channel has for itself.
    pub(super) fn new(more: usize) -> Self {
        let beyond = Arc::new(watch::Sender::new(0));
        Self { beyond, more }
    }

    /// A new channel.
    pub(super) fn channel(&self) -> (Feed, Unread) {
        let queue = Arc::new(Queue {
            held: Mutex::default(),
            changed: Notify::new(),
            backlog: self.clone(),
        });
        (Feed(Arc::clone(&queue)), Unread(queue))
    }

    /// Waits until no more is held than may be.
    pub(super) async fn has_room(&self) {
        let mut beyond = self.beyond.subscribe();
        // The sender is ours, so it is there.
        let _ = beyond.wait_for(|bytes| *bytes <= self.more).await;
    }

    fn is_full(&self) -> bool {
        *self.beyond.borrow() > self.more
    }
}

/// One channel's bytes.
#[derive(Debug)]
struct Queue {
    held: Mutex<Held>,
    changed: Notify,
    backlog: Backlog,
}

#[derive(Debug, Default)]
struct Held {
    bytes: BytesMut,
    /// Nothing more comes.
    ended: bool,
    /// Nobody reads any more.
    unwanted: bool,
}

impl Queue {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to what is held, and counts what is beyond the channel's own room.
    fn change<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = self.held();
        let before = held.bytes.len().saturating_sub(OWN_BYTES);
        let done = work(&mut held);
        let after = held.bytes.len().saturating_sub(OWN_BYTES);
        if before != after {
            // Under the lock, so that what is taken was counted before.
            let count = |beyond: &mut usize| *beyond = (*beyond + after).saturating_sub(before);
            self.backlog.beyond.send_modify(count);
        }
        done
    }
}

/// Where the reader of a connection puts what comes on a channel. Dropped, the channel has ended.
#[derive(Debug)]
pub(super) struct Feed(Arc<Queue>);

impl Feed {
    /// Puts bytes behind what waits. `false`: nobody reads any more, and they are thrown away.
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        let wanted = self.0.change(|held| {
            if !held.unwanted {
                held.bytes.extend_from_slice(bytes);
            }
            !held.unwanted
        });
        self.0.changed.notify_one();
        wanted
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        self.0.held().ended = true;
        self.0.changed.notify_one();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where a session reads a channel. Dropped, what is held and what still comes is thrown away.
#[derive(Debug)]
pub(super) struct Unread(Arc<Queue>);

impl Unread {
    /// Takes what is there, and waits for it; 0 is the end.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> usize {
        loop {
            let changed = self.0.changed.notified();
            let taken = self.0.change(|held| {
                let length = held.bytes.len().min(buffer.len());
                held.bytes.copy_to_slice(&mut buffer[..length]);
                if held.bytes.is_empty() && held.bytes.capacity() > OWN_BYTES {
                    // A burst that is over keeps no memory.
                    held.bytes = BytesMut::new();
                }
                (length > 0 || held.ended || buffer.is_empty()).then_some(length)
            });
            if let Some(length) = taken {
                return length;
            }
            changed.await;
        }
    }

    /// Whether this channel holds up all others of its connection: there is no more room, and it
    /// has more than its own.
    pub(super) fn holds_up_others(&self) -> bool {
        self.0.backlog.is_full() && self.0.held().bytes.len() > OWN_BYTES
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.change(|held| {
            held.unwanted = true;
            held.bytes = BytesMut::new();
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn has_room(backlog: &Backlog) -> bool {
        backlog.has_room().now_or_never().is_some()
    }

    #[tokio::test]
    async fn bytes_come_in_order_and_then_the_end() {
        let (feed, mut unread) = Backlog::new(0).channel();
        let reader = tokio::spawn(async move {
            let (mut all, mut buffer) = (Vec::new(), [0; 7]);
            loop {
                match unread.read(&mut buffer).await {
                    0 => return all,
                    length => all.extend_from_slice(&buffer[..length]),
                }
            }
        });
        let bytes: Vec<u8> = (0..=255).collect();
        for piece in bytes.chunks(10) {
            assert!(feed.push(piece));
            tokio::task::yield_now().await;
        }
        drop(feed);
        assert_eq!(reader.await.unwrap(), bytes);
    }

    #[tokio::test]
    async fn a_channel_has_room_of_its_own_and_shares_the_rest() {
        let backlog = Backlog::new(10);
        let (first, mut reader) = backlog.channel();
        let (second, other) = backlog.channel();
        first.push(&vec![0; OWN_BYTES + 10]);
        second.push(&vec![0; OWN_BYTES]);
        assert!(has_room(&backlog), "each within its own and the rest");
        second.push(&[0]);
        assert!(!has_room(&backlog));
        assert!(reader.holds_up_others() && other.holds_up_others());
        assert_eq!(reader.read(&mut [0; 1]).await, 1);
        assert!(has_room(&backlog));
        assert!(!reader.holds_up_others());
    }

    #[tokio::test]
    async fn what_nobody_reads_takes_no_room() {
        let backlog = Backlog::new(0);
        let (feed, unread) = backlog.channel();
        assert!(feed.push(&vec![0; 2 * OWN_BYTES]));
        let waiting = tokio::spawn({
            let backlog = backlog.clone();
            async move { backlog.has_room().await }
        });
        drop(unread);
        waiting.await.unwrap();
        assert!(!feed.push(&[0]));
        assert!(has_room(&backlog));
        // An end does not take what waits along.
        let (feed, mut unread) = backlog.channel();
        feed.push(&vec![0; 2 * OWN_BYTES]);
        drop(feed);
        assert!(!has_room(&backlog));
        let mut buffer = vec![0; 3 * OWN_BYTES];
        assert_eq!(unread.read(&mut buffer).await, 2 * OWN_BYTES);
        assert_eq!(unread.read(&mut buffer).await, 0);
        assert!(has_room(&backlog));
    }
}
