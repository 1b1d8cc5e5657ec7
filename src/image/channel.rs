//! The bounded channel between a layer's source (async) and its unpacker (a blocking thread).
//!
//! The end of the blob is a message of its own, sent only after the blob's digest was found right:
//! a source that fails, or is dropped, leaves the reader with an error, never with a short blob.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::blob::Sink;
use super::progress::LayerProgress;

/// What travels.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// All data have come, and they are what they should be.
    End,
}

/// The sending side, which also reports progress.
pub(super) struct Feed<'p> {
    sender: mpsc::Sender<Piece>,
    progress: &'p LayerProgress,
}

impl<'p> Feed<'p> {
    pub(super) fn new(sender: mpsc::Sender<Piece>, progress: &'p LayerProgress) -> Self {
        Self { sender, progress }
    }

    pub(super) async fn end(&mut self) {
        // A reader that has gone has its own error to report.
        let _ = self.sender.send(Piece::End).await;
    }
}

impl Sink for Feed<'_> {
    async fn take(&mut self, piece: Bytes) -> bool {
        let length = piece.len() as u64;
        let taken = self.sender.send(Piece::Data(piece)).await.is_ok();
        self.progress.arrived(length);
        taken
    }
}

/// The receiving side, for one blocking thread.
pub(super) struct ChannelReader {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    taken: Arc<AtomicU64>,
}

impl ChannelReader {
    /// `taken` counts the bytes received.
    pub(super) fn new(receiver: mpsc::Receiver<Piece>, taken: Arc<AtomicU64>) -> Self {
        Self {
            receiver,
            current: Bytes::new(),
            ended: false,
            taken,
        }
    }
}

impl BufRead for ChannelReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => {
                    self.taken.fetch_add(data.len() as u64, Ordering::Relaxed);
                    self.current = data;
                }
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for ChannelReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}
