//! Reading the entries of a tar stream that a stranger wrote.
//!
//! The `tar` crate supplies the header layouts and nothing else: extension headers are read here,
//! with a bound on each, because that crate would buffer whatever size they claim. Understands
//! ustar, PAX, GNU long names, and sparse files in the old GNU format and PAX 0.0, 0.1 and 1.0.
//! Writes nothing; decides nothing about paths.

use std::io::{self, BufRead};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::numbers::{Time, number};
use super::pax::Pax;

/// Headers in front of an entry that say more about it: a PAX header, a long name, a long link, and
/// as many again from careless writers.
const EXTENSIONS_MAX: u32 = 8;
const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;

/// Why a stream is not a tar archive that can be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream below failed, or ended inside an entry.
    #[error("reading the archive")]
    Read(#[source] io::Error),
    /// A header whose checksum does not fit: not a tar archive, or a damaged one.
    #[error("header checksum does not match")]
    Checksum,
    /// A number or record that does not parse.
    #[error("header field {0} is malformed")]
    Field(&'static str),
    /// An extension header above the limit of bytes.
    #[error("extension header of {0} bytes is over the limit")]
    ExtensionTooLarge(u64),
    /// An entry type that has no place in a layer.
    #[error("entry type {0:?} is not supported")]
    EntryType(char),
    /// Something that readers of tar archives read differently, so that what was looked over
    /// elsewhere would not be what is unpacked here.
    #[error("archive can be read in two ways: {0}")]
    Ambiguous(&'static str),
    /// A sparse map that does not describe the file.
    #[error("sparse map is inconsistent")]
    Sparse,
}

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// A run of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// One entry; its data follow in the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) mtime: Time,
    pub(crate) device: (u32, u32),
    /// Length of the file once written, holes included.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data go, when they do not simply follow each other.
    pub(crate) extents: Option<Vec<Extent>>,
}

/// Reads one entry after the other.
pub(crate) struct Entries<R> {
    inner: R,
    /// Data of the current entry not yet read.
    left: u64,
    /// Zeros after them, up to the next block.
    padding: u64,
    extension_max: u64,
}

impl<R: BufRead> Entries<R> {
    /// `extension_max` bounds each long name, PAX header and sparse map, in bytes.
    pub(crate) fn new(inner: R, extension_max: u64) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
            extension_max,
        }
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// Leaves it to the caller to pass over the rest of the current entry, so many bytes of the
    /// stream below: who can seek need not read them.
    pub(crate) fn leave(&mut self) -> (u64, &mut R) {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        (rest, &mut self.inner)
    }

    /// The next entry, whether or not the data of the last were read; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let (mut long_path, mut long_link, mut pax) = (None, None, None);
        let mut in_front = 0;
        loop {
            in_front += 1;
            if in_front > EXTENSIONS_MAX {
                return Err(ArchiveError::Ambiguous("too many headers for one entry"));
            }
            self.skip()?;
            let Some(block) = self.header()? else {
                return Ok(None);
            };
            let header = Header::from_byte_slice(&block);
            let old = header.as_old();
            let size = unsigned(&old.size, "size")?;
            match old.linkflag[0] {
                b'L' => long_path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extension(size)?).to_vec()),
                b'x' if pax.is_some() => {
                    return Err(ArchiveError::Ambiguous("two PAX headers for one entry"));
                }
                b'x' => pax = Some(Pax::parse(&self.extension(size)?)?),
                // Container tools pass over what holds for the rest of the archive; some of them
                // forget at this point what was said about the next entry.
                b'g' if pax.is_some() || long_path.is_some() || long_link.is_some() => {
                    let text = "a global header between an entry and its own";
                    return Err(ArchiveError::Ambiguous(text));
                }
                b'g' => {
                    self.extension(size)?;
                    in_front = 0;
                }
                flag => {
                    let mut pax = pax.unwrap_or_default();
                    let mut entry = entry(header, &pax)?;
                    if let Some(path) = one_of(pax.path.take(), long_path)? {
                        entry.path = path;
                    }
                    if let Some(link) = one_of(pax.link.take(), long_link)? {
                        entry.link = link;
                    }
                    // Before ustar a directory was a file whose name ends in a slash.
                    if flag == 0 && entry.path.last() == Some(&b'/') {
                        entry.kind = Kind::Directory;
                    }
                    self.body(header, &mut entry, pax)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Data of the current entry, at most `max` bytes, to be taken with [`Entries::consume`]; empty
    /// when there are no more.
    pub(crate) fn data(&mut self, max: u64) -> Result<&[u8], ArchiveError> {
        let max = usize::try_from(self.left.min(max)).unwrap_or(usize::MAX);
        if max == 0 {
            return Ok(&[]);
        }
        let data = self.inner.fill_buf().map_err(ArchiveError::Read)?;
        match data.len() {
            0 => Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into())),
            length => Ok(&data[..length.min(max)]),
        }
    }

    /// Takes so many bytes of what [`Entries::data`] gave.
    pub(crate) fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.left -= amount as u64;
    }

    /// Settles how many bytes follow, and where they belong.
    fn body(&mut self, header: &Header, entry: &mut Entry, pax: Pax) -> Result<(), ArchiveError> {
        let old = header.as_old();
        entry.xattrs = pax.xattrs;
        if entry.kind != Kind::File {
            // Whatever size a link or directory claims, nothing follows it: as other readers do.
            return Ok(());
        }
        let stored = match pax.size {
            Some(size) => size,
            None => unsigned(&old.size, "size")?,
        };
        self.follow(stored);
        entry.size = stored;
        if old.linkflag[0] == b'S' {
            let gnu = header.as_gnu().ok_or(ArchiveError::Sparse)?;
            entry.size = unsigned(&gnu.realsize, "real size")?;
            entry.extents = Some(self.gnu_extents(&gnu.sparse, gnu.is_extended())?);
        } else if pax.sparse.in_data {
            entry.extents = Some(self.extents_in_data()?);
        } else if !pax.sparse.map.is_empty() {
            entry.extents = Some(pax.sparse.map);
        }
        if entry.extents.is_some() {
            if old.linkflag[0] != b'S' {
                entry.size = pax.sparse.real_size.ok_or(ArchiveError::Sparse)?;
            }
            if let Some(name) = pax.sparse.name {
                entry.path = name;
            }
            self.check_extents(entry)?;
        }
        Ok(())
    }

    /// Extents ascend, end within the file, and use up exactly the data stored.
    fn check_extents(&self, entry: &Entry) -> Result<(), ArchiveError> {
        let mut end = 0u64;
        let mut stored = 0u64;
        for extent in entry.extents.iter().flatten() {
            if extent.offset < end {
                return Err(ArchiveError::Sparse);
            }
            end = extent
                .offset
                .checked_add(extent.length)
                .ok_or(ArchiveError::Sparse)?;
            stored += extent.length;
        }
        match end <= entry.size && stored == self.left {
            true => Ok(()),
            false => Err(ArchiveError::Sparse),
        }
    }

    fn gnu_extents(
        &mut self,
        first: &[GnuSparseHeader],
        mut more: bool,
    ) -> Result<Vec<Extent>, ArchiveError> {
        let mut extents = Vec::new();
        collect(first, &mut extents)?;
        let mut read = 0;
        while more {
            read += BLOCK_U64;
            if read > self.extension_max {
                return Err(ArchiveError::ExtensionTooLarge(read));
            }
            let mut block = GnuExtSparseHeader::new();
            self.inner
                .read_exact(block.as_mut_bytes())
                .map_err(ArchiveError::Read)?;
            collect(block.sparse(), &mut extents)?;
            more = block.is_extended();
        }
        Ok(extents)
    }

    /// PAX sparse format 1.0: the data begin with a decimal map, padded to a block.
    fn extents_in_data(&mut self) -> Result<Vec<Extent>, ArchiveError> {
        let mut text = Vec::new();
        let (mut count, mut lines) = (None, 0);
        loop {
            if text.len() as u64 >= self.extension_max || self.left < BLOCK_U64 {
                return Err(ArchiveError::Sparse);
            }
            let mut block = [0; BLOCK];
            self.inner
                .read_exact(&mut block)
                .map_err(ArchiveError::Read)?;
            self.left -= BLOCK_U64;
            text.extend_from_slice(&block);
            lines += block.iter().filter(|b| **b == b'\n').count() as u64;
            if count.is_none() && lines > 0 {
                let first = text.split(|b| *b == b'\n').next().unwrap_or_default();
                count = Some(super::numbers::decimal(first).ok_or(ArchiveError::Sparse)?);
            }
            let numbers = count.and_then(|count| count.checked_mul(2));
            if numbers.is_some_and(|numbers| lines > numbers) {
                return Pax::pairs(text.split(|b| *b == b'\n').skip(1), numbers.unwrap_or(0));
            }
        }
    }

    fn follow(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK_U64;
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > self.extension_max {
            return Err(ArchiveError::ExtensionTooLarge(size));
        }
        self.follow(size);
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.inner
            .read_exact(&mut data)
            .map_err(ArchiveError::Read)?;
        self.left = 0;
        Ok(data)
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let mut left = self
            .left
            .checked_add(self.padding)
            .ok_or(ArchiveError::Field("size"))?;
        (self.left, self.padding) = (0, 0);
        let mut sink = [0; 8192];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(sink.len());
            self.inner
                .read_exact(&mut sink[..want])
                .map_err(ArchiveError::Read)?;
            left -= want as u64;
        }
        Ok(())
    }

    /// The next header block, `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block == [0; BLOCK] {
            // The end is two blocks of zeros; data after a single one would be read by some
            // readers and not by others.
            return match self.block()? {
                Some(second) if second != [0; BLOCK] => Err(ArchiveError::Checksum),
                _ => Ok(None),
            };
        }
        let expected = number(&block[148..156]).ok_or(ArchiveError::Field("checksum"))?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        // A fuzzer would spend its life on getting checksums right.
        match expected == unsigned || expected == signed || cfg!(fuzzing) {
            true => Ok(Some(block)),
            false => Err(ArchiveError::Checksum),
        }
    }

    /// A whole block, or `None` when the stream ends exactly here.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        Ok(Some(block))
    }
}

/// Everything a header says by itself.
fn entry(header: &Header, pax: &Pax) -> Result<Entry, ArchiveError> {
    let old = header.as_old();
    let path = header.path_bytes().into_owned();
    let kind = kind(old.linkflag[0])?;
    let device = match (kind, header.as_ustar(), header.as_gnu()) {
        (Kind::CharDevice | Kind::BlockDevice, Some(ustar), _) => {
            (device(&ustar.dev_major)?, device(&ustar.dev_minor)?)
        }
        (Kind::CharDevice | Kind::BlockDevice, _, Some(gnu)) => {
            (device(&gnu.dev_major)?, device(&gnu.dev_minor)?)
        }
        (Kind::CharDevice | Kind::BlockDevice, None, None) => {
            return Err(ArchiveError::Field("device number"));
        }
        _ => (0, 0),
    };
    let mode = number(&old.mode).ok_or(ArchiveError::Field("mode"))?;
    let from_header = |field: &[u8], name| number(field).ok_or(ArchiveError::Field(name));
    Ok(Entry {
        kind,
        path,
        link: until_nul(&old.linkname).to_vec(),
        mode: u32::try_from(mode & 0o7777).unwrap_or(0),
        uid: pax.uid.map_or_else(|| from_header(&old.uid, "uid"), Ok)?,
        gid: pax.gid.map_or_else(|| from_header(&old.gid, "gid"), Ok)?,
        mtime: match pax.mtime {
            Some(time) => time,
            None => Time {
                seconds: from_header(&old.mtime, "mtime")?,
                nanoseconds: 0,
            },
        },
        device,
        size: 0,
        xattrs: Vec::new(),
        extents: None,
    })
}

/// The name that PAX and GNU headers give, where not both give one that differs.
fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, ArchiveError> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(ArchiveError::Ambiguous(
            "PAX and GNU headers give two names",
        )),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

fn kind(flag: u8) -> Result<Kind, ArchiveError> {
    Ok(match flag {
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(ArchiveError::EntryType(char::from(other))),
    })
}

fn device(field: &[u8]) -> Result<u32, ArchiveError> {
    let value = number(field).and_then(|value| u32::try_from(value).ok());
    value.ok_or(ArchiveError::Field("device number"))
}

fn unsigned(field: &[u8], name: &'static str) -> Result<u64, ArchiveError> {
    let value = number(field).and_then(|value| u64::try_from(value).ok());
    value.ok_or(ArchiveError::Field(name))
}

fn collect(headers: &[GnuSparseHeader], out: &mut Vec<Extent>) -> Result<(), ArchiveError> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        out.push(Extent {
            offset: unsigned(&header.offset, "sparse offset")?,
            length: unsigned(&header.numbytes, "sparse length")?,
        });
    }
    Ok(())
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or(bytes)
}
