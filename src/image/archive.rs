//! Files of an image archive, whatever holds them: a directory, a tar, or a compressed tar.
//!
//! A tar is read once to learn where its members are, and then by offset; a compressed one is first
//! decompressed into staging. What the files mean is the business of `import`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::fs::OFlags;

use super::blob::Sink;
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::layers::Staging;
use super::manifest::LayerDescriptor;
use super::reference::Reference;
use super::unpack::Limits;
use super::unpack::decompress;
use super::unpack::entries::{Entries, Kind};
use crate::sys::inroot::{self, CleanPath, Root};

/// Bytes read from an archive at a time.
const READ_BYTES: usize = 256 << 10;
/// Symlinks between members followed (old `docker save` shares layers so).
const LINKS_MAX: usize = 8;

/// An opened archive.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) path: PathBuf,
    members: Members,
    /// Where the blobs of its images are.
    pub(super) blobs: HashMap<Digest, CleanPath>,
}

#[derive(Debug)]
enum Members {
    Directory(Root),
    Tar {
        file: Arc<File>,
        index: HashMap<CleanPath, Member>,
        /// Holds the decompressed copy.
        _staging: Option<Staging>,
    },
}

#[derive(Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(CleanPath),
}

/// A run of bytes in an open file.
#[derive(Debug, Clone)]
pub(super) struct Span {
    file: Arc<File>,
    offset: u64,
    pub(super) size: u64,
}

impl Archive {
    /// Opens a directory or file; `stage` makes room for a decompressed copy.
    pub(super) fn open(
        path: &Path,
        limits: &Limits,
        stage: impl FnOnce() -> Result<Staging, ImageError>,
    ) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        let members = if metadata.is_dir() {
            Members::Directory(Root::open(path).map_err(unreadable)?)
        } else {
            let (file, staging) = plain_tar(path, limits, stage)?;
            let index = index(&file, limits).map_err(|detail| ImageError::Archive {
                path: path.to_owned(),
                detail,
            })?;
            Members::Tar {
                file: Arc::new(file),
                index,
                _staging: staging,
            }
        };
        Ok(Self {
            path: path.to_owned(),
            members,
            blobs: HashMap::new(),
        })
    }

    /// The bytes of a member; `None` when there is no such file.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Span>, ImageError> {
        let Some(mut name) = inroot::clean(name) else {
            return Ok(None);
        };
        match &self.members {
            Members::Directory(root) => match root.open_below(&name, OFlags::RDONLY) {
                Ok(fd) => self.span(fd),
                Err(rustix::io::Errno::NOENT) => Ok(None),
                Err(errno) => Err(self.unreadable(errno.into())),
            },
            Members::Tar { file, index, .. } => {
                for _ in 0..LINKS_MAX {
                    match index.get(&name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name.clone_from(target),
                        Some(Member::File { offset, size }) => {
                            let file = Arc::clone(file);
                            return Ok(Some(Span {
                                file,
                                offset: *offset,
                                size: *size,
                            }));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    fn span(&self, fd: OwnedFd) -> Result<Option<Span>, ImageError> {
        let file = File::from(fd);
        let metadata = file.metadata().map_err(|source| self.unreadable(source))?;
        let size = metadata.len();
        Ok(metadata.is_file().then(|| Span {
            file: Arc::new(file),
            offset: 0,
            size,
        }))
    }

    /// A small member, whole; `None` when there is no such file.
    pub(super) fn read(&self, name: &[u8], max: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(span) = self.find(name)? else {
            return Ok(None);
        };
        let shown = String::from_utf8_lossy(name);
        if span.size > max {
            return Err(self.bad(format!("{shown:?} is longer than {max} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(span.size).unwrap_or(0)];
        span.file
            .read_exact_at(&mut bytes, span.offset)
            .map_err(|s| self.unreadable(s))?;
        Ok(Some(bytes))
    }

    /// Whether a member begins like a compressed file, and its digest as it is.
    pub(super) fn digest_if_compressed(&self, span: &Span) -> io::Result<Option<Digest>> {
        let mut head = [0; 4];
        let length = usize::try_from(span.size)
            .unwrap_or(usize::MAX)
            .min(head.len());
        span.file.read_exact_at(&mut head[..length], span.offset)?;
        if !decompress::is_compressed(&head[..length]) {
            return Ok(None);
        }
        let mut hasher = Hasher::new(super::digest::Algorithm::Sha256);
        let mut buffer = vec![0; READ_BYTES];
        let mut at = 0;
        while at < span.size {
            let want = usize::try_from(span.size - at)
                .unwrap_or(usize::MAX)
                .min(READ_BYTES);
            span.file
                .read_exact_at(&mut buffer[..want], span.offset + at)?;
            hasher.update(&buffer[..want]);
            at += want as u64;
        }
        Ok(Some(hasher.finish()))
    }

    /// Streams a layer into `sink` and verifies it, as a registry session does.
    pub(super) async fn blob(
        &self,
        reference: &Reference,
        layer: &LayerDescriptor,
        sink: &mut impl Sink,
    ) -> Result<bool, ImageError> {
        let name = self.blobs.get(&layer.digest);
        let span = name.map(|name| self.find(name)).transpose()?.flatten();
        let Some(span) = span.filter(|span| span.size == layer.size) else {
            return Err(self.bad(format!("layer {} is missing or cut short", layer.digest)));
        };
        let mut hasher = Hasher::new(layer.digest.algorithm());
        let mut at = 0;
        while at < span.size {
            let (span, reference) = (span.clone(), reference.to_string());
            let piece = tokio::task::spawn_blocking(move || span.piece(at)).await;
            let piece = piece.map_err(|_| ImageError::ShuttingDown(reference))?;
            let piece = piece.map_err(|source| self.unreadable(source))?;
            at += piece.len() as u64;
            hasher.update(&piece);
            if !sink.take(piece).await {
                return Ok(false);
            }
        }
        let actual = hasher.finish();
        match actual == layer.digest {
            true => Ok(true),
            false => Err(self.mismatch(reference.to_string(), "layer", &layer.digest, actual)),
        }
    }

    pub(super) fn mismatch(
        &self,
        reference: String,
        what: &str,
        expected: &Digest,
        actual: Digest,
    ) -> ImageError {
        ImageError::DigestMismatch {
            reference,
            host: self.path.display().to_string(),
            what: what.to_owned(),
            expected: expected.clone(),
            actual,
        }
    }

    pub(super) fn bad(&self, detail: String) -> ImageError {
        ImageError::Archive {
            path: self.path.clone(),
            detail,
        }
    }

    pub(super) fn unreadable(&self, source: io::Error) -> ImageError {
        ImageError::Read {
            path: self.path.clone(),
            source,
        }
    }
}

impl Span {
    fn piece(&self, at: u64) -> io::Result<Bytes> {
        let want = usize::try_from(self.size - at)
            .unwrap_or(usize::MAX)
            .min(READ_BYTES);
        let mut piece = BytesMut::zeroed(want);
        self.file.read_exact_at(&mut piece, self.offset + at)?;
        Ok(piece.freeze())
    }
}

/// The archive as a plain tar: itself, or a decompressed copy.
fn plain_tar(
    path: &Path,
    limits: &Limits,
    stage: impl FnOnce() -> Result<Staging, ImageError>,
) -> Result<(File, Option<Staging>), ImageError> {
    let unreadable = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut head = [0; 4];
    let length = file.read(&mut head).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    if !decompress::is_compressed(&head[..length]) {
        return Ok((file, None));
    }
    let staging = stage()?;
    let copy_path = staging.fs().join("archive.tar");
    let uncopied = |source| ImageError::Read {
        path: copy_path.clone(),
        source,
    };
    let options = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&copy_path);
    let mut copy = options.map_err(uncopied)?;
    let plain = decompress::open(BufReader::with_capacity(READ_BYTES, file));
    let mut plain = plain
        .map_err(unreadable)?
        .take(limits.unpacked_bytes.saturating_add(1));
    let written = io::copy(&mut plain, &mut copy).map_err(unreadable)?;
    if written > limits.unpacked_bytes {
        let detail = format!("decompresses to more than {} bytes", limits.unpacked_bytes);
        return Err(ImageError::Archive {
            path: path.to_owned(),
            detail,
        });
    }
    copy.rewind().map_err(uncopied)?;
    Ok((copy, Some(staging)))
}

/// Where each member is. Of several with one name the last counts, as when unpacking.
fn index(file: &File, limits: &Limits) -> Result<HashMap<CleanPath, Member>, String> {
    let mut index = HashMap::new();
    let mut entries = Entries::new(BufReader::new(file), limits.extension_bytes);
    let mut seen = 0;
    while let Some(entry) = entries
        .next()
        .map_err(|error| format!("no tar archive: {error}"))?
    {
        seen += 1;
        if seen > limits.entries {
            return Err(format!("more than {} members", limits.entries));
        }
        let (rest, reader) = entries.leave();
        let seek = |error: io::Error| format!("cannot seek: {error}");
        let offset = reader.stream_position().map_err(seek)?;
        reader
            .seek_relative(i64::try_from(rest).map_err(|_| "size overflow")?)
            .map_err(seek)?;
        let Some(name) = inroot::clean(&entry.path) else {
            continue;
        };
        let member = match entry.kind {
            Kind::File if entry.extents.is_none() => Member::File {
                offset,
                size: entry.size,
            },
            Kind::HardLink => Member::Link(inroot::clean(&entry.link).unwrap_or_default()),
            Kind::Symlink => {
                let (parent, _) = inroot::split(&name).unwrap_or_default();
                let target = inroot::join(parent, &entry.link);
                Member::Link(inroot::clean(&target).unwrap_or_default())
            }
            _ => continue,
        };
        index.insert(name, member);
    }
    Ok(index)
}
