//! From a compressed layer stream to a directory, in one pass over hostile input.
//!
//! Decompresses (by content: gzip, zstd or plain), computes the digest of the tar stream (the diff
//! id) while it goes by, and writes the entries. Nothing is stored twice. Runs on a thread that may
//! block, knows no network and no async; a source that fails ends it with an error.

mod attributes;
mod contents;
#[cfg(test)]
pub(crate) mod corpus;
pub(crate) mod decompress;
mod devices;
pub(crate) mod entries;
mod error;
mod numbers;
mod parents;
mod pax;
mod stream;
mod writer;

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::AtomicU64;

pub(crate) use contents::Contents;
pub use entries::ArchiveError;
pub use error::UnpackError;
pub(crate) use error::shown;
pub(crate) use writer::{Unsettled, make_whiteout};

use super::digest::{Algorithm, Digest};
use crate::sys::inroot::Root;

/// Bounds on what one layer may make of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the tar stream; and of all files together, holes included.
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
    /// Extended attributes of one entry.
    pub xattrs: u64,
    /// Names looked up behind symlinks of the layer: forty links of four kilobytes could otherwise
    /// cost a hundred thousand of them for each entry.
    pub lookups: u64,
    /// Bytes on disk copied from layers below because an entry is a hard link to a file of theirs.
    pub linked_bytes: u64,
    /// Whether every device node is made, or only those that any container has.
    pub all_devices: bool,
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
            xattrs: 256,
            lookups: 20_000_000,
            linked_bytes: 16 << 30,
            all_devices: false,
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
    /// What its files hold.
    pub(crate) contents: Contents,
}

/// Unpacks `source` into the existing, empty directory `into`.
///
/// Two threads, because decompressing and writing files take about as long: this one writes.
/// `taken` counts the bytes taken from `source`; the source itself keeps it, because decompressors
/// read ahead. `given_up` is called when writing fails while the source may be waiting for more: it
/// should make the source end.
pub(crate) fn unpack(
    source: impl BufRead + Send,
    taken: &AtomicU64,
    into: &Path,
    algorithm: Algorithm,
    limits: &Limits,
    given_up: impl FnOnce(),
) -> Result<Unpacked, UnpackError> {
    let root = Root::open(into).map_err(UnpackError::Prepare)?;
    std::thread::scope(|scope| {
        let (producer, plain) = stream::pair();
        let produce = move || producer.run(source, taken, algorithm, limits);
        let spawned = std::thread::Builder::new().name("inflate".to_owned());
        spawned
            .spawn_scoped(scope, produce)
            .map_err(UnpackError::Prepare)?;
        let written = write(plain, root, limits);
        if written.is_err() {
            given_up();
        }
        written
    })
}

fn write(plain: stream::Plain, root: Root, limits: &Limits) -> Result<Unpacked, UnpackError> {
    let mut entries = entries::Entries::new(plain, limits.extension_bytes);
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
    let mut plain = entries.into_inner();
    // The diff id covers whatever follows the archive's end, too.
    let drained = written.is_ok().then(|| plain.drain());
    // What the stream itself has to say explains the symptom that it made in the archive.
    match plain.into_end() {
        Some(stream::End::Limit { what, limit }) => {
            return Err(UnpackError::Limit {
                entry: shown(&last),
                what,
                limit,
            });
        }
        Some(stream::End::Failed(source)) => {
            return Err(UnpackError::Stream {
                after: shown(&last),
                source,
            });
        }
        Some(stream::End::Whole(diff_id)) => {
            written?;
            let (unsettled, contents) = writer.finish()?;
            return Ok(Unpacked {
                diff_id,
                unsettled,
                contents,
            });
        }
        None => {}
    }
    written?;
    let source = drained
        .and_then(Result::err)
        .unwrap_or_else(|| std::io::ErrorKind::Other.into());
    Err(UnpackError::Stream {
        after: shown(&last),
        source,
    })
}

#[cfg(test)]
mod tests;
