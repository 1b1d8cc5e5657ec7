//! The files of a log, and their lines.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};
use flate2::read::MultiGzDecoder;

use super::entry::{HEAD_BYTES, Kind, kind};
use super::tail::{self, Last, Tail};
use crate::shim::log::file::{LogError, open_to_read};
use crate::shim::log::rotated::{self, Rotated};

/// Longer than any entry of a log.
const LINE_BYTES: usize = 1 << 20;
/// Read at once.
const READ_BYTES: usize = 64 * 1024;
/// Entries of a compressed file, of each of which a byte is kept to find the last ones.
const COMPRESSED_ENTRIES: usize = 100_000_000;

/// One file, open at its beginning.
pub(super) struct LogFile {
    pub(super) file: File,
    compressed: bool,
    /// What the name of a rotated one ends with.
    pub(super) suffix: Option<String>,
}

impl LogFile {
    fn rotated(rotated: &Rotated) -> Result<Self, LogError> {
        Ok(Self {
            file: open_to_read(&rotated.path)?,
            compressed: rotated.compressed,
            suffix: Some(rotated.suffix().to_owned()),
        })
    }

    /// The one that is written now; `None` when there is none.
    pub(super) fn current(log: &Path) -> anyhow::Result<Option<Self>> {
        match open_to_read(log) {
            Ok(file) => Ok(Some(Self {
                file,
                compressed: false,
                suffix: None,
            })),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether nothing can come any more.
    pub(super) fn is_whole(&self) -> bool {
        self.compressed
    }

    /// Whether this is the file of that name.
    pub(super) fn is_at(&self, path: &Path) -> anyhow::Result<bool> {
        let own = identity(&self.file.metadata()?);
        Ok(std::fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == own))
    }

    /// Whether both are the same file.
    pub(super) fn is_same(&self, other: &Self) -> anyhow::Result<bool> {
        Ok(identity(&self.file.metadata()?) == identity(&other.file.metadata()?))
    }

    /// What the name of the file ends with by now, if it was rotated while it was open; also after
    /// it has been compressed or removed.
    pub(super) fn present_suffix(&self, log: &Path) -> Option<String> {
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let path = std::fs::read_link(link).ok()?;
        let name = path.file_name()?.as_bytes();
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        rotated::suffix_of(log.file_name()?, OsStr::from_bytes(name))
    }

    /// Its lines, from its beginning.
    pub(super) fn lines(&self) -> io::Result<FileLines> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        let from: Box<dyn Read> = if self.compressed {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        Ok(FileLines::new(from))
    }

    /// Its lines from the first one that `tail` wants; those to come when it wants none.
    fn last_lines(&self, tail: &mut Tail) -> anyhow::Result<FileLines> {
        if self.compressed {
            return self.last_compressed(tail);
        }
        let Last { first, end } = tail::of_file(&self.file, tail)?;
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(first.unwrap_or(end)))?;
        Ok(FileLines::new(Box::new(file)))
    }

    /// What is compressed is read from its beginning only.
    fn last_compressed(&self, tail: &mut Tail) -> anyhow::Result<FileLines> {
        let mut kinds = Vec::new();
        let mut lines = self.lines()?;
        while let Some(line) = lines.next()? {
            if kinds.len() == COMPRESSED_ENTRIES {
                bail!(
                    "a compressed log has more than {COMPRESSED_ENTRIES} lines: leave out --tail"
                );
            }
            let head = line.map(|line| &line[..line.len().min(HEAD_BYTES)]);
            kinds.push(head.and_then(kind));
        }
        let mut first = None;
        for (number, kind) in kinds.iter().enumerate().rev() {
            let kind: &Option<Kind> = kind;
            if tail.is_done() {
                break;
            }
            if kind.is_some_and(|kind| tail.take(kind)) {
                first = Some(number);
            }
        }
        let mut lines = self.lines()?;
        for _ in 0..first.unwrap_or(kinds.len()) {
            lines.next()?;
        }
        Ok(lines)
    }
}

/// All files of a log, oldest first, each of them open: what is renamed or removed from now on is
/// read all the same. The last one is the one that is written now, if there is one.
pub(super) fn all(log: &Path) -> anyhow::Result<(Vec<LogFile>, Option<LogFile>)> {
    // Before the others are listed: should it be rotated meanwhile, it is among them.
    let current = LogFile::current(log)?;
    let mut files = after(log, None)?;
    if let (Some(current), Some(last)) = (&current, files.last())
        && current.is_same(last)?
    {
        files.pop();
    }
    Ok((files, current))
}

/// The rotated files after the one with this suffix, or all of them.
pub(super) fn after(log: &Path, suffix: Option<&str>) -> anyhow::Result<Vec<LogFile>> {
    let rotated = match rotated::list(log) {
        Ok(rotated) => rotated,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("list the files of {}", log.display()));
        }
    };
    let mut files = Vec::new();
    for rotated in rotated {
        if suffix.is_some_and(|suffix| rotated.suffix() <= suffix) {
            continue;
        }
        match LogFile::rotated(&rotated) {
            Ok(file) => files.push(file),
            // The oldest goes while we look, or has just been compressed.
            Err(error) if is_missing(&error) => files.extend(compressed(&rotated)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(files)
}

fn compressed(rotated: &Rotated) -> Option<LogFile> {
    let mut path = rotated.path.clone().into_os_string();
    path.push(".gz");
    Some(LogFile {
        file: open_to_read(path.as_ref()).ok()?,
        compressed: true,
        suffix: Some(rotated.suffix().to_owned()),
    })
}

/// The lines to be shown of these files, and how many whole ones of them are to be left out; with
/// `None` all of them.
pub(super) fn lines_of(
    files: &[LogFile],
    last: Option<u64>,
) -> anyhow::Result<(Vec<FileLines>, u64)> {
    let Some(wanted) = last else {
        let all: io::Result<Vec<_>> = files.iter().map(LogFile::lines).collect();
        return Ok((all?, 0));
    };
    let mut tail = Tail::new(wanted);
    let mut found = Vec::new();
    for file in files.iter().rev() {
        // The newest in any case: more may come.
        if tail.is_done() && !found.is_empty() {
            break;
        }
        found.push(file.last_lines(&mut tail)?);
    }
    found.reverse();
    Ok((found, tail.skip()))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn is_missing(error: &LogError) -> bool {
    matches!(error, LogError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Reads a file line by line, as far as it is written.
pub(super) struct FileLines {
    from: Box<dyn Read>,
    buffer: Vec<u8>,
    /// What has been taken of it.
    taken: usize,
    /// In the middle of a line that is too long.
    too_long: bool,
}

impl FileLines {
    fn new(from: Box<dyn Read>) -> Self {
        Self {
            from,
            buffer: Vec::new(),
            taken: 0,
            too_long: false,
        }
    }

    /// The next whole line without its newline, `Some(None)` for one that is too long to be an
    /// entry; `None` when there is none yet.
    pub(super) fn next(&mut self) -> io::Result<Option<Option<&[u8]>>> {
        let mut searched = self.taken;
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[searched..]) {
                let (begin, end) = (self.taken, searched + length);
                self.taken = end + 1;
                let too_long = std::mem::take(&mut self.too_long);
                return Ok(Some((!too_long).then(|| &self.buffer[begin..end])));
            }
            self.buffer.drain(..self.taken);
            self.taken = 0;
            if self.buffer.len() > LINE_BYTES {
                self.too_long = true;
                self.buffer.clear();
            }
            searched = self.buffer.len();
            self.buffer.resize(searched + READ_BYTES, 0);
            let read = loop {
                match self.from.read(&mut self.buffer[searched..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            self.buffer
                .truncate(searched + read.as_ref().map_or(0, |length| *length));
            if read? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::super::lines::{Lines, Wanted};
    use super::*;

    const AT: &str = "2016-10-06T00:00:01Z stdout";

    /// Three files: a compressed one, a rotated one, and the one that is written.
    fn log(dir: &Path) -> std::path::PathBuf {
        let log = dir.join("0.log");
        let gz = fs::File::create(dir.join("0.log.20240101-000001.gz")).unwrap();
        let mut gz = GzEncoder::new(gz, Compression::fast());
        write!(gz, "{AT} F one\n{AT} F two\n{AT} P th").unwrap();
        writeln!(gz).unwrap();
        gz.finish().unwrap();
        let rotated = format!("{AT} P re\n");
        fs::write(dir.join("0.log.20240101-000002"), rotated).unwrap();
        fs::write(&log, format!("{AT} F e\n{AT} F four\n{AT} F cut o")).unwrap();
        log
    }

    fn shown(log: &Path, last: Option<u64>) -> String {
        let (mut files, current) = all(log).unwrap();
        files.extend(current);
        let (found, skip) = lines_of(&files, last).unwrap();
        let mut out = Vec::new();
        let mut lines = Lines::new(Wanted::default(), &mut out, Vec::new());
        lines.skip(skip);
        for mut file in found {
            while let Some(line) = file.next().unwrap() {
                lines.take(line.unwrap()).unwrap();
            }
        }
        lines.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_files_are_one_log_and_lines_go_over_their_ends() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        assert_eq!(shown(&log, None), "one\ntwo\nthree\nfour\n");
        assert_eq!(shown(&log, Some(0)), "");
        assert_eq!(shown(&log, Some(1)), "four\n");
        assert_eq!(shown(&log, Some(2)), "three\nfour\n");
        assert_eq!(shown(&log, Some(3)), "two\nthree\nfour\n");
        assert_eq!(shown(&log, Some(100)), "one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn what_is_renamed_after_the_listing_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let current = LogFile::current(&log).unwrap().unwrap();
        assert!(current.is_at(&log).unwrap());
        fs::rename(&log, dir.path().join("0.log.20240101-000003")).unwrap();
        assert!(!current.is_at(&log).unwrap());
        let suffix = Some("20240101-000003".to_owned());
        assert_eq!(current.present_suffix(&log), suffix);
        let (files, current) = all(&log).unwrap();
        assert_eq!((files.len(), current.is_some()), (3, false));
        assert_eq!(after(&log, Some("20240101-000001")).unwrap().len(), 2);
        fs::remove_file(dir.path().join("0.log.20240101-000003")).unwrap();
        assert_eq!(files[2].present_suffix(&log), suffix);
        assert!(all(&dir.path().join("none/0.log")).unwrap().0.is_empty());
    }

    #[test]
    fn a_line_that_is_no_entry_takes_no_endless_memory() {
        let endless = io::repeat(b'x').take(5 << 20);
        let mut lines = FileLines::new(Box::new(endless.chain(&b"\nshort\nrest"[..])));
        assert_eq!(lines.next().unwrap(), Some(None));
        assert!(lines.buffer.len() < 2 * LINE_BYTES);
        assert_eq!(lines.next().unwrap(), Some(Some(&b"short"[..])));
        assert_eq!(lines.next().unwrap(), None);
        assert_eq!(lines.next().unwrap(), None);
    }
}
