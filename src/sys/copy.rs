//! Copying files: contents as shared blocks where the file system has them, else data without its
//! holes; owner, mode, attributes and times; and what has no contents.
//!
//! Attributes by which overlayfs steers are never copied: they say something about the place.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::xattr;

/// Bytes moved in one call.
const CHUNK: usize = 64 << 20;

/// Fills the empty file `to` with what `from` holds. Positions of both change.
///
/// # Errors
/// ioctl_ficlone(2)'s, lseek(2)'s, copy_file_range(2)'s, read(2)'s and write(2)'s, except those by
/// which a file system says that it has no such thing.
pub fn contents(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => return Ok(()),
        Err(errno) if is_missing(errno) => {}
        Err(other) => return Err(other.into()),
    }
    let size = u64::try_from(rustix::fs::fstat(from)?.st_size).unwrap_or(0);
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => break,
            Err(other) => return Err(other.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(data))?.min(size);
        range(from, to, data, end)?;
        at = end.max(data + 1);
    }
    Ok(rustix::fs::ftruncate(to, size)?)
}

/// Copies the bytes from `start` to `end`.
fn range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let want = usize::try_from(end - read_at).unwrap_or(CHUNK).min(CHUNK);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want);
        match copied {
            // The file has become shorter: what is missing reads as zeros.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(errno) if is_missing(errno) => return through_memory(from, to, read_at, end),
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

fn through_memory(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = rustix::io::pread(from, &mut buffer[..want], at)?;
        if read == 0 {
            return Ok(());
        }
        let mut written = 0;
        while written < read {
            let offset = at + written as u64;
            written += rustix::io::pwrite(to, &buffer[written..read], offset)?;
        }
        at += read as u64;
    }
    Ok(())
}

/// Gives an open file or directory owner, mode, extended attributes and times of another; in this
/// order, because a change of owner clears set-id bits and file capabilities.
///
/// # Errors
/// fchown(2)'s, fchmod(2)'s, fsetxattr(2)'s, futimens(3)'s.
pub fn attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    let (uid, gid) = owner(&stat);
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for name in xattr::list(from)? {
        let name = name.to_bytes();
        if !name.starts_with(b"trusted.overlay.")
            && let Some(value) = xattr::get(from, name)?
        {
            xattr::set(to, name, &value)?;
        }
    }
    Ok(rustix::fs::futimens(to, &times(&stat))?)
}

/// Makes what `name` is in one directory in another, where it must not exist: a file with its
/// contents, a symlink, a device, a fifo or a socket. Not a directory.
///
/// # Errors
/// `EISDIR` for a directory, and those of the system calls.
pub fn entry(from: &OwnedFd, into: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return Err(Errno::ISDIR.into()),
        FileType::RegularFile => {
            let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = rustix::fs::openat(from, name, read, Mode::empty())?;
            let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let copy = rustix::fs::openat(into, name, make, Mode::RUSR | Mode::WUSR)?;
            contents(&source, &copy)?;
            return attributes(&source, &copy);
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, into, name)?;
        }
        kind => rustix::fs::mknodat(into, name, kind, Mode::empty(), stat.st_rdev)?,
    }
    let (uid, gid) = owner(stat);
    rustix::fs::chownat(into, name, Some(uid), Some(gid), nofollow)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(into, name, mode, AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(into, name, &times(stat), nofollow)?)
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

/// Access and modification times, to be set again.
pub fn times(stat: &Stat) -> Timestamps {
    let spec = |seconds: i64, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: spec(stat.st_atime, stat.st_atime_nsec),
        last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn is_missing(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let tmp = tempfile::tempdir().unwrap();
        let original = File::create(tmp.path().join("a")).unwrap();
        for at in [0, 3 << 20, 9 << 20] {
            original.write_all_at(b"island", at).unwrap();
        }
        original.set_len(20 << 20).unwrap();
        type Copy = fn(&OwnedFd, &OwnedFd) -> io::Result<()>;
        let ways: [Copy; 2] = [contents, |from, to| through_memory(from, to, 0, 20 << 20)];
        for (number, way) in ways.into_iter().enumerate() {
            let path = tmp.path().join(format!("b{number}"));
            let from = File::open(tmp.path().join("a")).unwrap();
            way(&from.into(), &File::create_new(&path).unwrap().into()).unwrap();
            assert_eq!(
                std::fs::read(&path).unwrap(),
                std::fs::read(tmp.path().join("a")).unwrap()
            );
        }
        let blocks = std::fs::metadata(tmp.path().join("b0")).unwrap().blocks();
        assert!(blocks < 200, "{blocks} blocks: holes were filled");
    }
}
