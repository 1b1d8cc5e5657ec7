//! Fitting an unpacked layer onto the layers below it.
//!
//! A layer is unpacked without looking at the others, so that all can be unpacked at once. Two
//! things need the others in the end: directories that the archive used but did not describe, whose
//! attributes must stay what they were; and hard links to files of a layer below, which are copied
//! up first, as overlayfs itself would have done. Layers below are already whole.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::unpack::{Unsettled, make_whiteout, shown};
use crate::sys::inroot::{self, CleanPath, Dir, Root};
use crate::sys::overlay::{OPAQUE, OPAQUE_SET};
use crate::sys::{copy, tree, xattr};

/// Why a layer does not fit.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The kernel refused something.
    #[error("{action} {path:?}")]
    Entry {
        /// What was being done.
        action: &'static str,
        /// To which path of the layer.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A hard link to something that no layer has.
    #[error("hard link {path:?} points to {target:?}, which no layer has")]
    LinkTarget {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A layer's directory could not be opened.
    #[error("opening {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
}

/// What one layer says about a path.
enum Seen {
    /// It is here, and of this kind.
    Here(FileType),
    /// Nothing; look further down.
    Absent,
    /// Nothing, and nothing further down shows through.
    Hidden,
}

/// Completes the layer at `fs`; `below` are the layers it lies on, topmost first.
pub(super) fn settle(
    fs: &Path,
    unsettled: &Unsettled,
    below: &[PathBuf],
) -> Result<(), SettleError> {
    let on_nothing = unsettled.implicit.is_empty() || below.is_empty();
    if unsettled.links.is_empty() && !unsettled.empties_root && on_nothing {
        return Ok(());
    }
    let open =
        |path: &Path| Root::open(path).map_err(|source| SettleError::Open(path.to_owned(), source));
    let own = open(fs)?;
    let below = below
        .iter()
        .map(|path| open(path))
        .collect::<Result<Vec<_>, _>>()?;
    if unsettled.empties_root {
        for layer in &below {
            hide_all(&own, layer).map_err(entry("emptying", b"/"))?;
        }
    }
    let mut implicit = unsettled.implicit.clone();
    let mut allowed = unsettled.linked_bytes;
    for (path, target) in &unsettled.links {
        let linked = link(&own, &below, (path, target), &mut implicit, &mut allowed);
        if !linked.map_err(entry("linking", path))? {
            let (path, target) = (shown(path), shown(target));
            return Err(SettleError::LinkTarget { path, target });
        }
    }
    for path in &implicit {
        inherit(&own, &below, path).map_err(entry("taking over the attributes of", path))?;
    }
    Ok(())
}

fn entry(action: &'static str, path: &[u8]) -> impl Fn(io::Error) -> SettleError {
    let path = shown(path);
    move |source| SettleError::Entry {
        action,
        path: path.clone(),
        source,
    }
}

/// Hides everything in the root directory of a layer below that this layer does not have itself.
/// Overlayfs merges the roots of all layers, whatever they are marked with.
fn hide_all(own: &Root, below: &Root) -> io::Result<()> {
    let root = Dir {
        fd: own.open_plain(b"")?,
        path: CleanPath::new(),
    };
    keeping_time(&root.fd, || {
        for (name, kind) in tree::children(&below.open_plain(b"")?)? {
            let name = name.to_bytes();
            match inroot::kind_at(&root.fd, name)? {
                None => make_whiteout(&root, name)?,
                Some((FileType::Directory, _)) if kind == FileType::Directory => {
                    xattr::set(inroot::open_dir_at(&root.fd, name)?, OPAQUE, OPAQUE_SET)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    })
}

/// Gives a directory that the archive did not describe the attributes it has further down.
fn inherit(own: &Root, below: &[Root], path: &[u8]) -> io::Result<()> {
    // Something else may have taken its place since; and what is opaque is new here.
    let Ok(dir) = own.open_plain(path) else {
        return Ok(());
    };
    if hides_below(own, path)? {
        return Ok(());
    }
    let Some((layer, FileType::Directory)) = find(below, path)? else {
        return Ok(());
    };
    let source = layer.open_plain(path)?;
    copy::attributes(&source, &dir)
}

/// Makes the hard link `path`; `false` when its target is nowhere.
fn link(
    own: &Root,
    below: &[Root],
    (path, target): (&[u8], &[u8]),
    implicit: &mut Vec<CleanPath>,
    allowed: &mut u64,
) -> io::Result<bool> {
    let (Some((parent, name)), Some((target_parent, target_name))) =
        (inroot::split(path), inroot::split(target))
    else {
        return Ok(false);
    };
    match look(own, target)? {
        Seen::Here(_) => {}
        Seen::Hidden => return Ok(false),
        Seen::Absent => {
            let Some((layer, kind)) = find(below, target)? else {
                return Ok(false);
            };
            let from = layer.open_plain(target_parent)?;
            let into = own.walk(target_parent, &mut |dir: &Dir, name: &[u8]| {
                rustix::fs::mkdirat(&dir.fd, name, Mode::from_raw_mode(0o755))?;
                implicit.push(inroot::join(&dir.path, name));
                Ok(())
            })?;
            let stat = rustix::fs::statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW)?;
            let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            let Some(left) = allowed.checked_sub(bytes) else {
                let text = "copies more from the layers below than the limit";
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
            };
            *allowed = left;
            if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
                return Err(Errno::PERM.into());
            }
            keeping_time(&into.fd, || {
                copy::entry(&from, &into.fd, target_name, &stat)
            })?;
        }
    }
    let from = own.open_plain(target_parent)?;
    let into = own.open_plain(parent)?;
    keeping_time(&into, || {
        Ok(rustix::fs::linkat(
            &from,
            target_name,
            &into,
            name,
            AtFlags::empty(),
        )?)
    })?;
    Ok(true)
}

/// The topmost layer that shows `path`, and what it is there.
fn find<'r>(layers: &'r [Root], path: &[u8]) -> io::Result<Option<(&'r Root, FileType)>> {
    for layer in layers {
        match look(layer, path)? {
            Seen::Here(kind) => return Ok(Some((layer, kind))),
            Seen::Absent => {}
            Seen::Hidden => return Ok(None),
        }
    }
    Ok(None)
}

/// Whether `path` or a directory above it is opaque in this layer.
fn hides_below(layer: &Root, path: &[u8]) -> io::Result<bool> {
    let slashes = path
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'/')
        .map(|(at, _)| at);
    for end in [0].into_iter().chain(slashes).chain([path.len()]) {
        if is_opaque(&layer.open_plain(&path[..end])?)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_opaque(dir: &OwnedFd) -> io::Result<bool> {
    Ok(xattr::get(dir, OPAQUE)?.as_deref() == Some(OPAQUE_SET))
}

fn look(layer: &Root, path: &[u8]) -> io::Result<Seen> {
    let mut here = layer.open_plain(b"")?;
    let mut opaque = is_opaque(&here)?;
    let mut rest = path;
    loop {
        let (name, further) = match rest.iter().position(|b| *b == b'/') {
            Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
            None if rest.is_empty() => (&b"."[..], None),
            None => (rest, None),
        };
        let (kind, stat) = match inroot::kind_at(&here, name)? {
            None if opaque => return Ok(Seen::Hidden),
            None => return Ok(Seen::Absent),
            Some(found) => found,
        };
        let Some(further) = further else {
            let whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
            return Ok(if whiteout {
                Seen::Hidden
            } else {
                Seen::Here(kind)
            });
        };
        if kind != FileType::Directory {
            return Ok(Seen::Hidden);
        }
        here = inroot::open_dir_at(&here, name)?;
        opaque = opaque || is_opaque(&here)?;
        rest = further;
    }
}

/// Runs `work`, which changes a directory, and gives the directory its times back.
fn keeping_time(dir: &OwnedFd, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let before = copy::times(&rustix::fs::fstat(dir)?);
    work()?;
    Ok(rustix::fs::futimens(dir, &before)?)
}
