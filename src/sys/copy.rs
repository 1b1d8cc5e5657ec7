//! Copying what is in a file: shared blocks where the file system has them, else data without its
//! holes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

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
