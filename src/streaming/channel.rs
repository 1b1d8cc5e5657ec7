//! What a session reads and writes, whichever transport its client has chosen: channels, each a
//! bounded stream of bytes that can end in one direction without the other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::backlog::Unread;
use super::spdy::StreamWriter;
use super::spdy::frame::Reset;
use super::websocket::ChannelWriter;
use crate::metrics::Counter;

/// The client is gone, or the session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

impl From<Gone> for io::Error {
    fn from(gone: Gone) -> Self {
        Self::new(io::ErrorKind::BrokenPipe, gone)
    }
}

/// Counts what moves, so that a session that is idle can be told from one that is not.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    pieces: Arc<AtomicU64>,
    received: Arc<Counter>,
    sent: Arc<Counter>,
}

impl Activity {
    /// Counts bytes there as well.
    #[must_use]
    pub fn counted_by(received: Arc<Counter>, sent: Arc<Counter>) -> Self {
        Self {
            pieces: Arc::default(),
            received,
            sent,
        }
    }

    /// So many bytes have come from the client, or none: it has ended a channel.
    pub fn note_received(&self, bytes: usize) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.received.add(bytes as u64);
    }

    /// So many bytes are on their way to the client.
    pub fn note_sent(&self, bytes: usize) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.sent.add(bytes as u64);
    }

    /// Returns when nothing has moved for `bound`, give or take a quarter.
    pub async fn ends(&self, bound: Duration) {
        let mut seen = self.pieces.load(Ordering::Relaxed);
        let mut quiet = 0;
        while quiet < 4 {
            tokio::time::sleep(bound / 4).await;
            let now = self.pieces.load(Ordering::Relaxed);
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
    }
}

/// What comes from the client on one channel.
#[derive(Debug)]
pub struct Inlet {
    unread: Unread,
    credit: Option<super::spdy::Credit>,
    activity: Activity,
}

impl Inlet {
    pub(super) fn new(
        unread: Unread,
        credit: Option<super::spdy::Credit>,
        activity: Activity,
    ) -> Self {
        Self {
            unread,
            credit,
            activity,
        }
    }

    /// Reads what is there, and waits for it; 0 is the end. An end that comes because the client is
    /// gone looks the same: see [`Line::gone`].
    pub async fn read(&mut self, buffer: &mut [u8]) -> usize {
        if let Some(credit) = &mut self.credit {
            credit.settle().await;
        }
        let length = self.unread.read(buffer).await;
        self.activity.note_received(length);
        if let Some(credit) = &mut self.credit {
            credit.consumed(length);
        }
        length
    }

    /// Whether the client cannot send on any channel because so much waits to be read on this one.
    #[must_use]
    pub fn holds_up_others(&self) -> bool {
        self.unread.holds_up_others()
    }
}

/// What goes to the client on one channel.
#[derive(Debug)]
pub enum Outlet {
    /// A stream of SPDY.
    Spdy(StreamWriter),
    /// A channel among the messages of a WebSocket.
    WebSocket(ChannelWriter),
}

impl Outlet {
    /// Hands bytes over, and waits until there is room for them.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.write(bytes).await,
            Self::WebSocket(channel) => channel.write(bytes).await,
        }
    }

    /// Nothing follows on this channel.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn finish(&mut self) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.finish().await,
            Self::WebSocket(channel) => channel.finish().await,
        }
    }

    /// Gives the channel up, in both directions; where channels cannot be ended, what the client
    /// still writes is thrown away.
    pub async fn reset(&mut self) {
        match self {
            Self::Spdy(stream) => stream.reset(Reset::Cancel).await,
            Self::WebSocket(_) => {}
        }
    }
}

/// Whether the client is still there.
#[derive(Debug, Clone)]
pub struct Line(watch::Receiver<bool>);

impl Line {
    /// Ends when the sender says so, or is dropped.
    pub(super) fn new(gone: watch::Receiver<bool>) -> Self {
        Self(gone)
    }

    /// Waits until the client is gone.
    pub async fn gone(&self) {
        turned(&mut self.0.clone()).await;
    }
}

/// Waits until a switch is on; one whose owner is gone counts as on.
pub(super) async fn turned(switch: &mut watch::Receiver<bool>) {
    let _ = switch.wait_for(|on| *on).await;
}
