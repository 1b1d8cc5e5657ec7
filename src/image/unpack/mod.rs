//! From a compressed layer stream to a directory, in one pass over hostile input.
//!
//! Decompresses (by content: gzip, zstd or plain), computes the digest of the tar stream (the diff
//! id) while it goes by, and writes the entries. Nothing is stored twice. Runs on a thread that may
//! block, knows no network and no async; a source that fails ends it with an error.

pub(crate) mod decompress;
pub(crate) mod entries;
mod error;
mod numbers;
mod parents;
mod pax;
mod writer;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use entries::ArchiveError;
pub use error::UnpackError;
pub(crate) use error::shown;
pub(crate) use parents::OPAQUE;
pub(crate) use writer::Unsettled;

use super::digest::{Algorithm, Digest, Hasher};
use crate::sys::inroot::Root;

/// Bounds on what one layer may make of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the tar stream.
    pub unpacked_bytes: u64,
    /// How many times larger than its compressed form the tar stream may be …
    pub ratio: u64,
    /// … once it has passed this many bytes: small layers of zeros are harmless.
    pub ratio_from_bytes: u64,
    /// Entries, each of which costs an inode or a name.
    pub entries: u64,
    /// Bytes of one path.
    pub path_bytes: u64,
    /// Levels of directories in one path.
    pub depth: u64,
    /// Bytes of one PAX header, GNU long name or sparse map.
    pub extension_bytes: u64,
    /// Bytes of all directory names remembered until the layer is whole.
    pub kept_name_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 128 << 30,
            ratio: 200,
            ratio_from_bytes: 4 << 30,
            entries: 4_000_000,
            path_bytes: 4096,
            depth: 256,
            extension_bytes: 1 << 20,
            kept_name_bytes: 256 << 20,
        }
    }
}

/// A layer whose every entry has been written.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the tar stream, computed with the algorithm asked for.
    pub(crate) diff_id: Digest,
    /// What needs the layers below.
    pub(crate) unsettled: Unsettled,
}

/// Unpacks `source` into the existing, empty directory `into`.
///
/// `taken` counts the bytes taken from `source`; the source itself keeps it, because decompressors
/// read ahead.
pub(crate) fn unpack(
    source: impl BufRead,
    taken: &Arc<AtomicU64>,
    into: &Path,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let root = Root::open(into).map_err(UnpackError::Prepare)?;
    let stream = |after: &[u8]| {
        let after = shown(after);
        move |source| UnpackError::Stream { after, source }
    };
    let plain = decompress::open(source).map_err(stream(b""))?;
    let meter = Meter {
        inner: plain,
        hasher: Hasher::new(algorithm),
        bytes: 0,
        taken: Arc::clone(taken),
        limits: limits.clone(),
        passed: None,
    };
    let buffered = BufReader::with_capacity(128 * 1024, meter);
    let mut entries = entries::Entries::new(buffered, limits.extension_bytes);
    let mut writer = writer::Writer::new(root, limits.clone());
    let mut last = Vec::new();
    let mut body = || -> Result<(), UnpackError> {
        loop {
            let next = entries.next();
            let next = next.map_err(|source| UnpackError::Archive {
                after: shown(&last),
                source,
            })?;
            let Some(entry) = next else { return Ok(()) };
            writer.write(&entry, &mut entries)?;
            last = entry.path;
        }
    };
    let written = body();
    let mut rest = entries.into_inner();
    // What a limit stopped shows as a read error: give the reason, not the symptom.
    if let Some((what, limit)) = rest.get_ref().passed {
        return Err(UnpackError::Limit {
            entry: shown(&last),
            what,
            limit,
        });
    }
    written?;
    // The diff id covers whatever follows the archive's end, too.
    let drained = std::io::copy(&mut rest, &mut std::io::sink());
    if let Some((what, limit)) = rest.get_ref().passed {
        return Err(UnpackError::Limit {
            entry: shown(&last),
            what,
            limit,
        });
    }
    drained.map_err(stream(&last))?;
    let meter = rest.into_inner();
    Ok(Unpacked {
        diff_id: meter.hasher.finish(),
        unsettled: writer.finish()?,
    })
}

/// Counts and digests the tar stream, and stops it at the limits.
struct Meter<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
    taken: Arc<AtomicU64>,
    limits: Limits,
    passed: Option<(&'static str, u64)>,
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(into)?;
        self.hasher.update(&into[..read]);
        self.bytes += read as u64;
        let allowed = self
            .taken
            .load(Ordering::Relaxed)
            .saturating_mul(self.limits.ratio);
        if self.bytes > self.limits.unpacked_bytes {
            self.passed = Some(("bytes unpacked", self.limits.unpacked_bytes));
        } else if self.bytes > self.limits.ratio_from_bytes && self.bytes > allowed {
            self.passed = Some(("times its compressed size", self.limits.ratio));
        }
        match self.passed {
            None => Ok(read),
            Some(_) => Err(std::io::ErrorKind::FileTooLarge.into()),
        }
    }
}

#[cfg(test)]
mod tests;
