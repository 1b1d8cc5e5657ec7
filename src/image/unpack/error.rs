//! What can be wrong with a layer, always with the entry it was found at.

use std::io;

use super::entries::ArchiveError;

/// Why a layer was not unpacked. Entry names are shown escaped and cut short.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The compressed stream is damaged, or its source failed.
    #[error("reading the layer after entry {after:?}")]
    Stream {
        /// The last entry that was whole.
        after: String,
        /// The decompressor's or the source's error.
        source: io::Error,
    },
    /// The tar archive is malformed or has something a layer may not have.
    #[error("reading the archive after entry {after:?}")]
    Archive {
        /// The last entry that was whole.
        after: String,
        /// What was wrong.
        source: ArchiveError,
    },
    /// A limit of [`super::Limits`] was passed.
    #[error("entry {entry:?} passes the limit of {limit} {what}")]
    Limit {
        /// The entry at which it was passed.
        entry: String,
        /// What is limited, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A name or link target that leads out of the layer, or a name that cannot exist.
    #[error("entry {entry:?} {problem}")]
    Name {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The kernel refused something.
    #[error("{action} entry {entry:?}")]
    Entry {
        /// The entry.
        entry: String,
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A hard link to something that neither this layer nor one below has.
    #[error("entry {entry:?} links to {target:?}, which does not exist")]
    LinkTarget {
        /// The entry.
        entry: String,
        /// Its target.
        target: String,
    },
    /// The directory to unpack into could not be prepared.
    #[error("preparing the directory to unpack into")]
    Prepare(#[source] io::Error),
}

/// An entry's name for an error message: readable, and not longer than a line or two.
pub(crate) fn shown(name: &[u8]) -> String {
    const MAX: usize = 200;
    let text = String::from_utf8_lossy(&name[..name.len().min(MAX)]).into_owned();
    match name.len() > MAX {
        true => text + "…",
        false => text,
    }
}
