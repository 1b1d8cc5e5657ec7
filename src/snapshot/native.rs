//! Layers put together as a copy, for file systems that overlayfs does not take.
//!
//! Bottom layer first, each over what is there: deletions are carried out, not copied. Works by
//! open directories below two roots and single names: no symlink of an image leads anywhere.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Stat, Timestamps};
use rustix::io::Errno;

use super::{SnapshotError, failed};
use crate::sys::inroot::{self, CleanPath, Root};
use crate::sys::overlay::{OPAQUE, OPAQUE_SET};
use crate::sys::{copy, tree, xattr};

/// Fills the empty directory `into` with what an overlay of `lower`, topmost first, would show.
pub(super) fn copy(into: &Path, lower: &[PathBuf]) -> Result<(), SnapshotError> {
    let target = Root::open(into).map_err(failed("opening", into))?;
    let mut times = Vec::new();
    for path in lower.iter().rev() {
        let layer = Root::open(path).map_err(failed("opening", path))?;
        Layer {
            from: &layer,
            into: &target,
            links: HashMap::new(),
        }
        .apply(&mut times)
        .map_err(failed("copying", path))?;
    }
    // Once nothing changes any more; what has gone since has no time.
    for (path, time) in times {
        let set = match target.open_plain(&path) {
            Ok(dir) => rustix::fs::futimens(dir, &time),
            Err(_) => continue,
        };
        set.map_err(|errno| failed("setting times in", into)(errno.into()))?;
    }
    Ok(())
}

struct Layer<'r> {
    from: &'r Root,
    into: &'r Root,
    /// Files of this layer with several names, by inode: where the first of them has been made.
    links: HashMap<u64, CleanPath>,
}

impl Layer<'_> {
    fn apply(mut self, times: &mut Vec<(CleanPath, Timestamps)>) -> io::Result<()> {
        let mut todo = vec![CleanPath::new()];
        while let Some(path) = todo.pop() {
            let from = self.from.open_plain(&path)?;
            let into = self.into.open_plain(&path)?;
            if xattr::get(&from, OPAQUE)?.as_deref() == Some(OPAQUE_SET) {
                for (name, _) in tree::children(&into)? {
                    tree::remove_tree_at(&into, name.to_bytes())?;
                }
            }
            for (name, _) in tree::children(&from)? {
                let name = name.to_bytes();
                let Some((kind, stat)) = inroot::kind_at(&from, name)? else {
                    continue;
                };
                let whole = inroot::join(&path, name);
                if kind == FileType::Directory {
                    make_directory(&into, name)?;
                    todo.push(whole);
                    continue;
                }
                tree::remove_tree_at(&into, name)?;
                if kind != FileType::CharacterDevice || stat.st_rdev != 0 {
                    self.entry(&from, &into, whole, &stat)?;
                }
            }
            // The root's own attributes are those of any container, as with overlayfs.
            if !path.is_empty() {
                copy::attributes(&from, &into)?;
                times.push((path, copy::times(&rustix::fs::fstat(&from)?)));
            }
        }
        Ok(())
    }

    /// Copies what is no directory, or links it to the copy it already has.
    fn entry(
        &mut self,
        from: &OwnedFd,
        into: &OwnedFd,
        whole: CleanPath,
        stat: &Stat,
    ) -> io::Result<()> {
        let Some((_, name)) = inroot::split(&whole) else {
            return Err(Errno::INVAL.into());
        };
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&stat.st_ino)
            && let Some((parent, first)) = inroot::split(first)
        {
            let parent = self.into.open_plain(parent)?;
            return Ok(rustix::fs::linkat(
                parent,
                first,
                into,
                name,
                AtFlags::empty(),
            )?);
        }
        copy::entry(from, into, name, stat)?;
        if stat.st_nlink > 1 {
            self.links.insert(stat.st_ino, whole);
        }
        Ok(())
    }
}

/// A directory that is there keeps what is in it; anything else makes room.
fn make_directory(into: &OwnedFd, name: &[u8]) -> io::Result<()> {
    if let Some((kind, _)) = inroot::kind_at(into, name)?
        && kind != FileType::Directory
    {
        tree::remove_tree_at(into, name)?;
    }
    match rustix::fs::mkdirat(into, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(other) => Err(other.into()),
    }
}
