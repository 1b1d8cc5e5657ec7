//! Names of rotated logs: beside `0.log`, kubelet's `0.log.20060102-150405`, which it compresses to
//! `….gz` later, and the shim's `0.log.20060102-150405.123456789`. In the order of their names they
//! are in the order of their times.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::timestamp::{LogClock, number, parse};

/// What ends the name of a compressed log.
const COMPRESSED: &[u8] = b".gz";

/// One rotated log of several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotated {
    /// What follows the name of the log and a dot, without `.gz`.
    suffix: String,
    /// Whether it is compressed.
    pub compressed: bool,
    /// The file.
    pub path: PathBuf,
}

impl Rotated {
    /// When it was rotated, nanoseconds since 1970, as its name says.
    #[must_use]
    pub fn at_ns(&self) -> i64 {
        time_of(self.suffix.as_bytes()).unwrap_or_default()
    }

    /// What tells it from the others, and orders them: the same before and after it is compressed.
    #[must_use]
    pub fn suffix(&self) -> &str {
        &self.suffix
    }
}

/// The rotated logs beside `log`, oldest first. What is half compressed (`.tmp`) and what nobody
/// calls a rotated log is not among them; of one that is there in both forms the plain one is.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(log: &Path) -> io::Result<Vec<Rotated>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name();
        if let Some(suffix) = suffix_of(name, &file) {
            let compressed = file.as_bytes().ends_with(COMPRESSED);
            found.push(Rotated {
                suffix,
                compressed,
                path: entry.path(),
            });
        }
    }
    found.sort();
    found.dedup_by(|second, first| second.suffix == first.suffix);
    Ok(found)
}

/// What makes `file` a rotated log of `log`, without `.gz`; `None` when it is none.
#[must_use]
pub fn suffix_of(log: &OsStr, file: &OsStr) -> Option<String> {
    let rest = file.as_bytes().strip_prefix(log.as_bytes())?;
    let suffix = rest.strip_prefix(b".")?;
    let suffix = suffix.strip_suffix(COMPRESSED).unwrap_or(suffix);
    time_of(suffix)?;
    String::from_utf8(suffix.to_vec()).ok()
}

/// The name of `log` when it is rotated at `at_ns`.
#[must_use]
pub fn name(log: &Path, at_ns: i64) -> PathBuf {
    let stamp = *LogClock::default().stamp(at_ns);
    let digits = stamp.iter().filter(|byte| byte.is_ascii_digit());
    let digits: String = digits.map(|byte| char::from(*byte)).collect();
    let (day, time, nanos) = (&digits[..8], &digits[8..14], &digits[14..]);
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{day}-{time}.{nanos}"));
    name.into()
}

/// The time that `20060102-150405` or `20060102-150405.123456789` says.
fn time_of(suffix: &[u8]) -> Option<i64> {
    let (second, rest) = suffix.split_at_checked("20060102-150405".len())?;
    let (day, time) = (&second[..8], &second[9..]);
    number(day)?;
    number(time)?;
    if second[8] != b'-' || !(rest.is_empty() || rest.len() == 10) {
        return None;
    }
    let mut text = Vec::with_capacity(30);
    for (part, after) in [
        (&day[..4], b'-'),
        (&day[4..6], b'-'),
        (&day[6..], b'T'),
        (&time[..2], b':'),
        (&time[2..4], b':'),
    ] {
        text.extend_from_slice(part);
        text.push(after);
    }
    text.extend_from_slice(&time[4..]);
    text.extend_from_slice(rest);
    text.push(b'Z');
    parse(&text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_name_says_its_time_and_names_are_in_the_order_of_times() {
        let log = Path::new("/pods/a/0.log");
        let at = 1_475_713_029_669_794_202;
        let first = name(log, at);
        assert_eq!(first, Path::new("/pods/a/0.log.20161006-001709.669794202"));
        assert!(first < name(log, at + 1));
        let suffix = suffix_of(OsStr::new("0.log"), first.file_name().unwrap());
        assert_eq!(time_of(suffix.unwrap().as_bytes()), Some(at));
    }

    #[test]
    fn a_rotated_log_is_told_from_what_only_begins_alike() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "0.log",
            "0.log.20240101-000002",
            "0.log.20240101-000001.gz",
            "0.log.20240101-000001.000000001",
            "0.log.20240101-000002.gz",
            "0.log.20240101-000003.tmp",
            "0.log.20240101-000003.gz.tmp",
            "0.log.20241301-000003",
            "0.log.bak",
            "0.log.1",
            "10.log.20240101-000001",
            "0.log.20240101-000001.5",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = list(&dir.path().join("0.log")).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|rotated| rotated.path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "0.log.20240101-000001.gz",
                "0.log.20240101-000001.000000001",
                "0.log.20240101-000002",
            ]
        );
        assert!(found[0].compressed && found[0].at_ns() < found[1].at_ns());
        assert!(list(&dir.path().join("none/0.log")).is_err());
    }
}
