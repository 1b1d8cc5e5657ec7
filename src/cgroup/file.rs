//! One-value files of cgroup directories: write a value, read one back, pick a key's number.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::error::CgroupError;

/// No file that is read here comes near this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Writes a value, in one system call, as the kernel wants it.
pub(super) fn write(dir: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = dir.join(file);
    let written = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| CgroupError::Write {
        path,
        value: value.to_owned(),
        source,
    })
}

/// Reads a file as text, without the newline at its end.
pub(super) fn read(dir: &Path, file: &str) -> Result<String, CgroupError> {
    let path = dir.join(file);
    let text = File::open(&path).and_then(read_bounded);
    text.map(|text| text.trim_end().to_owned())
        .map_err(CgroupError::file("read", &path))
}

fn read_bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a file that may not be there, because of the kernel's configuration or the level.
pub(super) fn read_if_present(dir: &Path, file: &str) -> Result<Option<String>, CgroupError> {
    match read(dir, file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a number; `max` and what is at or beyond `i64::MAX` less a page are no limit.
pub(super) fn read_number(dir: &Path, file: &str) -> Result<Option<u64>, CgroupError> {
    let Some(text) = read_if_present(dir, file)? else {
        return Ok(None);
    };
    if text == "max" {
        return Ok(Some(u64::MAX));
    }
    let malformed = || CgroupError::Malformed {
        path: dir.join(file),
        text: cut(&text),
    };
    text.parse().map(Some).map_err(|_| malformed())
}

/// The number of a key in a file of `key number` lines, such as `memory.stat`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

/// Bounds what an error repeats of its cause.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_whole() {
        let text = "inactive_file 7\ntotal_inactive_file 9\noom_kill 3\nodd\nworse x\n";
        assert_eq!(keyed(text, "inactive_file"), Some(7));
        assert_eq!(keyed(text, "total_inactive_file"), Some(9));
        assert_eq!(keyed(text, "oom"), None);
        assert_eq!(keyed(text, "worse"), None);
    }

    #[test]
    fn numbers_and_their_absence_are_told_from_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "12\n").unwrap();
        std::fs::write(dir.path().join("b"), "max\n").unwrap();
        std::fs::write(dir.path().join("c"), "many\n").unwrap();
        assert_eq!(read_number(dir.path(), "a").unwrap(), Some(12));
        assert_eq!(read_number(dir.path(), "b").unwrap(), Some(u64::MAX));
        assert!(matches!(
            read_number(dir.path(), "c"),
            Err(CgroupError::Malformed { .. })
        ));
        assert_eq!(read_number(dir.path(), "d").unwrap(), None);
    }
}
