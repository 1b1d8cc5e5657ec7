//! Hostile archives, each named after what it tries, and what becomes of it: refused with a text
//! that says why, or confined to facts that can be looked up below the layer's root.
//!
//! Code that builds them, no files: what an attack consists of can be read. The tests walk the
//! whole list; the fuzzers begin with it.

mod attributes;
mod bombs;
mod deletions;
mod formats;
mod headers;
mod links;
mod names;
mod streams;
mod tests;

use super::Limits;

/// An archive that somebody might send.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) archive: Vec<u8>,
    pub(crate) limits: Limits,
    pub(crate) outcome: Outcome,
}

/// What must become of it.
pub(crate) enum Outcome {
    /// An error whose text, causes included, has these words.
    Refused(&'static str),
    /// A layer of which all this is so.
    Confined(Vec<Fact>),
}

/// Something that can be seen below the root of an unpacked layer.
#[derive(Debug)]
pub(crate) enum Fact {
    /// A regular file with this text.
    File(&'static str, &'static str),
    /// A regular file of so many bytes.
    Size(&'static str, u64),
    /// A symlink to this.
    Link(&'static str, &'static str),
    /// Two names of one file.
    Same(&'static str, &'static str),
    /// A directory.
    Dir(&'static str),
    /// A character device 0/0.
    Deleted(&'static str),
    /// A directory that hides what layers below have there.
    Opaque(&'static str),
    /// Permissions, set-id bits included.
    Mode(&'static str, u32),
    /// Seconds since 1970.
    Time(&'static str, i64),
    /// Nothing at all.
    Absent(&'static str),
    /// No such extended attribute.
    NoAttribute(&'static str, &'static str),
}

/// Every attack there is.
pub(crate) fn attacks() -> Vec<Attack> {
    let groups = [
        names::attacks(),
        links::attacks(),
        deletions::attacks(),
        attributes::attacks(),
        headers::attacks(),
        formats::attacks(),
        streams::attacks(),
        bombs::attacks(),
    ];
    groups.into_iter().flatten().collect()
}

fn refused(name: &'static str, why: &'static str, archive: Vec<u8>) -> Attack {
    Attack {
        name,
        archive,
        limits: Limits::default(),
        outcome: Outcome::Refused(why),
    }
}

fn confined(name: &'static str, archive: Vec<u8>, facts: Vec<Fact>) -> Attack {
    Attack {
        name,
        archive,
        limits: Limits::default(),
        outcome: Outcome::Confined(facts),
    }
}
