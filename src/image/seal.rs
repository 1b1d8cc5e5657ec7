//! What a layer's tree was when it was whole: a list of its entries, kept beside it, by which a
//! check names what has changed, has gone or has been added.
//!
//! ```text
//! kind mode uid gid size seconds.nanoseconds device attributes content path
//! f 755 0 0 1131168 1700000000.000000000 0 0 8f3c…e1 bin/busybox
//! ```
//! One line an entry, in the order of [`tree::walk`]. `kind` is `d` directory, `f` file, `l`
//! symlink, `c` and `b` devices, `p` FIFO, `s` socket, `h` a further name of a file that came
//! before. `attributes` is a hash of all extended ones, 0 for none; `content` of a file's bytes, of
//! a symlink's target, of the first name of what `h` names. Sizes of directories and times of
//! access are the file system's own business and not compared. The digest of the list is in the
//! layer's row, so that the list itself can be trusted.
//!
//! The hashes are XXH3 with 128 bits: they find what has rotted or was changed by mistake, at the
//! speed of memory. Against forgery stand the digests that were checked on the way in; whoever can
//! write here afterwards is root.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use rustix::fs::{Advice, FileType, Mode, OFlags, Stat};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::digest::{Algorithm, Digest, Hasher};
use super::unpack::{Contents, shown};
use crate::sys::tree::{self, Visited};
use crate::sys::xattr;

/// The list's name, beside `fs`.
pub(super) const NAME: &str = "seal";
/// Differences that are told; the others are counted.
const TOLD: usize = 10;
/// Read at once.
const PIECE: usize = 128 * 1024;
/// Longest line: a path, each of whose bytes may need two, and the numbers.
const LINE_MAX: u64 = 64 * 1024;
/// Set by the node's security modules, each in its own way and time.
const NODE_ATTRIBUTES: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
/// The fields before the path, in their order.
const FIELDS: [&str; 9] = [
    "kind",
    "mode",
    "owner",
    "group",
    "size",
    "time",
    "device",
    "attributes",
    "content",
];
const CONTENT: usize = 8;

/// How closely a layer is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names, kinds, modes, owners, sizes, times and attributes.
    Quick,
    /// The content of every file as well, read from the disk.
    Whole,
}

/// A list that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// SHA-256 of the list.
    pub digest: Digest,
    /// Entries in it, the root included.
    pub entries: u64,
}

/// How a tree compares with its list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// Entries in the tree, the root included.
    pub entries: u64,
    /// Bytes of content that were read.
    pub bytes_read: u64,
    /// The first differences, a line each.
    pub differences: Vec<String>,
    /// How many more there are.
    pub more: u64,
}

impl Compared {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.differences.is_empty()
    }

    pub(super) fn differs(&mut self, text: String) {
        if self.differences.len() < TOLD {
            self.differences.push(text);
        } else {
            self.more += 1;
        }
    }
}

/// Writes the list of the tree at `fs` to the new file at `into`, which is not synced. Files whose
/// content is known are not read.
///
/// # Errors
/// What reading the tree and writing the file give.
pub(super) fn write(fs: &Path, into: &Path, known: &Contents) -> io::Result<Seal> {
    let mut out = BufWriter::new(File::create(into)?);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut entries = 0;
    let mut lister = Lister::new(Depth::Whole, false);
    lister.known = Some(known);
    tree::walk(fs, &mut |seen| {
        let mut line = lister.line(seen)?;
        line.push(b'\n');
        entries += 1;
        hasher.update(&line);
        out.write_all(&line)
    })?;
    out.flush()?;
    let digest = hasher.finish();
    Ok(Seal { digest, entries })
}

/// The digest of the list at `path`.
///
/// # Errors
/// What reading it gives.
pub(super) fn digest_of(path: &Path) -> io::Result<Seal> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut lines = Lines::open(path)?;
    let mut entries = 0;
    while let Some(line) = lines.next_whole()? {
        entries += 1;
        hasher.update(&line);
    }
    let digest = hasher.finish();
    Ok(Seal { digest, entries })
}

/// Compares the tree at `fs` with the list at `list`, whose digest has been checked.
///
/// # Errors
/// What reading the tree and the list gives; a file of the tree that cannot be read is a
/// difference.
pub(super) fn compare(fs: &Path, list: &Path, depth: Depth) -> io::Result<Compared> {
    let mut lister = Lister::new(depth, true);
    let mut lines = Lines::open(list)?;
    let mut compared = Compared::default();
    let mut expected = lines.next()?;
    tree::walk(fs, &mut |seen| {
        compared.entries += 1;
        let path = escaped(seen.path);
        // Listed, sorted before what is here, and not met: gone.
        while let Some(line) = expected.take_if(|line| line.sorts_before(&path)) {
            compared.differs(format!("{} is gone", line.shown()));
            expected = lines.next()?;
        }
        match expected.take_if(|line| line.path == path) {
            None => compared.differs(format!("{} is not listed", shown_path(&path))),
            Some(line) => {
                match lister.line(seen) {
                    Ok(found) => line.compare(&found, depth, &mut compared),
                    Err(error) => {
                        let path = line.shown();
                        compared.differs(format!("{path} cannot be read: {error}"));
                    }
                }
                expected = lines.next()?;
            }
        }
        Ok(())
    })?;
    while let Some(line) = expected {
        compared.differs(format!("{} is gone", line.shown()));
        expected = lines.next()?;
    }
    compared.bytes_read = lister.bytes_read;
    Ok(compared)
}

/// Makes lines of entries.
struct Lister<'k> {
    depth: Depth,
    known: Option<&'k Contents>,
    /// Whether what the page cache holds does not count.
    from_disk: bool,
    /// Hash of the first name of each file that has several.
    linked: HashMap<u64, u128>,
    bytes_read: u64,
    buffer: Vec<u8>,
}

impl Lister<'_> {
    fn new(depth: Depth, from_disk: bool) -> Self {
        Self {
            depth,
            known: None,
            from_disk,
            linked: HashMap::new(),
            bytes_read: 0,
            buffer: vec![0; PIECE],
        }
    }

    fn line(&mut self, seen: &Visited<'_>) -> io::Result<Vec<u8>> {
        let Visited {
            path,
            dir,
            name,
            stat,
            ..
        } = seen;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let path = escaped(path);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let own = xxh3_128(&path);
            let first = *self.linked.entry(stat.st_ino).or_insert(own);
            if first != own {
                return Ok(line("h", [0; 4], (0, 0), [0; 2], first, &path));
            }
        }
        let attributes = attributes(&xattr::all_at(dir, name)?);
        let (letter, size, content) = match kind {
            FileType::Directory => ("d", 0, 0),
            FileType::RegularFile => {
                let known = self.known.and_then(|known| known.of(stat.st_ino));
                let content = match (self.depth, known) {
                    (Depth::Quick, _) => 0,
                    (Depth::Whole, Some(known)) => known,
                    (Depth::Whole, None) => self.content(seen)?,
                };
                ("f", size_of(stat), content)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, *name, Vec::new())?;
                ("l", size_of(stat), xxh3_128(target.to_bytes()))
            }
            FileType::CharacterDevice => ("c", 0, 0),
            FileType::BlockDevice => ("b", 0, 0),
            FileType::Fifo => ("p", 0, 0),
            _ => ("s", 0, 0),
        };
        let numbers = [
            u64::from(stat.st_mode & 0o7777),
            stat.st_uid.into(),
            stat.st_gid.into(),
            size,
        ];
        let time = (stat.st_mtime, i128::from(stat.st_mtime_nsec));
        let device = u128::from(stat.st_rdev);
        Ok(line(
            letter,
            numbers,
            time,
            [device, attributes],
            content,
            &path,
        ))
    }

    fn content(&mut self, seen: &Visited<'_>) -> io::Result<u128> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(seen.dir, seen.name, flags, Mode::empty())?;
        if self.from_disk {
            // Clean pages are dropped, so that what is read is what the disk has.
            rustix::fs::fadvise(&fd, 0, None, Advice::DontNeed)?;
        }
        let mut file = File::from(fd);
        let mut hasher = Xxh3::new();
        loop {
            let read = file.read(&mut self.buffer)?;
            if read == 0 {
                return Ok(hasher.digest128());
            }
            self.bytes_read += read as u64;
            hasher.update(&self.buffer[..read]);
        }
    }
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn attributes(all: &[(std::ffi::CString, Vec<u8>)]) -> u128 {
    let mut hasher = Xxh3::new();
    let mut none = true;
    let own = |name: &[u8]| NODE_ATTRIBUTES.contains(&name);
    for (name, value) in all.iter().filter(|(name, _)| !own(name.to_bytes())) {
        none = false;
        hasher.update(name.to_bytes_with_nul());
        hasher.update(&(value.len() as u64).to_le_bytes());
        hasher.update(value);
    }
    if none { 0 } else { hasher.digest128() }
}

fn line(
    kind: &str,
    [mode, uid, gid, size]: [u64; 4],
    (seconds, nanoseconds): (i64, i128),
    [device, attributes]: [u128; 2],
    content: u128,
    path: &[u8],
) -> Vec<u8> {
    let mut line = format!(
        "{kind} {mode:o} {uid} {gid} {size} {seconds}.{nanoseconds:09} {device} {attributes:x} \
         {content:x} "
    )
    .into_bytes();
    line.extend_from_slice(path);
    line
}

/// A line break in a name must not be one in the list.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            other => out.push(*other),
        }
    }
    out
}

fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        match (byte, *byte == b'\\') {
            (_, true) if bytes.next() == Some(&b'n') => out.push(b'\n'),
            (other, _) => out.push(*other),
        }
    }
    out
}

fn shown_path(escaped: &[u8]) -> String {
    format!("/{}", shown(escaped))
}

/// A line of the list.
struct Line {
    fields: Vec<u8>,
    path: Vec<u8>,
}

impl Line {
    fn shown(&self) -> String {
        shown_path(&self.path)
    }

    /// In the order of the walk: by names, so that a slash is less than any byte of one.
    fn sorts_before(&self, path: &[u8]) -> bool {
        let key = |path: &[u8]| {
            let mut path = unescaped(path);
            path.iter_mut().for_each(|byte| {
                if *byte == b'/' {
                    *byte = 0;
                }
            });
            path
        };
        self.path != path && key(&self.path) < key(path)
    }

    fn compare(&self, found: &[u8], depth: Depth, compared: &mut Compared) {
        let was = split(&self.fields);
        let is = split(&found[..found.len().saturating_sub(self.path.len() + 1)]);
        let is_file = was.first() == Some(&&b"f"[..]);
        for (index, name) in FIELDS.iter().enumerate() {
            if index == CONTENT && depth == Depth::Quick && is_file {
                continue;
            }
            let (was, is) = (was.get(index), is.get(index));
            if was != is {
                let text = |field: Option<&&[u8]>| field.map_or("nothing".into(), |f| shown(f));
                let (path, was, is) = (self.shown(), text(was), text(is));
                let text = match index {
                    7 | CONTENT => format!("{path}: its {name} changed"),
                    _ => format!("{path}: its {name} was {was} and is {is}"),
                };
                compared.differs(text);
                return;
            }
        }
    }
}

fn split(fields: &[u8]) -> Vec<&[u8]> {
    fields.split(|byte| *byte == b' ').collect()
}

/// The list, line by line.
struct Lines(BufReader<File>);

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Self(BufReader::with_capacity(PIECE, File::from(fd))))
    }

    /// With its end.
    fn next_whole(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        (&mut self.0).take(LINE_MAX).read_until(b'\n', &mut line)?;
        Ok((!line.is_empty()).then_some(line))
    }

    fn next(&mut self) -> io::Result<Option<Line>> {
        let Some(mut line) = self.next_whole()? else {
            return Ok(None);
        };
        let broken = || io::Error::other("the list of entries is broken");
        if line.pop() != Some(b'\n') {
            return Err(broken());
        }
        let mut spaces = line.iter().enumerate().filter(|(_, byte)| **byte == b' ');
        let (end, _) = spaces.nth(FIELDS.len() - 1).ok_or_else(broken)?;
        let path = line.split_off(end + 1);
        line.pop();
        Ok(Some(Line { fields: line, path }))
    }
}

#[cfg(test)]
mod tests;
