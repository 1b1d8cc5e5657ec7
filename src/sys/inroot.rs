//! Finding and making directories below a root that a stranger fills with symlinks.
//!
//! Two ways to walk. The fast one is a single `openat2` that refuses symlinks, mount points and
//! anything above the root. The careful one opens component by component, never letting the kernel
//! follow a link: it reads each link itself and starts again from the root for an absolute one, so
//! that no path can leave the root, whatever the links say. Neither trusts a name: callers pass
//! paths that [`clean`] made. Nothing here knows what the tree is for.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As many links as the kernel follows in one walk (path_resolution(7)).
const MAX_LINKS: usize = 40;

const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A path below a root, without `.`, `..`, empty components, or a leading slash; empty is the root.
pub type CleanPath = Vec<u8>;

/// Makes `path` relative to the root it will be used under: `/a//./b/../c` is `a/c`.
///
/// `None` when `..` leads above the root, or a component is longer than 255 bytes or holds a NUL.
pub fn clean(path: &[u8]) -> Option<CleanPath> {
    let mut out: CleanPath = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if out.is_empty() => return None,
            b".." => {
                let cut = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(cut);
            }
            name if name.len() > 255 || name.contains(&0) => return None,
            name => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(name);
            }
        }
    }
    Some(out)
}

/// Splits a clean path into its directory and last name; `None` for the root.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// An open directory below a [`Root`] and where it really is.
#[derive(Debug)]
pub struct Dir {
    /// Open for reading.
    pub fd: OwnedFd,
    /// The clean path without symlinks.
    pub path: CleanPath,
}

/// A directory that nothing below it can point out of.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// Components that walks have gone through.
    steps: AtomicU64,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Root {
    /// Opens `path`, a directory of ours.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
            steps: AtomicU64::new(0),
        })
    }

    /// How many components [`Root::walk`] has gone through so far: what symlinks have cost.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Opens the directory at a clean path that has no symlink in it.
    ///
    /// # Errors
    /// openat2(2)'s: `ELOOP` for a symlink on the way, `ENOTDIR` for one at the end, `EXDEV` for a
    /// mount point, `ENOENT`, `ENOTDIR`.
    pub fn open_plain(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_below(path, OPEN_DIR)
    }

    /// Opens what is at a clean path, of any kind, without following a symlink anywhere.
    ///
    /// # Errors
    /// As [`Root::open_plain`].
    pub fn open_below(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC;
        // EAGAIN: the kernel saw a rename elsewhere and could not prove that `..` stayed below.
        for _ in 0..64 {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens the directory at a clean path, following symlinks inside the root.
    ///
    /// `missing` is called for each component that does not exist, with its directory and name; it
    /// either makes a directory there or gives an error to stop with. A symlink to a place that
    /// does not exist leads to `missing` too, at the place it points to.
    ///
    /// # Errors
    /// `ELOOP` after 40 links, `ENOTDIR` for a component that is neither directory nor symlink,
    /// and whatever `missing` gives.
    pub fn walk(
        &self,
        path: &[u8],
        missing: &mut dyn FnMut(&Dir, &[u8]) -> io::Result<()>,
    ) -> io::Result<Dir> {
        let mut stack: Vec<Dir> = Vec::new();
        let mut here = Dir {
            fd: self.open_plain(b"")?,
            path: CleanPath::new(),
        };
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            self.steps.fetch_add(1, Ordering::Relaxed);
            if name == b".." {
                if let Some(parent) = stack.pop() {
                    here = parent;
                }
                continue;
            }
            let next = match open_dir_at(&here.fd, &name) {
                Err(Errno::NOENT) => {
                    missing(&here, &name)?;
                    open_dir_at(&here.fd, &name)?
                }
                // A symlink is ELOOP or ENOTDIR, by kernel version and flags.
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = read_link_at(&here.fd, &name)?;
                    if target.first() == Some(&b'/') {
                        stack.clear();
                        here = Dir {
                            fd: self.open_plain(b"")?,
                            path: CleanPath::new(),
                        };
                    }
                    todo.extend(components(&target));
                    continue;
                }
                other => other?,
            };
            let below = Dir {
                fd: next,
                path: join(&here.path, &name),
            };
            stack.push(std::mem::replace(&mut here, below));
        }
        Ok(here)
    }
}

/// Appends a name to a clean path.
pub fn join(path: &[u8], name: &[u8]) -> CleanPath {
    let mut out = CleanPath::with_capacity(path.len() + 1 + name.len());
    out.extend_from_slice(path);
    if !path.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(name);
    out
}

/// Opens a directory by its single name, following nothing.
///
/// # Errors
/// openat(2)'s; `ENOTDIR` for what is not a directory, symlinks included.
pub fn open_dir_at(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, OsStr::from_bytes(name), OPEN_DIR, Mode::empty())
}

/// What kind of thing a single name is; `None` when there is nothing.
///
/// # Errors
/// fstatat(2)'s but `ENOENT`.
pub fn kind_at(dir: impl AsFd, name: &[u8]) -> io::Result<Option<(FileType, rustix::fs::Stat)>> {
    match rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

fn read_link_at(dir: &OwnedFd, name: &[u8]) -> io::Result<Vec<u8>> {
    match rustix::fs::readlinkat(dir, name, Vec::new()) {
        Ok(target) => Ok(target.into_bytes()),
        // EINVAL: not a symlink, so it was the "not a directory" that brought us here.
        Err(Errno::INVAL) => Err(Errno::NOTDIR.into()),
        Err(other) => Err(other.into()),
    }
}

/// Components in reverse, ready to be popped.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path
        .split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    let mut parts: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn refuse(_: &Dir, _: &[u8]) -> io::Result<()> {
        Err(Errno::NOENT.into())
    }

    #[test]
    fn clean_paths_have_no_way_up() {
        assert_eq!(clean(b"/a//./b/../c/").unwrap(), b"a/c");
        assert_eq!(clean(b"./").unwrap(), b"");
        assert_eq!(clean(b"a/..").unwrap(), b"");
        for bad in [
            &b".."[..],
            b"../a",
            b"a/../../b",
            b"/..",
            b"a\0b",
            &[b'x'; 256],
        ] {
            assert!(clean(bad).is_none(), "{bad:?}");
        }
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b""), None);
    }

    proptest! {
        #[test]
        fn whatever_is_cleaned_stays_below(path in "[a./]{0,24}") {
            if let Some(clean) = clean(path.as_bytes()) {
                prop_assert!(clean.is_empty() || !clean.split(|b| *b == b'/')
                    .any(|c| c.is_empty() || c == b"." || c == b".."));
            }
        }
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let tmp = tempfile::tempdir().unwrap();
        let outside = tmp.path().join("etc");
        let inside = tmp.path().join("root");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(inside.join("usr/lib")).unwrap();
        symlink("usr/lib", inside.join("lib")).unwrap();
        symlink("/usr/lib", inside.join("abs")).unwrap();
        symlink("../../../etc", inside.join("usr/up")).unwrap();
        symlink(&outside, inside.join("out")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        std::fs::write(inside.join("file"), "").unwrap();
        let root = Root::open(&inside).unwrap();
        for path in [&b"lib"[..], b"abs", b"usr/../lib"] {
            assert_eq!(root.walk(path, &mut refuse).unwrap().path, b"usr/lib");
        }
        assert_eq!(root.open_plain(b"lib").unwrap_err(), Errno::NOTDIR);
        assert_eq!(root.open_plain(b"lib/x").unwrap_err(), Errno::LOOP);
        for (path, errno) in [
            (&b"usr/up"[..], Errno::NOENT),
            (b"out", Errno::NOENT),
            (b"loop", Errno::LOOP),
            (b"file", Errno::NOTDIR),
            (b"file/x", Errno::NOTDIR),
        ] {
            let error = root.walk(path, &mut refuse).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{path:?}");
        }
    }

    #[test]
    fn missing_directories_are_made_where_a_dangling_link_points() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("var")).unwrap();
        symlink("/run/x", tmp.path().join("var/run")).unwrap();
        let root = Root::open(tmp.path()).unwrap();
        let mut made = Vec::new();
        let dir = root
            .walk(b"var/run/y", &mut |dir, name| {
                made.push(join(&dir.path, name));
                Ok(rustix::fs::mkdirat(
                    &dir.fd,
                    name,
                    Mode::from_raw_mode(0o755),
                )?)
            })
            .unwrap();
        assert_eq!(dir.path, b"run/x/y");
        assert_eq!(made, [&b"run"[..], b"run/x", b"run/x/y"]);
        assert!(tmp.path().join("run/x/y").is_dir());
    }
}
