//! Whole directory trees: removing one, counting what it holds, and visiting each entry.
//!
//! All go by open directories and single names, never follow a symlink, and never enter another
//! file system: what is mounted inside a tree is somebody else's and stays.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

/// What a tree takes on its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes; a file with several names counts once.
    pub bytes: u64,
    /// Inodes, directories and the root included.
    pub inodes: u64,
}

/// Directories kept open on the way down; those above are opened again on the way up, so that depth
/// costs neither descriptors nor stack.
const OPEN_MAX: usize = 64;

/// A directory on the way down, and what below it is still to be entered.
struct Frame {
    fd: Option<OwnedFd>,
    id: (u64, u64),
    name: CString,
    dirs: Vec<CString>,
}

/// The way from the root of a walk to where it is now.
struct Trail(Vec<Frame>);

impl Trail {
    fn enter(&mut self, fd: OwnedFd, name: CString) -> io::Result<()> {
        let stat = rustix::fs::fstat(&fd)?;
        if let Some(far) = self.0.len().checked_sub(OPEN_MAX) {
            self.0[far].fd = None;
        }
        self.0.push(Frame {
            fd: Some(fd),
            id: (stat.st_dev, stat.st_ino),
            name,
            dirs: Vec::new(),
        });
        Ok(())
    }

    /// Goes up one directory and gives the name of the one left.
    fn leave(&mut self) -> io::Result<Option<CString>> {
        let Some(left) = self.0.pop() else {
            return Ok(None);
        };
        if let Some(parent) = self.0.last_mut()
            && parent.fd.is_none()
        {
            let Some(child) = left.fd else {
                return Err(Errno::BADF.into());
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&child, "..", flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&fd)?;
            // Somebody moved it meanwhile: what is above now is not what we came through.
            if (stat.st_dev, stat.st_ino) != parent.id {
                return Err(Errno::STALE.into());
            }
            parent.fd = Some(fd);
        }
        Ok(Some(left.name))
    }

    /// Where the walk is: the open directory, and the names below it still to be entered.
    fn here(&mut self) -> Option<(&OwnedFd, &mut Vec<CString>)> {
        let frame = self.0.last_mut()?;
        Some((frame.fd.as_ref()?, &mut frame.dirs))
    }
}

/// Removes `name` in `dir` and everything below it. What is already gone is no error.
///
/// # Errors
/// The first one met; the walk goes on past it, so that as little as possible is left.
/// `EBUSY` or `EXDEV` means that something is mounted inside.
pub fn remove_tree_at(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(other) => return Err(other.into()),
    }
    let mut first_error: Option<io::Error> = None;
    let mut trail = Trail(Vec::new());
    trail.enter(open_same_mount(&dir, name)?, CString::new(name)?)?;
    if let Some((fd, dirs)) = trail.here() {
        *dirs = empty_of_files(fd, &mut first_error)?;
    }
    while let Some((here, dirs)) = trail.here() {
        if let Some(child) = dirs.pop() {
            match open_same_mount(here, child.to_bytes()) {
                Ok(fd) => {
                    let below = empty_of_files(&fd, &mut first_error)?;
                    trail.enter(fd, child)?;
                    if let Some((_, dirs)) = trail.here() {
                        *dirs = below;
                    }
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
            continue;
        }
        let Some(left) = trail.leave()? else { break };
        let removed = match trail.here() {
            Some((parent, _)) => rustix::fs::unlinkat(parent, left.as_c_str(), AtFlags::REMOVEDIR),
            None => rustix::fs::unlinkat(&dir, left.as_c_str(), AtFlags::REMOVEDIR),
        };
        if let Err(error) = removed
            && error != Errno::NOENT
        {
            first_error = first_error.or(Some(error.into()));
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Removes the files and the empty directories in `dir`; gives the directories that remain.
fn empty_of_files(dir: &OwnedFd, first_error: &mut Option<io::Error>) -> io::Result<Vec<CString>> {
    let mut dirs = Vec::new();
    for (child, kind) in children(dir)? {
        let flags = match kind {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        match rustix::fs::unlinkat(dir, child.as_c_str(), flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY) => dirs.push(child),
            Err(error) => {
                first_error.get_or_insert(error.into());
            }
        }
    }
    Ok(dirs)
}

/// Removes the tree at `path`, a place of ours.
///
/// # Errors
/// As [`remove_tree_at`].
pub fn remove_tree(path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => remove_tree_at(parent, name.as_bytes()),
        Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Counts the tree at `path`, the root itself included.
///
/// # Errors
/// open(2)'s and stat(2)'s; entries that vanish meanwhile are not counted.
pub fn usage(path: &Path) -> io::Result<Usage> {
    usage_until(path, None)
}

/// The same, given up at a moment: somebody may fill the tree faster than it is counted.
///
/// # Errors
/// As [`usage`], and `TimedOut`.
pub fn usage_until(path: &Path, end: Option<Instant>) -> io::Result<Usage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&root)?;
    let mut total = Usage {
        bytes: blocks(&stat),
        inodes: 1,
    };
    let mut linked: HashSet<u64> = HashSet::new();
    let mut trail = Trail(Vec::new());
    let below = count(&root, &mut total, &mut linked)?;
    trail.enter(root, CString::default())?;
    if let Some((_, dirs)) = trail.here() {
        *dirs = below;
    }
    while let Some((here, dirs)) = trail.here() {
        let Some(child) = dirs.pop() else {
            trail.leave()?;
            continue;
        };
        if end.is_some_and(|end| Instant::now() > end) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match open_same_mount(here, child.to_bytes()) {
            Ok(fd) => {
                let below = count(&fd, &mut total, &mut linked)?;
                trail.enter(fd, child)?;
                if let Some((_, dirs)) = trail.here() {
                    *dirs = below;
                }
            }
            Err(error) if is_elsewhere(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// Adds what is directly in `dir` to `total`; gives the directories to enter.
fn count(dir: &OwnedFd, total: &mut Usage, linked: &mut HashSet<u64>) -> io::Result<Vec<CString>> {
    let mut dirs = Vec::new();
    for (child, kind) in children(dir)? {
        let stat = match rustix::fs::statat(dir, child.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(other) => return Err(other.into()),
        };
        if kind != FileType::Directory && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
            continue;
        }
        total.bytes += blocks(&stat);
        total.inodes += 1;
        if kind == FileType::Directory {
            dirs.push(child);
        }
    }
    Ok(dirs)
}

/// An entry of a tree, as a visit meets it.
pub struct Visited<'a> {
    /// Below the root of the walk, without a leading slash; empty is the root itself.
    pub path: &'a [u8],
    /// The open directory that holds it; for the root, the root itself.
    pub dir: &'a OwnedFd,
    /// Its name in there; empty for the root.
    pub name: &'a [u8],
    /// What the kernel says of it, symlinks not followed.
    pub stat: rustix::fs::Stat,
}

/// Visits the tree at `path`: the root, then each directory's entries in the order of the bytes of
/// their names, each followed by what is below it. So the paths come sorted, if a slash counts as
/// less than any other byte. Directories of other file systems are visited and not entered.
///
/// # Errors
/// open(2)'s and stat(2)'s, also of entries that vanish meanwhile, and what `visit` gives.
pub fn walk(path: &Path, visit: &mut dyn FnMut(&Visited<'_>) -> io::Result<()>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    visit(&Visited {
        path: b"",
        dir: &root,
        name: b"",
        stat: rustix::fs::fstat(&root)?,
    })?;
    let mut trail = Trail(Vec::new());
    let mut path: Vec<u8> = Vec::new();
    let below = names_backwards(&root)?;
    trail.enter(root, CString::default())?;
    if let Some((_, names)) = trail.here() {
        *names = below;
    }
    while let Some((here, names)) = trail.here() {
        let Some(child) = names.pop() else {
            trail.leave()?;
            path.truncate(path.iter().rposition(|b| *b == b'/').unwrap_or(0));
            continue;
        };
        let stat = rustix::fs::statat(here, child.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(child.as_bytes());
        visit(&Visited {
            path: &path,
            dir: here,
            name: child.as_bytes(),
            stat,
        })?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match open_same_mount(here, child.as_bytes()) {
                Ok(fd) => {
                    let below = names_backwards(&fd)?;
                    trail.enter(fd, child)?;
                    if let Some((_, names)) = trail.here() {
                        *names = below;
                    }
                    continue;
                }
                Err(error) if is_elsewhere(&error) => {}
                Err(error) => return Err(error),
            }
        }
        path.truncate(length);
    }
    Ok(())
}

/// The names in a directory, the first one last.
fn names_backwards(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names: Vec<CString> = children(dir)?.into_iter().map(|(name, _)| name).collect();
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok(names)
}

fn is_elsewhere(error: &io::Error) -> bool {
    let gone = [Errno::XDEV, Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
    gone.iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn blocks(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

fn open_same_mount(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        dir,
        name,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

/// The names in a directory, from its start, with their kinds.
///
/// # Errors
/// getdents(2)'s.
pub fn children(dir: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        names.push((name.to_owned(), kind));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn removing_a_tree_leaves_what_its_links_point_to() {
        let tmp = tempfile::tempdir().unwrap();
        let tree = tmp.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir_all(tree.join("a/empty")).unwrap();
        fs::create_dir(tmp.path().join("keep")).unwrap();
        fs::write(tmp.path().join("keep/file"), "x").unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        symlink(tmp.path().join("keep"), tree.join("a/link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(tmp.path().join("keep/file").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&tmp.path().join("no/such")).unwrap();
    }

    #[test]
    fn a_deep_tree_goes_too() {
        let tmp = tempfile::tempdir().unwrap();
        let mut fd = Some(rustix::fs::open(tmp.path(), OFlags::RDONLY, Mode::empty()).unwrap());
        for _ in 0..3000 {
            let dir = fd.take().unwrap();
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            fd = Some(rustix::fs::openat(&dir, "d", OFlags::RDONLY, Mode::empty()).unwrap());
        }
        drop(fd);
        remove_tree(&tmp.path().join("d")).unwrap();
        assert!(!tmp.path().join("d").exists());
    }

    #[test]
    fn a_walk_meets_everything_once_and_in_order() {
        let tmp = tempfile::tempdir().unwrap();
        let tree = tmp.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir_all(tree.join("a-b")).unwrap();
        for file in ["a/b/c", "a/z", "a.txt", "b", "a-b/x"] {
            fs::write(tree.join(file), "x").unwrap();
        }
        symlink("a", tree.join("link")).unwrap();
        let mut paths = Vec::new();
        let mut visit = |seen: &Visited<'_>| {
            paths.push(String::from_utf8(seen.path.to_vec()).unwrap());
            Ok(())
        };
        walk(&tree, &mut visit).unwrap();
        let expected = [
            "", "a", "a/b", "a/b/c", "a/z", "a-b", "a-b/x", "a.txt", "b", "link",
        ];
        assert_eq!(paths, expected);
        let by_slash = |path: &String| path.replace('/', "\0");
        assert!(paths.is_sorted_by_key(by_slash));
    }

    #[test]
    fn usage_counts_each_inode_once() {
        let tmp = tempfile::tempdir().unwrap();
        let tree = tmp.path().join("tree");
        fs::create_dir_all(tree.join("d")).unwrap();
        fs::write(tree.join("d/a"), vec![1; 8192]).unwrap();
        fs::hard_link(tree.join("d/a"), tree.join("b")).unwrap();
        fs::File::open(tree.join("b")).unwrap().sync_all().unwrap();
        let usage = usage(&tree).unwrap();
        assert_eq!(usage.inodes, 3);
        assert!((8192..64 * 1024).contains(&usage.bytes), "{usage:?}");
    }
}
