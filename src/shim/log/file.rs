//! The log file: opened without following a planted link, appended to, reopened after rotation, or
//! rotated here when it has its size.
//!
//! A write that fails costs its lines and nothing else: the container goes on, the loss is counted,
//! and the file is cut back to its last whole entry, so that what follows can be parsed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, renameat_with};
use rustix::io::Errno;

use super::line::{ENTRY_MAX_BYTES, PREFIX_LEN};
use super::rotated::{self, Rotated};
use super::timestamp::{TIMESTAMP_LEN, now_ns, parse};

/// What holds the last whole entry and the beginning of one after it.
const TWO_ENTRIES_BYTES: u64 = 2 * ENTRY_MAX_BYTES as u64;

/// Why a log file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// mkdir(2) of a missing parent directory.
    #[error("make the directory of log {path}")]
    Directory {
        /// The log file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// open(2).
    #[error("open log {path}")]
    Open {
        /// The log file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something other than a regular file has that name.
    #[error("log {path} is not a regular file")]
    NotAFile {
        /// The log file.
        path: PathBuf,
    },
}

/// What could not be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Entries.
    pub lines: u64,
    /// Bytes of entries.
    pub bytes: u64,
}

/// When a log is rotated by its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// No file is longer than this, unless it is a single entry.
    pub max_bytes: u64,
    /// Files that stay, with the one that is written: at least 2.
    pub files: usize,
}

/// One container's log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// How long the file is.
    size: u64,
    /// The file ends in the middle of an entry that could not be cut off.
    torn: bool,
    rotation: Option<Rotation>,
    /// The time of the last entry that was there at opening, nanoseconds since 1970.
    last_entry_ns: i64,
    loss: Loss,
    /// Why the last write failed that did.
    failure: Option<io::Error>,
}

impl LogFile {
    /// Opens `path` to append, mode 0640; makes it and its directories when they are missing. What
    /// a writer that died has left of an entry is completed or cut off.
    ///
    /// # Errors
    /// [`LogError`]. The last component may be neither a symbolic link (a pod that mounts the log
    /// directory could point it anywhere) nor anything but a regular file.
    pub fn open(path: &Path, rotation: Option<Rotation>) -> Result<LogFile, LogError> {
        let file = open(path)?;
        let mut log = LogFile {
            path: path.to_owned(),
            file,
            size: 0,
            torn: false,
            rotation,
            last_entry_ns: 0,
            loss: Loss::default(),
            failure: None,
        };
        log.look_at_the_end();
        Ok(log)
    }

    /// [`LogFile::open`] for a container that has written before: should its file be new because it
    /// was just rotated, the last entry is in a rotated one.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn take_over(path: &Path, rotation: Option<Rotation>) -> Result<LogFile, LogError> {
        let mut log = LogFile::open(path, rotation)?;
        if log.size > 0 {
            return Ok(log);
        }
        let rotated = rotated::list(path).unwrap_or_default();
        let newest = rotated.iter().rfind(|rotated| !rotated.compressed);
        if let Some(newest) = newest
            && let Ok(file) = open_to_read(&newest.path)
        {
            log.last_entry_ns = End::of(&file).map_or(0, |end| end.last_entry_ns);
        }
        Ok(log)
    }

    /// Opens the path anew and goes on there: the old file has been renamed. On an error the old
    /// file stays in use, and none was made.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.file = open(&self.path)?;
        self.torn = false;
        self.look_at_the_end();
        Ok(())
    }

    /// What was lost so far.
    #[must_use]
    pub fn loss(&self) -> Loss {
        self.loss
    }

    /// What a former writer has lost counts as well.
    pub fn add_loss(&mut self, loss: Loss) {
        self.loss.lines += loss.lines;
        self.loss.bytes += loss.bytes;
    }

    /// Why the last write failed that did.
    #[must_use]
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// The time of the last entry that was there at opening, nanoseconds since 1970; 0 for none.
    #[must_use]
    pub fn last_entry_ns(&self) -> i64 {
        self.last_entry_ns
    }

    /// Appends whole entries. Never fails: what cannot be written is counted.
    pub fn append(&mut self, entries: &[u8]) {
        let Some(rotation) = self.rotation else {
            return self.write(entries);
        };
        let mut rest = entries;
        while !rest.is_empty() {
            let room = rotation.max_bytes.saturating_sub(self.size);
            let mut fit = whole_entries(rest, usize::try_from(room).unwrap_or(usize::MAX));
            if fit == 0 {
                if self.size > 0 && self.rotate(rotation) {
                    continue;
                }
                // One that is longer than a file may be, or that there is no other file for.
                fit = match self.size {
                    0 => memchr::memchr(b'\n', rest).map_or(rest.len(), |newline| newline + 1),
                    _ => rest.len(),
                };
            }
            self.write(&rest[..fit]);
            rest = &rest[fit..];
        }
    }

    fn write(&mut self, entries: &[u8]) {
        if self.torn {
            match self.file.write(b"\n") {
                Ok(1) => {
                    self.torn = false;
                    self.size += 1;
                }
                Ok(_) => return self.give_up(entries, 0),
                Err(error) => {
                    self.failure = Some(error);
                    return self.give_up(entries, 0);
                }
            }
        }
        let mut done = 0;
        while done < entries.len() {
            match self.file.write(&entries[done..]) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            }
        }
        self.size += done as u64;
        if done < entries.len() {
            self.give_up(entries, done);
        }
    }

    fn give_up(&mut self, entries: &[u8], done: usize) {
        let whole = memchr::memrchr(b'\n', &entries[..done]).map_or(0, |newline| newline + 1);
        let fragment = (done - whole) as u64;
        let lost = &entries[whole..];
        self.loss.lines += memchr::memchr_iter(b'\n', lost).count() as u64;
        self.loss.bytes += lost.len() as u64;
        if fragment > 0 {
            self.cut_off(fragment);
        }
    }

    /// Cuts off the last bytes, or remembers that they stand there.
    fn cut_off(&mut self, bytes: u64) {
        let cut = self
            .file
            .metadata()
            .and_then(|metadata| self.file.set_len(metadata.len().saturating_sub(bytes)));
        match cut {
            Ok(()) => self.size = self.size.saturating_sub(bytes),
            Err(_) => self.torn = true,
        }
    }

    /// Goes on in a new file, and removes the oldest ones; `false` when the old one stays in use.
    /// Tried again with the next entries.
    fn rotate(&mut self, rotation: Rotation) -> bool {
        let others = rotated::list(&self.path).unwrap_or_default();
        // After those that are there, whatever the clock says.
        let newest = others.last().map_or(0, Rotated::at_ns);
        let name = rotated::name(&self.path, now_ns().max(newest + 1));
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        let renamed = renameat_with(CWD, &self.path, CWD, &name, flags);
        // One that is not there was renamed by somebody else, or before.
        if !matches!(renamed, Ok(()) | Err(Errno::NOENT)) || self.reopen().is_err() {
            return false;
        }
        let kept = rotation.files.max(2) - 1 - usize::from(renamed.is_ok());
        for old in others.iter().take(others.len().saturating_sub(kept)) {
            // What cannot be removed now is tried the next time.
            let _ = std::fs::remove_file(&old.path);
        }
        true
    }

    fn look_at_the_end(&mut self) {
        // One that cannot be read can be written all the same.
        let Ok(end) = End::of(&self.file) else {
            return;
        };
        self.size = end.size;
        self.last_entry_ns = end.last_entry_ns;
        match end.fragment {
            Fragment::None => {}
            Fragment::Line => self.torn = true,
            Fragment::Prefix(bytes) => self.cut_off(bytes),
        }
    }
}

/// How a log ends.
struct End {
    size: u64,
    /// Of the last entry, or 0.
    last_entry_ns: i64,
    fragment: Fragment,
}

/// What stands after the last newline.
enum Fragment {
    None,
    /// Something that lacks a newline: an entry, or a part of its content.
    Line,
    /// The beginning of an entry, with so many bytes and no content.
    Prefix(u64),
}

impl End {
    fn of(file: &File) -> io::Result<End> {
        let size = file.metadata()?.len();
        let length = size.min(TWO_ENTRIES_BYTES);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, size - length)?;
        let newline = memchr::memrchr(b'\n', &bytes);
        let (whole, left) = bytes.split_at(newline.map_or(0, |newline| newline + 1));
        let last = whole
            .split(|byte| *byte == b'\n')
            .rfind(|it| !it.is_empty());
        let mut last_entry_ns = last.and_then(entry_time).unwrap_or(0);
        let fragment = match entry_time(left) {
            _ if left.is_empty() => Fragment::None,
            Some(time) => {
                last_entry_ns = time;
                Fragment::Line
            }
            None if begins_entry(left) => Fragment::Prefix(left.len() as u64),
            // Not of our making: it stays.
            None => Fragment::Line,
        };
        Ok(End {
            size,
            last_entry_ns,
            fragment,
        })
    }
}

/// The time of an entry whose prefix is whole.
fn entry_time(entry: &[u8]) -> Option<i64> {
    let (time, rest) = entry.split_at_checked(TIMESTAMP_LEN)?;
    let name = [b" stdout ", b" stderr "].contains(&rest.first_chunk::<8>()?);
    let tag = matches!(rest.get(8..10), Some(b"F " | b"P "));
    if name && tag { parse(time) } else { None }
}

/// Whether an entry's prefix begins with this, which is less than it.
fn begins_entry(fragment: &[u8]) -> bool {
    let shape = b"0000-00-00T00:00:00.000000000Z std";
    let fits = |(byte, expected): (&u8, &u8)| match expected {
        b'0' => byte.is_ascii_digit(),
        _ => byte == expected,
    };
    fragment.len() < PREFIX_LEN && fragment.iter().zip(shape).all(fits)
}

/// The length of the whole entries at the beginning of `entries` that take no more than `room`.
fn whole_entries(entries: &[u8], room: usize) -> usize {
    if entries.len() <= room {
        return entries.len();
    }
    memchr::memrchr(b'\n', &entries[..room]).map_or(0, |newline| newline + 1)
}

/// Never through a link, and without waiting for whoever may be at the other end of a FIFO.
const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;

/// Opens a log to read it.
///
/// # Errors
/// [`LogError::Open`], `NotAFile`.
pub fn open_to_read(path: &Path) -> Result<File, LogError> {
    let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(path);
    regular(file, path)
}

fn open(path: &Path) -> Result<File, LogError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(FLAGS);
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(|source| LogError::Directory {
                    path: path.to_owned(),
                    source,
                })?;
            options.open(path)
        }
        other => other,
    };
    regular(file, path)
}

fn regular(file: io::Result<File>, path: &Path) -> Result<File, LogError> {
    let fail = |source| LogError::Open {
        path: path.to_owned(),
        source,
    };
    let file = file.map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(LogError::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_missing_directory_is_made_and_the_file_is_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/container/0.log");
        let mut log = LogFile::open(&path, None).unwrap();
        log.append(b"a\n");
        LogFile::open(&path, None).unwrap().append(b"b\n");
        assert_eq!(fs::read(&path).unwrap(), b"a\nb\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    }

    #[test]
    fn a_link_a_fifo_and_a_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink(dir.path().join("victim"), &link).unwrap();
        assert!(matches!(
            LogFile::open(&link, None),
            Err(LogError::Open { .. })
        ));
        assert!(!dir.path().join("victim").exists());
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(LogFile::open(&fifo, None).is_err());
        assert!(LogFile::open(dir.path(), None).is_err());
    }

    #[test]
    fn reopening_goes_on_in_a_new_file_and_its_failure_in_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let rotated = dir.path().join("0.log.1");
        let mut log = LogFile::open(&path, None).unwrap();
        log.append(b"one\n");
        fs::rename(&path, &rotated).unwrap();
        symlink("/dev/null", &path).unwrap();
        assert!(log.reopen().is_err());
        log.append(b"two\n");
        fs::remove_file(&path).unwrap();
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(fs::read(&rotated).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::read(&path).unwrap(), b"three\n");
    }

    /// A real full disk: a tmpfs of one page in a mount namespace of a thread of its own.
    #[test]
    fn a_full_disk_costs_lines_and_leaves_whole_entries() {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let full = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let tmpfs = Some("tmpfs");
            mount(tmpfs, &path, tmpfs, MsFlags::empty(), Some("size=4096")).unwrap();
            let path = path.join("0.log");
            let mut log = LogFile::open(&path, None).unwrap();
            assert!(log.failure().is_none());
            let entry = [[b'x'; 999].as_slice(), b"\n"].concat();
            log.append(&entry.repeat(10));
            let lost = log.loss();
            let full = fs::read(&path).unwrap();
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(0)
                .unwrap();
            log.append(&entry);
            let why = log.failure().map(io::Error::kind);
            assert_eq!(why, Some(io::ErrorKind::StorageFull));
            (lost, full, fs::read(&path).unwrap() == entry)
        });
        let (lost, full, goes_on) = full.join().unwrap();
        assert_eq!(
            lost,
            Loss {
                lines: 6,
                bytes: 6000
            }
        );
        assert_eq!(full.len(), 4000);
        assert!(full.ends_with(b"\n") && goes_on);
    }

    const EARLY: &str = "2016-10-06T00:17:09.669794202Z";

    #[test]
    fn what_a_writer_that_died_has_left_is_completed_or_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let whole = format!("{EARLY} stdout F one\n");
        let cases = [
            ("", ""),
            (&EARLY[..1], ""),
            (&EARLY[..20], ""),
            (EARLY, ""),
            ("2016-10-06T00:17:09.669794202Z stdo", ""),
            (
                "2016-10-06T00:17:09.669794203Z stderr P ha",
                "2016-10-06T00:17:09.669794203Z stderr P ha\n",
            ),
            ("somebody's notes", "somebody's notes\n"),
        ];
        for (left, kept) in cases {
            for before in ["", whole.as_str()] {
                fs::write(&path, format!("{before}{left}")).unwrap();
                let mut log = LogFile::open(&path, None).unwrap();
                log.append(b"next\n");
                let text = fs::read_to_string(&path).unwrap();
                assert_eq!(text, format!("{before}{kept}next\n"), "{left}");
                assert_eq!(log.size, text.len() as u64, "{left}");
            }
        }
    }

    #[test]
    fn the_time_of_the_last_entry_is_known_after_rotation_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let at = parse(EARLY.as_bytes()).unwrap();
        fs::write(&path, format!("{EARLY} stdout F {}\n", "x".repeat(16_384))).unwrap();
        assert_eq!(LogFile::open(&path, None).unwrap().last_entry_ns(), at);
        fs::write(dir.path().join("0.log.20160101-000000.gz"), "x").unwrap();
        fs::rename(&path, rotated::name(&path, at)).unwrap();
        assert_eq!(LogFile::open(&path, None).unwrap().last_entry_ns(), 0);
        assert_eq!(LogFile::take_over(&path, None).unwrap().last_entry_ns(), at);
    }

    fn rotating(path: &Path, max_bytes: u64, files: usize) -> LogFile {
        LogFile::open(path, Some(Rotation { max_bytes, files })).unwrap()
    }

    fn files(path: &Path) -> Vec<String> {
        let rotated = rotated::list(path).unwrap();
        let mut paths: Vec<_> = rotated.into_iter().map(|it| it.path).collect();
        paths.push(path.to_owned());
        let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
        paths.iter().map(read).collect()
    }

    #[test]
    fn no_file_is_longer_than_it_may_be_and_no_entry_is_split_or_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = rotating(&path, 10, 100);
        for batch in ["12\n", "345\n678\n", "a\nb\n", "0123456789abcdef\n", "c\n"] {
            log.append(batch.as_bytes());
        }
        assert_eq!(
            files(&path),
            ["12\n345\n", "678\na\nb\n", "0123456789abcdef\n", "c\n"]
        );
        log.append("d\n".repeat(20).as_bytes());
        let all = files(&path);
        assert_eq!(all[3], "c\nd\nd\nd\nd\n");
        assert!(all.iter().skip(3).all(|text| text.len() <= 10));
        assert_eq!(all.concat().matches('d').count(), 21);
        // The next writer goes on in the middle of a file.
        let mut log = rotating(&path, 10, 100);
        log.append(b"e\n");
        assert_eq!(files(&path).last().unwrap(), "d\ne\n");
    }

    #[test]
    fn the_oldest_files_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        // From a clock that was ahead.
        let ahead = rotated::name(&path, i64::MAX / 2);
        fs::write(&ahead, "ahead\n").unwrap();
        for name in [
            "0.log.20160101-000000.gz",
            "0.log.bak",
            "1.log.20160101-000000",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut log = rotating(&path, 2, 3);
        log.append(b"1\n2\n");
        assert_eq!(files(&path), ["ahead\n", "1\n", "2\n"]);
        log.append(b"3\n4\n");
        assert_eq!(files(&path), ["2\n", "3\n", "4\n"]);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 5);
    }

    #[test]
    fn a_log_that_cannot_be_rotated_goes_on_and_is_rotated_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/0.log");
        let mut log = rotating(&path, 4, 3);
        log.append(b"1\n2\n");
        let (parent, away) = (path.parent().unwrap(), dir.path().join("away"));
        fs::rename(parent, &away).unwrap();
        fs::write(parent, "in the way").unwrap();
        log.append(b"3\n");
        fs::remove_file(parent).unwrap();
        fs::rename(&away, parent).unwrap();
        log.append(b"4\n");
        assert_eq!(files(&path), ["1\n2\n3\n", "4\n"]);
        assert_eq!(log.loss(), Loss::default());
    }
}
