//! Telling the client how much of a stream has been taken.

use tokio::sync::mpsc;

use super::frame::Frame;
use super::writer::Command;

/// The client hears of what was taken when it is this much.
const STEP_BYTES: u32 = 16 * 1024;

/// Counts what is read of a stream.
#[derive(Debug)]
pub(crate) struct Credit {
    stream: u32,
    queue: mpsc::Sender<Command>,
    bytes: u32,
}

impl Credit {
    pub(super) fn new(stream: u32, queue: mpsc::Sender<Command>) -> Self {
        Self {
            stream,
            queue,
            bytes: 0,
        }
    }

    /// So much has been read.
    pub(crate) fn consumed(&mut self, length: usize) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.bytes = self.bytes.saturating_add(length);
    }

    /// Tells the client, if it is worth while. To be called before each read: whoever waits for
    /// more must have told of what he had.
    pub(crate) async fn settle(&mut self) {
        if self.bytes < STEP_BYTES {
            return;
        }
        // A client that is gone needs no telling.
        let Ok(place) = self.queue.reserve().await else {
            return;
        };
        let (stream, delta) = (self.stream, std::mem::take(&mut self.bytes));
        place.send(Command::Frame(Frame::WindowUpdate { stream, delta }));
    }
}
