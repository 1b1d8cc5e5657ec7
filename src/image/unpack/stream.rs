//! The plain tar stream on its way from the thread that makes it to the thread that writes it.
//!
//! The maker decompresses, computes the diff id and holds the stream against the limits; blocks go
//! over in a bounded channel and come back to be filled again.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::super::digest::{Algorithm, Digest, Hasher};
use super::{Limits, decompress};

/// Bytes in one block.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks under way.
const BLOCKS_MAX: usize = 4;

/// How the stream ended.
#[derive(Debug)]
pub(super) enum End {
    /// At its end, with this digest.
    Whole(Digest),
    /// At a limit.
    Limit { what: &'static str, limit: u64 },
    /// With an error of the decompressor or of its source.
    Failed(io::Error),
}

enum Block {
    Data(Vec<u8>),
    End(End),
}

/// The making side.
pub(super) struct Producer {
    full: SyncSender<Block>,
    empty: Receiver<Vec<u8>>,
}

/// The reading side.
pub(super) struct Plain {
    full: Receiver<Block>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    end: Option<End>,
}

/// Both sides of a new stream.
pub(super) fn pair() -> (Producer, Plain) {
    let (full_sender, full) = sync_channel(BLOCKS_MAX);
    let (empty, empty_receiver) = channel();
    let plain = Plain {
        full,
        empty,
        current: Vec::new(),
        at: 0,
        end: None,
    };
    (
        Producer {
            full: full_sender,
            empty: empty_receiver,
        },
        plain,
    )
}

impl Producer {
    /// Decompresses `source` to its end, to an error, to a limit, or until nobody reads any more.
    pub(super) fn run(
        self,
        source: impl BufRead,
        taken: &AtomicU64,
        algorithm: Algorithm,
        limits: &Limits,
    ) {
        let end = match self.pump(source, taken, algorithm, limits) {
            Ok(Some(end)) => end,
            Ok(None) => return,
            Err(error) => End::Failed(error),
        };
        // Nobody reads any more: then nobody wants to know, either.
        drop(self.full.send(Block::End(end)));
    }

    /// `None` when nobody reads any more.
    fn pump(
        &self,
        mut source: impl BufRead,
        taken: &AtomicU64,
        algorithm: Algorithm,
        limits: &Limits,
    ) -> io::Result<Option<End>> {
        let mut hasher = Hasher::new(algorithm);
        let mut bytes = 0u64;
        let mut plain = decompress::open(&mut source)?;
        loop {
            let mut block = self.empty.try_recv().unwrap_or_default();
            block.clear();
            let read = plain
                .by_ref()
                .take(BLOCK_BYTES as u64)
                .read_to_end(&mut block)?;
            if read == 0 {
                break;
            }
            hasher.update(&block);
            bytes += read as u64;
            let allowed = taken.load(Ordering::Relaxed).saturating_mul(limits.ratio);
            if bytes > limits.unpacked_bytes {
                let limit = limits.unpacked_bytes;
                return Ok(Some(End::Limit {
                    what: "bytes unpacked",
                    limit,
                }));
            }
            if bytes > limits.ratio_from_bytes && bytes > allowed {
                let limit = limits.ratio;
                return Ok(Some(End::Limit {
                    what: "times its compressed size",
                    limit,
                }));
            }
            if self.full.send(Block::Data(block)).is_err() {
                return Ok(None);
            }
        }
        // The decompressor may be content before the source has ended, and said that it is whole.
        drop(plain);
        io::copy(&mut source, &mut io::sink())?;
        Ok(Some(End::Whole(hasher.finish())))
    }
}

impl Plain {
    /// Reads to the end.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }

    /// How the stream ended; `None` if that has not been seen.
    pub(super) fn into_end(self) -> Option<End> {
        self.end
    }
}

impl BufRead for Plain {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && self.end.is_none() {
            match self.full.recv() {
                Ok(Block::Data(block)) => {
                    let old = std::mem::replace(&mut self.current, block);
                    self.at = 0;
                    // A maker that has finished needs no more blocks.
                    drop(self.empty.send(old));
                }
                Ok(Block::End(end)) => self.end = Some(end),
                Err(_) => self.end = Some(End::Failed(io::ErrorKind::BrokenPipe.into())),
            }
        }
        match &self.end {
            Some(End::Whole(_)) | None => Ok(&self.current[self.at..]),
            Some(_) if self.at < self.current.len() => Ok(&self.current[self.at..]),
            Some(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Plain {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}
