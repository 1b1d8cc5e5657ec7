//! Open directories of the layer being written, by the name an entry used for them.
//!
//! Archives list the entries of a directory together, so nearly every parent is the one before or
//! near it: it is kept open and costs nothing to find again. Directories that no entry described
//! are made on the way and remembered, for their attributes come from the layers below.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use crate::sys::inroot::{self, CleanPath, Dir, Root};
use crate::sys::overlay::{OPAQUE, OPAQUE_SET};
use crate::sys::xattr;

/// Directories kept open at once.
const OPEN_MAX: usize = 128;

/// The layer's root, its open directories, and the directories nobody described.
pub(super) struct Parents {
    pub(super) root: Root,
    open: HashMap<CleanPath, Rc<Dir>>,
    implicit: BTreeSet<CleanPath>,
    /// Bytes of names remembered so far, to be held against the limit.
    pub(super) implicit_bytes: u64,
}

impl Parents {
    pub(super) fn new(root: Root) -> Self {
        // The root itself counts as undescribed until an entry `./` says otherwise.
        let implicit = BTreeSet::from([CleanPath::new()]);
        Self {
            root,
            open: HashMap::new(),
            implicit,
            implicit_bytes: 0,
        }
    }

    /// The directory an entry goes into, made if need be.
    pub(super) fn get(&mut self, path: &[u8]) -> io::Result<Rc<Dir>> {
        if let Some(dir) = self.open.get(path) {
            return Ok(Rc::clone(dir));
        }
        let dir = match self.root.open_plain(path) {
            Ok(fd) => Dir {
                fd,
                path: path.to_vec(),
            },
            Err(error @ (Errno::NOENT | Errno::LOOP | Errno::NOTDIR)) => {
                if error == Errno::NOTDIR {
                    self.clear_whiteouts(path)?;
                }
                let (implicit, bytes) = (&mut self.implicit, &mut self.implicit_bytes);
                self.root.walk(path, &mut |dir, name| {
                    make_plain(dir, name)?;
                    let path = inroot::join(&dir.path, name);
                    *bytes += path.len() as u64;
                    implicit.insert(path);
                    Ok(())
                })?
            }
            Err(other) => return Err(other.into()),
        };
        Ok(self.keep(path.to_vec(), dir))
    }

    /// Looks a directory up without making anything; `None` when it does not exist.
    pub(super) fn find(&mut self, path: &[u8]) -> io::Result<Option<Rc<Dir>>> {
        if let Some(dir) = self.open.get(path) {
            return Ok(Some(Rc::clone(dir)));
        }
        if let Ok(fd) = self.root.open_plain(path) {
            let path = path.to_vec();
            return Ok(Some(self.keep(path.clone(), Dir { fd, path })));
        }
        match self.root.walk(path, &mut |_, _| Err(Errno::NOENT.into())) {
            Ok(dir) => Ok(Some(self.keep(path.to_vec(), dir))),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A directory that an entry has just described.
    pub(super) fn described(&mut self, path: CleanPath, dir: Dir) -> Rc<Dir> {
        self.implicit.remove(&dir.path);
        self.keep(path, dir)
    }

    /// Forgets what is open: a directory or a symlink has gone, and names may lead elsewhere now.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }

    /// The directories that got no description, parents before children.
    pub(super) fn into_implicit(self) -> Vec<CleanPath> {
        self.implicit.into_iter().collect()
    }

    fn keep(&mut self, path: CleanPath, dir: Dir) -> Rc<Dir> {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        let dir = Rc::new(dir);
        self.open.insert(path, Rc::clone(&dir));
        dir
    }

    /// Turns a whiteout in the way of `path` into an opaque directory: the archive deletes what was
    /// there below and then puts something new in its place.
    fn clear_whiteouts(&mut self, path: &[u8]) -> io::Result<()> {
        let slashes = path
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(at, _)| at);
        for end in slashes.chain([path.len()]) {
            let Some((parent, name)) = inroot::split(&path[..end]) else {
                break;
            };
            let Some(dir) = self.find(parent)? else { break };
            if let Some((FileType::CharacterDevice, stat)) = inroot::kind_at(&dir.fd, name)?
                && stat.st_rdev == 0
            {
                rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty())?;
                make_plain(&dir, name)?;
                xattr::set(inroot::open_dir_at(&dir.fd, name)?, OPAQUE, OPAQUE_SET)?;
                self.implicit.insert(inroot::join(&dir.path, name));
                break;
            }
        }
        Ok(())
    }
}

/// A directory that nobody described, readable for all whatever the daemon's umask.
fn make_plain(dir: &Dir, name: &[u8]) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(&dir.fd, name, mode)?;
    rustix::fs::chmodat(&dir.fd, name, mode, AtFlags::empty())
}
