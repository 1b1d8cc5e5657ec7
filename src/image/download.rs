//! Large blobs on their way: kept on disk in pieces until they are a layer, so that a download goes
//! on where it was after the daemon ended, and several connections can fetch one blob.
//!
//! ```text
//!   downloads/<algorithm>-<hex>/<offset in hex>     one file a piece of 8 MiB, appended to
//! ```
//! The length of a file says how much of its piece is here: a process that dies in the middle of a
//! write leaves a shorter file, never a wrong one. What a power failure leaves may be wrong; the
//! digest finds that out, and the blob is fetched again from nothing. The reader follows behind the
//! writers, so a blob is decompressed while it comes. Which blobs are wanted is not known here.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::digest::{Digest, Hasher};
use super::kept;
use super::layers::{LayerError, failed, rename_new};
use super::progress::LayerProgress;
use crate::sys::tree::{self, Usage};

/// Bytes of one piece: what one request asks for.
pub(super) const PIECE_BYTES: u64 = 8 << 20;
/// Bytes read at once.
const READ_BYTES: usize = 128 << 10;

/// Digests of the blobs that are being fetched.
type Busy = Arc<Mutex<HashSet<Digest>>>;

/// The downloads under one root directory.
#[derive(Debug)]
pub(super) struct Downloads {
    directory: PathBuf,
    busy: Busy,
}

impl Downloads {
    /// Makes `downloads/` under `root`, for root alone.
    pub(super) fn open(root: &Path) -> Result<Self, LayerError> {
        let directory = root.join("downloads");
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        made.map_err(failed("making", &directory))?;
        Ok(Self {
            directory,
            busy: Busy::default(),
        })
    }

    /// The download of a blob, with what earlier ones have left of it; `None` while another one
    /// of the same blob is under way.
    pub(super) fn take(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<Arc<Download>>, LayerError> {
        let mut busy = lock(&self.busy);
        if !busy.insert(digest.clone()) {
            return Ok(None);
        }
        drop(busy);
        // From here on dropping it makes the blob free again.
        let mut download = Download::new(self.path(digest), digest, size);
        download.busy = Some(Arc::clone(&self.busy));
        download
            .remove_strange()
            .and_then(|()| download.look())
            .map_err(failed("reading", &self.directory))?;
        Ok(Some(Arc::new(download)))
    }

    /// A download that nobody can go on with, and that goes when it is dropped: for a blob that
    /// another one has under way, or that comes out of a file. `directory` is not there yet.
    pub(super) fn aside(
        directory: PathBuf,
        digest: &Digest,
        size: u64,
    ) -> Result<Arc<Download>, LayerError> {
        let mut download = Download::new(directory, digest, size);
        download.passing = true;
        download
            .look()
            .map_err(failed("reading", &download.directory))?;
        Ok(Arc::new(download))
    }

    /// The blob that is kept in `directory`, to be read alone.
    pub(super) fn stored(
        directory: PathBuf,
        digest: &Digest,
        size: u64,
    ) -> Result<Arc<Download>, LayerError> {
        let mut download = Download::new(directory, digest, size);
        download
            .look()
            .map_err(failed("reading", &download.directory))?;
        Ok(Arc::new(download))
    }

    /// Digests of all blobs of which something is here, in no order.
    pub(super) fn list(&self) -> Result<Vec<Digest>, LayerError> {
        let failed = |source| failed("listing", &self.directory)(source);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            found.extend(name.to_str().and_then(digest_in));
        }
        Ok(found)
    }

    /// Blocks: what all of them take on the disk; there is a file for each piece.
    pub(super) fn usage(&self) -> Result<Usage, LayerError> {
        let failed = |source| failed("measuring", &self.directory)(source);
        let mut total = Usage::default();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            match tree::usage(&entry.map_err(failed)?.path()) {
                Ok(one) => {
                    total.bytes += one.bytes;
                    total.inodes += one.inodes;
                }
                // It has become a layer.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(total)
    }

    /// Blocks: bytes here of a blob. Wrong while it is being fetched.
    pub(super) fn kept(&self, digest: &Digest) -> u64 {
        let files = std::fs::read_dir(self.path(digest)).into_iter().flatten();
        let lengths = files.flatten().filter_map(|file| file.metadata().ok());
        lengths.map(|file| file.len()).sum()
    }

    /// Deletes what is here of a blob, unless it is being fetched. Blocks on the disk.
    pub(super) fn remove(&self, digest: &Digest) -> Result<(), LayerError> {
        // Meanwhile nobody begins to keep what is being deleted.
        if !lock(&self.busy).insert(digest.clone()) {
            return Ok(());
        }
        let path = self.path(digest);
        let removed = tree::remove_tree(&path).map_err(failed("deleting", &path));
        lock(&self.busy).remove(digest);
        removed
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(directory_name(digest))
    }
}

/// The directory of a blob's pieces.
pub(super) fn directory_name(digest: &Digest) -> String {
    digest.to_string().replacen(':', "-", 1)
}

/// The blob whose directory has this name.
pub(super) fn digest_in(name: &str) -> Option<Digest> {
    name.replacen('-', ":", 1).parse().ok()
}

/// The file of the piece that begins at a byte.
pub(super) fn piece_name(from: u64) -> String {
    format!("{from:012x}")
}

/// One blob on its way. Blocking calls are marked; the others only take a short lock.
#[derive(Debug)]
pub(super) struct Download {
    directory: PathBuf,
    digest: Digest,
    size: u64,
    arrived: Mutex<Arrived>,
    changed: Condvar,
    /// Where it says that it is under way.
    busy: Option<Busy>,
    /// Whether what is here goes with it.
    passing: bool,
}

#[derive(Debug, Default)]
struct Arrived {
    /// Bytes here of each piece, counted from its beginning.
    pieces: Vec<u64>,
    /// Their sum.
    received: u64,
    /// No more will come.
    closed: bool,
    /// What all of it hashes to, if that is wrong.
    wrong: Option<Digest>,
    /// Who may still write.
    writers: usize,
}

/// A part of a blob that is still to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    /// Number of its piece.
    pub(super) piece: usize,
    /// First byte.
    pub(super) from: u64,
    /// Byte after the last.
    pub(super) to: u64,
}

impl Download {
    fn new(directory: PathBuf, digest: &Digest, size: u64) -> Self {
        Self {
            directory,
            digest: digest.clone(),
            size,
            arrived: Mutex::default(),
            changed: Condvar::new(),
            busy: None,
            passing: false,
        }
    }

    /// Its blob.
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes of the whole blob.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are here.
    pub(super) fn received(&self) -> u64 {
        lock(&self.arrived).received
    }

    /// What all of it hashes to, when it was read to its end and that is not its digest.
    pub(super) fn wrong(&self) -> Option<Digest> {
        lock(&self.arrived).wrong.clone()
    }

    /// What is not here yet, in order.
    pub(super) fn missing(&self) -> Vec<Missing> {
        let arrived = lock(&self.arrived);
        let all = arrived.pieces.iter().enumerate();
        let parts = all.map(|(piece, have)| Missing {
            piece,
            from: start_of(piece) + have,
            to: self.end_of(piece),
        });
        parts.filter(|part| part.from < part.to).collect()
    }

    /// What is still missing of one piece.
    pub(super) fn missing_of(&self, piece: usize) -> Option<Missing> {
        self.missing().into_iter().find(|part| part.piece == piece)
    }

    /// Somebody who will write from byte `from` of the blob on. What is here of a piece behind that
    /// is replaced.
    pub(super) fn writer(self: &Arc<Self>, from: u64) -> Writer {
        lock(&self.arrived).writers += 1;
        Writer {
            download: Arc::clone(self),
            at: from,
        }
    }

    /// Opens the file of a piece to go on at byte `at` of the blob.
    fn append_to(&self, piece: usize, at: u64, progress: &LayerProgress) -> io::Result<File> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let file = options.open(self.file(piece))?;
        let have = at - start_of(piece);
        file.set_len(have)?;
        let mut arrived = lock(&self.arrived);
        let before = std::mem::replace(&mut arrived.pieces[piece], have);
        arrived.received = arrived.received - before + have;
        progress.has(arrived.received);
        Ok(file)
    }

    fn grew(&self, piece: usize, bytes: u64, progress: &LayerProgress) {
        let mut arrived = lock(&self.arrived);
        arrived.pieces[piece] += bytes;
        arrived.received += bytes;
        progress.has(arrived.received);
        drop(arrived);
        self.changed.notify_all();
    }

    /// What comes of this download is all there is: whoever waits for more gets an error. Undone
    /// by [`Download::reopen`].
    pub(super) fn close(&self) {
        lock(&self.arrived).closed = true;
        self.changed.notify_all();
    }

    /// Blocks until those who write have ended: nobody sends them anything any more.
    pub(super) fn await_writers(&self) {
        let arrived = lock(&self.arrived);
        let ended = self
            .changed
            .wait_while(arrived, |arrived| arrived.writers > 0);
        drop(ended);
    }

    /// Blocks: forgets all that is here, so that the blob can be fetched from nothing.
    pub(super) fn reopen(&self) -> Result<(), LayerError> {
        self.await_writers();
        self.discard()?;
        let mut arrived = lock(&self.arrived);
        arrived.pieces.fill(0);
        arrived.received = 0;
        arrived.closed = false;
        arrived.wrong = None;
        Ok(())
    }

    /// Blocks: gives what is here another place, which is not there yet.
    pub(super) fn move_to(&self, place: &Path) -> Result<(), Errno> {
        rename_new(&self.directory, place)
    }

    /// Blocks: deletes what is here; it has become a layer, or is not what it should be.
    pub(super) fn discard(&self) -> Result<(), LayerError> {
        tree::remove_tree(&self.directory).map_err(failed("deleting", &self.directory))
    }

    /// Blocks: whether a blob of which nothing is missing is what its digest says; if not,
    /// [`Download::wrong`] tells what it is. For a reader that has not come to the end.
    pub(super) fn verify(&self) -> io::Result<()> {
        match kept::read(&self.directory, &self.digest, &mut |_| true)? {
            Some(found) if found.bytes != self.size => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(found) if found.digest != self.digest => {
                lock(&self.arrived).wrong = Some(found.digest);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Blocks: how much of each piece is here. A piece longer than its place is none of ours.
    fn look(&mut self) -> io::Result<()> {
        let mut pieces = Vec::new();
        for piece in 0..self.count() {
            pieces.push(self.length(piece)?.unwrap_or(0));
        }
        self.arrived = Mutex::new(Arrived {
            received: pieces.iter().sum(),
            pieces,
            ..Arrived::default()
        });
        Ok(())
    }

    /// Blocks: deletes what is none of ours where a piece would be.
    fn remove_strange(&self) -> io::Result<()> {
        for piece in 0..self.count() {
            if self.length(piece)?.is_none() {
                tree::remove_tree(&self.file(piece))?;
            }
        }
        Ok(())
    }

    /// Bytes here of a piece; `None` if what is there is none.
    fn length(&self, piece: usize) -> io::Result<Option<u64>> {
        let room = self.end_of(piece) - start_of(piece);
        match std::fs::symlink_metadata(self.file(piece)) {
            Ok(meta) => Ok((meta.is_file() && meta.len() <= room).then_some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    fn count(&self) -> usize {
        piece_of(self.size.saturating_add(PIECE_BYTES - 1))
    }

    fn file(&self, piece: usize) -> PathBuf {
        self.directory.join(piece_name(start_of(piece)))
    }

    fn end_of(&self, piece: usize) -> u64 {
        (start_of(piece) + PIECE_BYTES).min(self.size)
    }

    /// Blocks until byte `at` is here; returns how many bytes of its piece are, from it on.
    fn wait_for(&self, at: u64) -> io::Result<u64> {
        let piece = piece_of(at);
        let end = |arrived: &Arrived| start_of(piece) + arrived.pieces[piece];
        let arrived = lock(&self.arrived);
        let waits = |arrived: &mut Arrived| end(arrived) <= at && !arrived.closed;
        let arrived = self.changed.wait_while(arrived, waits);
        let arrived = arrived.unwrap_or_else(PoisonError::into_inner);
        match end(&arrived).checked_sub(at) {
            None | Some(0) => Err(io::ErrorKind::ConnectionAborted.into()),
            Some(bytes) => Ok(bytes),
        }
    }
}

/// Writes one answer's worth of a blob.
pub(super) struct Writer {
    download: Arc<Download>,
    at: u64,
}

impl Writer {
    /// Blocks: writes what `source` brings until it ends.
    pub(super) fn run(
        mut self,
        mut source: mpsc::Receiver<Bytes>,
        progress: &LayerProgress,
    ) -> Result<(), LayerError> {
        let download = Arc::clone(&self.download);
        let failed = failed("writing", &download.directory);
        let mut open: Option<(usize, File)> = None;
        while let Some(mut data) = source.blocking_recv() {
            while !data.is_empty() {
                let piece = piece_of(self.at);
                let mut file = match open.take() {
                    Some((of, file)) if of == piece => file,
                    _ => download
                        .append_to(piece, self.at, progress)
                        .map_err(&failed)?,
                };
                let room = download.end_of(piece).saturating_sub(self.at);
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                let part = data.split_to(room.min(data.len()));
                file.write_all(&part).map_err(&failed)?;
                self.at += part.len() as u64;
                download.grew(piece, part.len() as u64, progress);
                open = Some((piece, file));
            }
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.download.arrived).writers -= 1;
        self.download.changed.notify_all();
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(busy) = &self.busy {
            lock(busy).remove(&self.digest);
        }
        if self.passing {
            // A few files; what stays is found at the next start.
            drop(self.discard());
        }
    }
}

fn start_of(piece: usize) -> u64 {
    piece as u64 * PIECE_BYTES
}

fn piece_of(at: u64) -> usize {
    usize::try_from(at / PIECE_BYTES).unwrap_or(usize::MAX)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a blob from its first byte on while it is fetched, and ends only if its digest is right.
/// For one blocking thread.
pub(super) struct Follower {
    download: Arc<Download>,
    at: u64,
    open: Option<(usize, File)>,
    buffer: Vec<u8>,
    used: usize,
    hasher: Option<Hasher>,
    taken: Arc<AtomicU64>,
}

impl Follower {
    /// `taken` counts the bytes read.
    pub(super) fn new(download: Arc<Download>, taken: Arc<AtomicU64>) -> Self {
        Self {
            hasher: Some(Hasher::new(download.digest.algorithm())),
            download,
            at: 0,
            open: None,
            buffer: Vec::new(),
            used: 0,
            taken,
        }
    }

    fn read_on(&mut self) -> io::Result<()> {
        let here = self.download.wait_for(self.at)?;
        let piece = piece_of(self.at);
        let mut file = match self.open.take() {
            Some((of, file)) if of == piece => file,
            // The reader reaches a piece at its beginning.
            _ => File::open(self.download.file(piece))?,
        };
        let wanted = READ_BYTES.min(usize::try_from(here).unwrap_or(usize::MAX));
        self.buffer.resize(wanted, 0);
        self.used = 0;
        file.read_exact(&mut self.buffer)?;
        self.open = Some((piece, file));
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.buffer);
        }
        self.at += wanted as u64;
        self.taken.fetch_add(wanted as u64, Ordering::Relaxed);
        Ok(())
    }

    /// All of it was read: is it what its digest says?
    fn check(&mut self) -> io::Result<()> {
        if let Some(hasher) = self.hasher.take() {
            let actual = hasher.finish();
            if actual != self.download.digest {
                lock(&self.download.arrived).wrong = Some(actual);
            }
        }
        match self.download.wrong() {
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Ok(()),
        }
    }
}

impl BufRead for Follower {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.buffer.len() {
            if self.at == self.download.size {
                self.check()?;
                return Ok(&[]);
            }
            self.read_on()?;
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, amount: usize) {
        self.used += amount;
    }
}

impl Read for Follower {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
