//! Writing the entries of one layer below its directory, as overlayfs wants them.
//!
//! Every name is made by its last component in an open directory of the layer; no path that a
//! stranger wrote ever reaches the kernel. Whiteouts become what overlayfs reads (image-spec,
//! layer, "Whiteouts"; kernel overlayfs.rst): a character device 0/0, or an opaque directory.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::attributes::{attributes, attributes_at, owner, timestamps};
use super::contents::Contents;
use super::devices::{self, Verdict};
use super::entries::{Entries, Entry, Kind};
use super::error::{UnpackError, shown};
use super::parents::Parents;
use super::{Limits, numbers::Time};
use crate::sys::inroot::{self, CleanPath, Dir, Root};
use crate::sys::overlay::{OPAQUE, OPAQUE_SET};
use crate::sys::{tree, xattr};

/// Prefix of a name that deletes (image-spec, layer).
const WHITEOUT: &[u8] = b".wh.";
/// The name that empties its directory.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Prefix of other names that only aufs understood.
const AUFS: &[u8] = b".wh..wh.";

/// What remains to be done when the layers below are there.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    /// Directories that the archive does not describe, parents first.
    pub(crate) implicit: Vec<CleanPath>,
    /// Hard links whose target must be in a layer below: name and target, in archive order.
    pub(crate) links: Vec<(CleanPath, CleanPath)>,
    /// How many bytes on disk may be copied for them.
    pub(crate) linked_bytes: u64,
    /// Whether the layer empties its root directory, which overlayfs merges all the same.
    pub(crate) empties_root: bool,
}

/// Writes one layer.
pub(super) struct Writer {
    parents: Parents,
    limits: Limits,
    entries: u64,
    /// Bytes of all files so far, holes included.
    file_bytes: u64,
    /// Bytes of names kept until the end.
    kept_bytes: u64,
    empties_root: bool,
    times: Vec<(CleanPath, Time)>,
    links: BTreeMap<CleanPath, (u64, CleanPath)>,
    contents: Contents,
}

impl Writer {
    pub(super) fn new(root: Root, limits: Limits) -> Self {
        Self {
            parents: Parents::new(root),
            limits,
            entries: 0,
            file_bytes: 0,
            kept_bytes: 0,
            empties_root: false,
            times: Vec::new(),
            links: BTreeMap::new(),
            contents: Contents::default(),
        }
    }

    /// Writes one entry with its data.
    pub(super) fn write<R: BufRead>(
        &mut self,
        entry: &Entry,
        data: &mut Entries<R>,
    ) -> Result<(), UnpackError> {
        let path = self.admit(entry)?;
        let Some((parent, name)) = inroot::split(&path) else {
            return self.root_entry(entry);
        };
        if is_of_aufs(&path) {
            return Ok(());
        }
        let failed = |action| {
            move |source| UnpackError::Entry {
                entry: shown(&entry.path),
                action,
                source,
            }
        };
        let dir = self
            .parents
            .get(parent)
            .map_err(failed("making the directory of"))?;
        if name == OPAQUE_WHITEOUT {
            self.empties_root |= dir.path.is_empty();
            return xattr::set(&dir.fd, OPAQUE, OPAQUE_SET)
                .map_err(failed("emptying the directory of"));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                let problem = "hides a name that cannot exist";
                return Err(UnpackError::Name {
                    entry: shown(&entry.path),
                    problem,
                });
            }
            return self.whiteout(&dir, hidden).map_err(failed("hiding"));
        }
        if !self.links.is_empty() {
            self.links.remove(&inroot::join(&dir.path, name));
        }
        match entry.kind {
            Kind::Directory => self.directory(entry, &path, &dir, name),
            Kind::File => self.file(entry, &dir, name, data),
            Kind::HardLink => self.hard_link(entry, &dir, name),
            Kind::Symlink => {
                let target = entry.link.as_slice();
                self.place(&dir, name, &|| rustix::fs::symlinkat(target, &dir.fd, name))
                    .map_err(failed("making symlink"))?;
                attributes_at(&dir, name, entry).map_err(failed("setting attributes of"))
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.node(entry, &dir, name),
        }
    }

    fn node(&mut self, entry: &Entry, dir: &Dir, name: &[u8]) -> Result<(), UnpackError> {
        let failed = |action| {
            move |source| UnpackError::Entry {
                entry: shown(&entry.path),
                action,
                source,
            }
        };
        match devices::verdict(entry, self.limits.all_devices) {
            Verdict::Make => {}
            Verdict::Hide => {
                return self
                    .place(dir, name, &|| make_whiteout(dir, name))
                    .map_err(failed("leaving out device node"));
            }
            Verdict::Refuse => {
                return Err(UnpackError::Name {
                    entry: shown(&entry.path),
                    problem: "is the character device 0/0, a deletion in disguise",
                });
            }
        }
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let mode = Mode::from_raw_mode(entry.mode);
        self.place(dir, name, &|| {
            rustix::fs::mknodat(&dir.fd, name, kind, mode, device)
        })
        .map_err(failed("making node"))?;
        attributes_at(dir, name, entry).map_err(failed("setting attributes of"))
    }

    /// Sets what had to wait until every directory was full.
    pub(super) fn finish(self) -> Result<(Unsettled, Contents), UnpackError> {
        for (path, time) in &self.times {
            match self.parents.root.open_plain(path) {
                Ok(dir) => rustix::fs::futimens(&dir, &timestamps(*time)).map_err(|errno| {
                    let action = "setting the time of";
                    UnpackError::Entry {
                        entry: shown(path),
                        action,
                        source: errno.into(),
                    }
                })?,
                // A later entry took the directory's place.
                Err(_) => continue,
            }
        }
        let mut links: Vec<_> = self.links.into_iter().collect();
        links.sort_by_key(|(_, (order, _))| *order);
        let links = links
            .into_iter()
            .map(|(path, (_, target))| (path, target))
            .collect();
        let unsettled = Unsettled {
            implicit: self.parents.into_implicit(),
            links,
            linked_bytes: self.limits.linked_bytes,
            empties_root: self.empties_root,
        };
        Ok((unsettled, self.contents))
    }

    /// Holds an entry against the limits, and gives its clean path.
    fn admit(&mut self, entry: &Entry) -> Result<CleanPath, UnpackError> {
        self.entries += 1;
        let limits = &self.limits;
        let over = |what, limit| UnpackError::Limit {
            entry: shown(&entry.path),
            what,
            limit,
        };
        if self.entries > limits.entries {
            return Err(over("entries", limits.entries));
        }
        if entry.path.len().max(entry.link.len()) as u64 > limits.path_bytes {
            return Err(over("bytes of path", limits.path_bytes));
        }
        if entry.xattrs.len() as u64 > limits.xattrs {
            return Err(over("extended attributes", limits.xattrs));
        }
        self.file_bytes = self.file_bytes.saturating_add(entry.size);
        if self.file_bytes > limits.unpacked_bytes {
            return Err(over("bytes of files", limits.unpacked_bytes));
        }
        if self.parents.root.steps() > limits.lookups {
            return Err(over("names behind symlinks", limits.lookups));
        }
        if self.kept_bytes + self.parents.implicit_bytes > limits.kept_name_bytes {
            return Err(over("bytes of directory names", limits.kept_name_bytes));
        }
        let name = |problem| UnpackError::Name {
            entry: shown(&entry.path),
            problem,
        };
        let path = inroot::clean(&entry.path)
            .ok_or_else(|| name("leads out of the layer, or has an impossible name"))?;
        let depth = path.iter().filter(|b| **b == b'/').count() as u64 + 1;
        if depth > limits.depth {
            return Err(over("levels of directories", limits.depth));
        }
        if owner(entry).is_none() {
            return Err(name("has an owner outside 0 to 4294967294"));
        }
        Ok(path)
    }

    /// The entry `./`: the layer's own root directory.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let failed = |action| {
            move |source| UnpackError::Entry {
                entry: shown(&entry.path),
                action,
                source,
            }
        };
        if entry.kind != Kind::Directory {
            let problem = "would replace the root directory";
            return Err(UnpackError::Name {
                entry: shown(&entry.path),
                problem,
            });
        }
        let dir = self.parents.get(b"").map_err(failed("opening"))?;
        attributes(&dir.fd, entry, false).map_err(failed("setting attributes of"))?;
        self.times.push((CleanPath::new(), entry.mtime));
        let fd = dir.fd.try_clone().map_err(failed("opening"))?;
        self.parents.described(
            CleanPath::new(),
            Dir {
                fd,
                path: CleanPath::new(),
            },
        );
        Ok(())
    }

    fn directory(
        &mut self,
        entry: &Entry,
        path: &[u8],
        dir: &Dir,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let failed = |action| {
            move |source| UnpackError::Entry {
                entry: shown(&entry.path),
                action,
                source,
            }
        };
        let made = rustix::fs::mkdirat(&dir.fd, name, Mode::RWXU);
        let replaced = match made {
            Ok(()) => false,
            // What is a directory already keeps its contents; anything else makes room.
            Err(Errno::EXIST) => self
                .make_room_for_directory(dir, name)
                .map_err(failed("replacing"))?,
            Err(errno) => return Err(failed("making directory")(errno.into())),
        };
        let fd = inroot::open_dir_at(&dir.fd, name)
            .map_err(|errno| failed("opening directory")(errno.into()))?;
        if replaced {
            xattr::set(&fd, OPAQUE, OPAQUE_SET).map_err(failed("emptying"))?;
        }
        attributes(&fd, entry, false).map_err(failed("setting attributes of"))?;
        let real = inroot::join(&dir.path, name);
        self.kept_bytes += real.len() as u64;
        self.times.push((real.clone(), entry.mtime));
        self.parents
            .described(path.to_vec(), Dir { fd, path: real });
        Ok(())
    }

    /// Whether something other than a directory had to go: then what layers below have at this
    /// place was hidden by it and stays hidden.
    fn make_room_for_directory(&mut self, dir: &Dir, name: &[u8]) -> io::Result<bool> {
        match inroot::kind_at(&dir.fd, name)? {
            Some((FileType::Directory, _)) => Ok(false),
            _ => {
                self.remove(dir, name)?;
                rustix::fs::mkdirat(&dir.fd, name, Mode::RWXU)?;
                Ok(true)
            }
        }
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        dir: &Dir,
        name: &[u8],
        data: &mut Entries<R>,
    ) -> Result<(), UnpackError> {
        let failed = |action| {
            move |source| UnpackError::Entry {
                entry: shown(&entry.path),
                action,
                source,
            }
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&dir.fd, name, flags, Mode::RUSR | Mode::WUSR);
        let file = self
            .place(dir, name, &open)
            .map_err(failed("making file"))?;
        let mut hasher = Xxh3::new();
        match &entry.extents {
            None => {
                Self::fill(entry, &file, data, (0, entry.size), &mut hasher)?;
                let known = self.contents.written(&file, &hasher);
                known.map_err(|errno| failed("reading the number of")(errno.into()))?;
            }
            Some(extents) => {
                for extent in extents {
                    let place = (extent.offset, extent.length);
                    Self::fill(entry, &file, data, place, &mut hasher)?;
                }
                rustix::fs::ftruncate(&file, entry.size)
                    .map_err(|errno| failed("sizing")(errno.into()))?;
            }
        }
        attributes(&file, entry, true).map_err(failed("setting attributes of"))
    }

    /// Writes `length` bytes of data at `offset`, past `hasher`.
    fn fill<R: BufRead>(
        entry: &Entry,
        file: &OwnedFd,
        data: &mut Entries<R>,
        (mut offset, length): (u64, u64),
        hasher: &mut Xxh3,
    ) -> Result<(), UnpackError> {
        let mut left = length;
        while left > 0 {
            let chunk = data.data(left).map_err(|source| {
                let after = shown(&entry.path);
                UnpackError::Archive { after, source }
            })?;
            if chunk.is_empty() {
                let source = super::ArchiveError::Read(io::ErrorKind::UnexpectedEof.into());
                return Err(UnpackError::Archive {
                    after: shown(&entry.path),
                    source,
                });
            }
            let written = rustix::io::pwrite(file, chunk, offset).map_err(|errno| {
                let (entry, source) = (shown(&entry.path), errno.into());
                UnpackError::Entry {
                    entry,
                    action: "writing",
                    source,
                }
            })?;
            hasher.update(chunk.get(..written).unwrap_or(chunk));
            data.consume(written);
            offset += written as u64;
            left -= written as u64;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, dir: &Dir, name: &[u8]) -> Result<(), UnpackError> {
        let failed = |action| {
            move |source| UnpackError::Entry {
                entry: shown(&entry.path),
                action,
                source,
            }
        };
        let target = inroot::clean(&entry.link).filter(|target| !target.is_empty());
        let Some(target) = target else {
            let problem = "is a hard link that leads out of the layer";
            return Err(UnpackError::Name {
                entry: shown(&entry.path),
                problem,
            });
        };
        let own = inroot::join(&dir.path, name);
        let Some((target_parent, target_name)) = inroot::split(&target) else {
            return Ok(());
        };
        let found = self.parents.find(target_parent);
        let found = match found {
            Ok(Some(target_dir)) => {
                match inroot::kind_at(&target_dir.fd, target_name).map_err(failed("linking"))? {
                    // Linking to a deletion would delete once more; there is no such file.
                    Some((FileType::CharacterDevice, stat)) if stat.st_rdev == 0 => None,
                    Some(_) => Some(target_dir),
                    None => None,
                }
            }
            Ok(None) => None,
            Err(error) => return Err(failed("finding the target of")(error)),
        };
        let Some(target_dir) = found else {
            // Perhaps a layer below has it; that is known when the layers meet.
            self.kept_bytes += (own.len() + target.len()) as u64;
            self.remove(dir, name).map_err(failed("replacing"))?;
            self.links.insert(own, (self.entries, target));
            return Ok(());
        };
        if inroot::join(&target_dir.path, target_name) == own {
            return Ok(());
        }
        let flags = AtFlags::empty();
        self.place(dir, name, &|| {
            rustix::fs::linkat(&target_dir.fd, target_name, &dir.fd, name, flags)
        })
        .map_err(failed("linking"))
    }

    /// Hides a name of the layers below, but nothing that this layer itself has.
    fn whiteout(&mut self, dir: &Dir, name: &[u8]) -> io::Result<()> {
        // A hard link that waits for the layers below is an entry of this layer, too.
        if self.links.contains_key(&inroot::join(&dir.path, name)) {
            return Ok(());
        }
        match make_whiteout(dir, name) {
            Err(Errno::EXIST) => {
                // An entry of this layer outlives the deletion (image-spec, layer: whiteouts apply
                // to layers below only). A directory must still hide what is below it.
                if let Ok(own) = inroot::open_dir_at(&dir.fd, name) {
                    xattr::set(&own, OPAQUE, OPAQUE_SET)?;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Makes something that must not exist yet; what is in its place goes first.
    fn place<T>(
        &mut self,
        dir: &Dir,
        name: &[u8],
        make: &dyn Fn() -> Result<T, Errno>,
    ) -> io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(dir, name)?;
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    fn remove(&mut self, dir: &Dir, name: &[u8]) -> io::Result<()> {
        self.parents.forget();
        self.contents.forget();
        tree::remove_tree_at(&dir.fd, name)
    }
}

/// The character device that overlayfs reads as "nothing here".
pub(crate) fn make_whiteout(dir: &Dir, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(&dir.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Whether a path is, or is below, a name that only aufs understood.
fn is_of_aufs(path: &[u8]) -> bool {
    let mut parts = path.split(|b| *b == b'/').rev();
    parts
        .next()
        .is_some_and(|name| name.starts_with(AUFS) && name != OPAQUE_WHITEOUT)
        || parts.any(|name| name.starts_with(AUFS))
}
