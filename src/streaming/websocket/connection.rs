//! One WebSocket connection with channels: a task that reads and sorts messages, a task that writes
//! them, as in `spdy/connection.rs`.

use std::collections::HashMap;

use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::channels::{Said, Subprotocol};
use super::{LINGER, upgrade};
use crate::streaming::backlog::{Backlog, Feed};
use crate::streaming::channel::{Activity, Gone, Inlet, Line, turned};

/// Messages that may wait to be written.
const QUEUE: usize = 16;
/// The longest piece of a channel in a message of ours.
const PIECE_MAX_BYTES: usize = 32 * 1024;

/// A connection that is being served.
#[derive(Debug)]
pub struct Connection {
    protocol: Subprotocol,
    queue: mpsc::Sender<Message>,
    inlets: HashMap<u8, Inlet>,
    activity: Activity,
    over: watch::Sender<bool>,
    line: Line,
    tasks: [AbortHandle; 2],
}

impl Connection {
    /// What comes on a channel; `None` for one that was not asked to be read, or has been taken.
    pub fn inlet(&mut self, channel: u8) -> Option<Inlet> {
        self.inlets.remove(&channel)
    }

    /// Writes a channel.
    #[must_use]
    pub fn writer(&self, channel: u8) -> ChannelWriter {
        ChannelWriter {
            channel,
            protocol: self.protocol,
            queue: self.queue.clone(),
            activity: self.activity.clone(),
        }
    }

    /// Whether the client is there.
    #[must_use]
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Ends it after everything that was written before, and waits until the client has read that
    /// and agreed, or has had its time to agree.
    pub async fn close(self) {
        let end = Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        }));
        if self.queue.send(end).await.is_ok() {
            self.over.send_replace(true);
            self.line.gone().await;
        }
    }
}

/// Without an end, or after it: there is no connection any more.
impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Writes one channel.
#[derive(Debug)]
pub struct ChannelWriter {
    channel: u8,
    protocol: Subprotocol,
    queue: mpsc::Sender<Message>,
    activity: Activity,
}

impl ChannelWriter {
    /// Puts bytes into messages. No bytes at all are an empty message, which tells a client that
    /// the channel is there.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        if bytes.is_empty() {
            return self.send(bytes).await;
        }
        for piece in bytes.chunks(PIECE_MAX_BYTES) {
            self.send(piece).await?;
            self.activity.note_sent(piece.len());
        }
        Ok(())
    }

    /// Clients learn of an end by that of the connection: v5 has a message for it, which only
    /// servers understand.
    ///
    /// # Errors
    /// None.
    pub(crate) async fn finish(&mut self) -> Result<(), Gone> {
        Ok(())
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        let message = self.protocol.encode(self.channel, bytes);
        self.queue.send(message).await.map_err(|_| Gone)
    }
}

/// Serves a connection on `io` whose client may write the channels `read`, of which `waiting` bytes
/// may wait to be read beside the 64 KiB that each has for itself. `hangup` resolves when the
/// client is gone, even while nobody reads.
pub async fn serve<I, H>(
    io: I,
    protocol: Subprotocol,
    (read, waiting): (&[u8], usize),
    activity: Activity,
    hangup: H,
) -> Connection
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Future<Output = ()> + Send + 'static,
{
    let (to, from) = upgrade(io).await.split();
    let (queue, messages) = mpsc::channel(QUEUE);
    let backlog = Backlog::new(waiting);
    let (mut inlets, mut feeds) = (HashMap::new(), HashMap::new());
    for channel in read {
        let (feed, unread) = backlog.channel();
        inlets.insert(*channel, Inlet::new(unread, None, activity.clone()));
        feeds.insert(*channel, feed);
    }
    let over = watch::Sender::new(false);
    let (gone, line) = watch::channel(false);
    let (written, mut flushed) = watch::channel(false);
    let writer = tokio::spawn(write(to, messages, written)).abort_handle();
    let its_writer = writer.clone();
    let mut end = over.subscribe();
    let reader = tokio::spawn(async move {
        let mut from = from;
        let ended = tokio::select! {
            () = hangup => true,
            () = turned(&mut end) => false,
            () = sort(&mut from, protocol, (feeds, backlog)) => true,
        };
        if !ended {
            // What the client still sends is thrown away, up to its answer to the end.
            let drained = async { while let Some(Ok(_)) = from.next().await {} };
            let had_its_time = async {
                turned(&mut flushed).await;
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                () = drained => {}
                () = had_its_time => {}
            }
        }
        gone.send_replace(true);
        its_writer.abort();
    });
    Connection {
        protocol,
        queue,
        inlets,
        activity,
        over,
        line: Line::new(line),
        tasks: [reader.abort_handle(), writer],
    }
}

/// Hands what comes to its channel until the client ends.
async fn sort(
    from: &mut (impl StreamExt<Item = Result<Message, WsError>> + Unpin),
    protocol: Subprotocol,
    (mut feeds, backlog): (HashMap<u8, Feed>, Backlog),
) {
    while let Some(message) = from.next().await {
        let payload = match message {
            Ok(message @ (Message::Binary(_) | Message::Text(_))) => message.into_data(),
            Ok(Message::Close(_)) => return,
            // The library answers pings.
            Ok(_) => continue,
            Err(error) => return tracing::debug!(%error, "a WebSocket ends"),
        };
        match protocol.decode(payload) {
            // For a channel that nobody reads, or not any more, they are thrown away.
            Ok(Some(Said::Bytes(channel, bytes))) => {
                if let Some(feed) = feeds.get(&channel) {
                    feed.push(&bytes);
                    backlog.has_room().await;
                }
            }
            Ok(Some(Said::End(channel))) => drop(feeds.remove(&channel)),
            Ok(None) => {}
            Err(error) => return tracing::debug!(%error, "a WebSocket ends"),
        }
    }
}

/// Writes messages until the last of them, and says when all are written.
async fn write<I>(
    mut to: SplitSink<WebSocketStream<I>, Message>,
    mut messages: mpsc::Receiver<Message>,
    written: watch::Sender<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = messages.recv().await {
        let last = message.is_close();
        if to.send(message).await.is_err() || last {
            break;
        }
    }
    written.send_replace(true);
    // What comes now is taken and thrown away, so that nobody waits for room.
    while messages.recv().await.is_some() {}
}
