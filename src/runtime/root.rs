//! The container's root as the child sees it: every path a plan names is resolved inside it.
//!
//! The kernel does the confinement (openat2(2) with RESOLVE_IN_ROOT): `..`, absolute symlinks and
//! races with other processes all end inside, and magic links (`/proc/self/fd/…`), which could lead
//! anywhere, are not followed. What is missing is created one component at a time, through
//! descriptors. By the time this is used the host's tree has been detached as well, so that two
//! walls would have to fall.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, mkdirat, openat,
    openat2, readlinkat,
};
use rustix::io::Errno;

/// Symlinks followed while creating a path; the kernel's own limit (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;
/// Attempts at a lookup that the kernel could not finish because of renames elsewhere.
const RACES_MAX: usize = 64;

/// A descriptor of a container's root directory.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
}

/// What a path should be made to when nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Directory,
    File,
}

impl Root {
    /// The calling process' own root.
    pub(super) fn of_this_process() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: openat(CWD, "/", flags, Mode::empty())?,
        })
    }

    /// A root to resolve in that need not be the process' own.
    pub(super) fn at(directory: OwnedFd) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Opens what `path` leads to.
    pub(super) fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RACES_MAX {
            let flags = flags | OFlags::CLOEXEC;
            match openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// A handle on what `path` leads to, creating it and the directories above it if missing.
    pub(super) fn ensure(&self, path: &str, missing: Missing) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => self.create(path, missing),
            other => other,
        }
    }

    /// A handle on the directory that holds the last component of `path`, and that component.
    pub(super) fn ensure_parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str), Errno> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
        if matches!(name, "" | "." | "..") {
            return Err(Errno::INVAL);
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok((self.ensure(parent, Missing::Directory)?, name))
    }

    /// Whether `fd` is the root directory itself.
    pub(super) fn is(&self, fd: &OwnedFd) -> Result<bool, Errno> {
        let (root, other) = (fstat(&self.directory)?, fstat(fd)?);
        Ok((root.st_dev, root.st_ino) == (other.st_dev, other.st_ino))
    }

    /// The content of a regular file of at most `longest` bytes; empty if there is no file.
    ///
    /// `FBIG` if it is longer, `INVAL` if it is something else (which is not waited for).
    pub(super) fn read_file(&self, path: &str, longest: usize) -> Result<Vec<u8>, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match self.open(path, flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            other => other?,
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let mut content = Vec::new();
        let mut chunk = [0_u8; 8192];
        loop {
            let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut chunk))?;
            if length == 0 {
                return Ok(content);
            }
            content.extend_from_slice(&chunk[..length]);
            if content.len() > longest {
                return Err(Errno::FBIG);
            }
        }
    }

    /// Walks `path`, making what is missing. Symlinks are followed as text, inside the root, even
    /// when they dangle: images link `/etc/resolv.conf` to files that only a booted system has.
    fn create(&self, path: &str, missing: Missing) -> Result<OwnedFd, Errno> {
        let mut ahead: VecDeque<Vec<u8>> = components(path.as_bytes()).collect();
        let mut behind: Vec<OwnedFd> = Vec::new();
        let mut symlinks = 0;
        while let Some(name) = ahead.pop_front() {
            if name == b".." {
                behind.pop();
                continue;
            }
            let here = behind.last().unwrap_or(&self.directory);
            let wanted = if ahead.is_empty() {
                missing
            } else {
                Missing::Directory
            };
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            let found = open_or_make(here, &name, wanted)?;
            match FileType::from_raw_mode(fstat(&found)?.st_mode) {
                FileType::Directory => behind.push(found),
                FileType::Symlink => {
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX || fstatfs(&found)?.f_type == PROC_SUPER_MAGIC {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(&found, c"", Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        behind.clear();
                    }
                    for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        ahead.push_front(component);
                    }
                }
                _ if ahead.is_empty() => return Ok(found),
                _ => return Err(Errno::NOTDIR),
            }
        }
        match behind.pop() {
            Some(directory) => Ok(directory),
            None => self.directory.try_clone().map_err(|_| Errno::MFILE),
        }
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
}

/// A handle on `name` in `directory`, itself and not what it links to.
fn open_or_make(directory: &OwnedFd, name: &CString, wanted: Missing) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let made = match wanted {
        Missing::Directory => mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        Missing::File => {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(directory.as_fd(), name, create, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => openat(directory, name, flags, Mode::empty()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn root(path: &Path) -> Root {
        Root::at(fs::File::open(path).expect("open").into())
    }

    #[test]
    fn missing_directories_and_files_are_made_inside() {
        let directory = tempfile::tempdir().expect("tempdir");
        let root = root(directory.path());
        root.ensure("/a/b/../c/file", Missing::File).expect("made");
        root.ensure("x/y", Missing::Directory).expect("made");
        assert!(directory.path().join("a/c/file").is_file());
        assert!(directory.path().join("x/y").is_dir());
        let (_, name) = root.ensure_parent("/a/new/leaf").expect("made");
        assert_eq!(name, "leaf");
        assert!(directory.path().join("a/new").is_dir());
    }

    #[test]
    fn dangling_and_climbing_links_end_inside() {
        let outside = tempfile::tempdir().expect("tempdir");
        let directory = outside.path().join("root");
        fs::create_dir(&directory).expect("mkdir");
        symlink("/../../../run/stub", directory.join("resolv.conf")).expect("symlink");
        symlink("../..", directory.join("up")).expect("symlink");
        let root = root(&directory);
        root.ensure("/resolv.conf", Missing::File).expect("made");
        root.ensure("/up/up/made", Missing::Directory)
            .expect("made");
        assert!(directory.join("run/stub").is_file());
        assert!(directory.join("made").is_dir());
        assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 1);
    }

    #[test]
    fn loops_and_magic_links_are_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        symlink("loop", directory.path().join("loop")).expect("symlink");
        let inside = root(directory.path());
        let looped = inside.ensure("/loop/x", Missing::File);
        assert_eq!(looped.err(), Some(Errno::LOOP));
        let host = root(Path::new("/"));
        assert_eq!(
            host.open("/proc/self/exe", OFlags::PATH).err(),
            Some(Errno::LOOP)
        );
        let below = host.ensure("/proc/self/exe/x", Missing::File);
        assert!(below.is_err());
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let directory = tempfile::tempdir().expect("tempdir");
        fs::write(directory.path().join("file"), b"0123456789").expect("write");
        let root = root(directory.path());
        assert_eq!(root.read_file("/file", 10).expect("read"), b"0123456789");
        assert_eq!(root.read_file("/file", 9).err(), Some(Errno::FBIG));
        assert_eq!(root.read_file("/", 9).err(), Some(Errno::INVAL));
        assert_eq!(root.read_file("/none", 9).expect("absent"), b"");
    }
}
