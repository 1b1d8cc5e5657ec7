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
    let name = OsStr::from_bytes(name);
    Ok(rustix::fs::lsetxattr(
        path_of(&dir, entry),
        name,
        value,
        XattrFlags::empty(),
    )?)
}

/// No `setxattrat` and its kin before Linux 6.13. The last component is not followed by the calls
/// that begin with `l`, and the rest is our own descriptor.
fn path_of(dir: &impl AsFd, entry: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(entry);
    path
}

/// Names and values of all attributes of whatever `entry` is in `dir`, a symlink included, sorted
/// by name; an empty `entry` is the directory itself.
///
/// # Errors
/// llistxattr(2)'s and lgetxattr(2)'s but `EOPNOTSUPP`, and `ENODATA` of one that vanishes.
pub fn all_at(dir: impl AsFd, entry: &[u8]) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let path = match entry {
        b"" => path_of(&dir, b"."),
        entry => path_of(&dir, entry),
    };
    let names = names(|buffer| rustix::fs::llistxattr(path.as_slice(), buffer))?;
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let attribute = OsStr::from_bytes(name.as_bytes());
        let value = value(|buffer| rustix::fs::lgetxattr(path.as_slice(), attribute, buffer))?;
        all.extend(value.map(|value| (name, value)));
    }
    all.sort();
    Ok(all)
}

/// The attribute's value, `None` when there is none.
///
/// # Errors
/// fgetxattr(2)'s but `ENODATA` and `EOPNOTSUPP`.
pub fn get(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let name = OsStr::from_bytes(name);
    value(|buffer| rustix::fs::fgetxattr(fd.as_fd(), name, buffer))
}

/// The names of an open file's attributes.
///
/// # Errors
/// flistxattr(2)'s but `EOPNOTSUPP`.
pub fn list(fd: impl AsFd) -> io::Result<Vec<CString>> {
    names(|buffer| rustix::fs::flistxattr(fd.as_fd(), buffer))
}

/// What `read` gives, in a buffer that is large enough.
fn value(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> io::Result<Option<Vec<u8>>> {
    // 64 KiB is the kernel's limit for one value (XATTR_SIZE_MAX): most need far less.
    for size in [256, 64 * 1024] {
        let mut value = vec![0; size];
        match read(&mut value) {
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

/// The names in the list that `read` gives.
fn names(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> io::Result<Vec<CString>> {
    // XATTR_LIST_MAX is 64 KiB.
    for size in [1024, 64 * 1024] {
        let mut names = vec![0u8; size];
        match read(&mut names) {
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
        let own = (c"trusted.quilt".to_owned(), b"1".to_vec());
        assert!(all_at(&dir, b"l").unwrap().contains(&own));
        assert!(!all_at(&dir, b"").unwrap().contains(&own));
        assert_eq!(get(&target, b"trusted.quilt").unwrap(), None);
    }
}
