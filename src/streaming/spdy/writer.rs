//! The task that writes one SPDY connection: the only one that encodes frames, for the headers of
//! all streams are compressed as one.

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use super::frame::{Encoder, Frame, PIECE_MAX_BYTES};

/// No error, a broken rule: what a goodbye says.
pub(super) const GOODBYE: u32 = 0;
pub(super) const GOODBYE_PROTOCOL: u32 = 1;

/// What the writer is told.
#[derive(Debug)]
pub(super) enum Command {
    Frame(Frame),
    /// Say goodbye and write no more.
    Close {
        last_stream: u32,
        status: u32,
    },
}

/// Writes what it is told until the end, and says when all is written.
pub(super) async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut commands: mpsc::Receiver<Command>,
    written: watch::Sender<bool>,
) {
    let mut encoder = Encoder::default();
    let mut buffer = BytesMut::new();
    let (mut open, mut broken) = (true, false);
    while open {
        let Some(mut command) = commands.recv().await else {
            break;
        };
        // What waits together is written together.
        loop {
            let frame = match command {
                Command::Frame(frame) => frame,
                Command::Close {
                    last_stream,
                    status,
                } => {
                    open = false;
                    broken = status != GOODBYE;
                    Frame::GoAway {
                        last_stream,
                        status,
                    }
                }
            };
            if let Err(error) = encoder.put(&frame, &mut buffer) {
                tracing::debug!(%error, "a frame cannot be written");
                return;
            }
            if !open || buffer.len() >= PIECE_MAX_BYTES {
                break;
            }
            match commands.try_recv() {
                Ok(next) => command = next,
                Err(_) => break,
            }
        }
        if to.write_all(&buffer).await.is_err() || to.flush().await.is_err() {
            return;
        }
        buffer.clear();
    }
    if broken {
        let _ = to.shutdown().await;
    }
    written.send_replace(true);
    // What comes now is taken and thrown away, so that nobody waits for room.
    while commands.recv().await.is_some() {}
}
