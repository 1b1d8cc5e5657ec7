//! Extended attributes of files and of symlinks, by open directory and name.
//!
//! Which attributes may be set is the caller's decision; see xattr(7).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Sets an attribute of an open file or directory.
///
/// # Errors
/// fsetxattr(2)'s.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        fd,
        OsStr::from_bytes(name),
        value,
        XattrFlags::empty(),
    )?)
}

/// Sets an attribute of whatever `entry` is in `dir`, a symlink included.
///
/// # Errors
/// lsetxattr(2)'s.
pub fn set_at(dir: impl AsFd, entry: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
    // No `setxattrat` before Linux 6.13. The last component is not followed, and the rest is our
    // own descriptor.
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(entry);
    let name = OsStr::from_bytes(name);
    Ok(rustix::fs::lsetxattr(
        path.as_slice(),
        name,
        value,
        XattrFlags::empty(),
    )?)
}

/// The attribute's value, `None` when there is none.
///
/// # Errors
/// fgetxattr(2)'s but `ENODATA` and `EOPNOTSUPP`.
pub fn get(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    // 64 KiB is the kernel's limit for one value (XATTR_SIZE_MAX): most need far less.
    for size in [256, 64 * 1024] {
        let mut value = vec![0; size];
        let read = rustix::fs::fgetxattr(fd.as_fd(), OsStr::from_bytes(name), value.as_mut_slice());
        match read {
            Ok(len) => {
                value.truncate(len);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::RANGE) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(Errno::RANGE.into())
}

/// The names of an open file's attributes.
///
/// # Errors
/// flistxattr(2)'s but `EOPNOTSUPP`.
pub fn list(fd: impl AsFd) -> io::Result<Vec<CString>> {
    // XATTR_LIST_MAX is 64 KiB.
    for size in [1024, 64 * 1024] {
        let mut names = vec![0u8; size];
        match rustix::fs::flistxattr(fd.as_fd(), names.as_mut_slice()) {
            Ok(len) => {
                let names = names[..len]
                    .split(|b| *b == 0)
                    .filter(|name| !name.is_empty());
                return Ok(names.filter_map(|name| CString::new(name).ok()).collect());
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(Errno::RANGE.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_set_listed_and_read_back() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("f");
        let file = std::fs::File::create(&path).unwrap();
        assert_eq!(get(&file, b"trusted.quilt").unwrap(), None);
        set(&file, b"trusted.quilt", b"one").unwrap();
        let dir = std::fs::File::open(tmp.path()).unwrap();
        set_at(&dir, b"f", b"trusted.big", &[7; 1000]).unwrap();
        assert_eq!(get(&file, b"trusted.quilt").unwrap().unwrap(), b"one");
        assert_eq!(get(&file, b"trusted.big").unwrap().unwrap(), [7; 1000]);
        let names = list(&file).unwrap();
        assert!(names.contains(&c"trusted.quilt".to_owned()), "{names:?}");
    }

    #[test]
    fn a_symlink_has_attributes_of_its_own() {
        let tmp = tempfile::tempdir().unwrap();
        let target = std::fs::File::create(tmp.path().join("t")).unwrap();
        std::os::unix::fs::symlink("t", tmp.path().join("l")).unwrap();
        let dir = std::fs::File::open(tmp.path()).unwrap();
        set_at(&dir, b"l", b"trusted.quilt", b"1").unwrap();
        assert_eq!(get(&target, b"trusted.quilt").unwrap(), None);
    }
}
