//! The log file: opened without following a planted link, appended to, reopened after rotation.
//!
//! A write that fails costs its lines and nothing else: the container goes on, the loss is counted,
//! and the file is cut back to its last whole entry, so that what follows can be parsed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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

/// One container's log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// The file ends in the middle of an entry that could not be cut off.
    torn: bool,
    loss: Loss,
}

impl LogFile {
    /// Opens `path` to append, mode 0640; makes it and its directories when they are missing.
    ///
    /// # Errors
    /// [`LogError`]. The last component may be neither a symbolic link (a pod that mounts the log
    /// directory could point it anywhere) nor anything but a regular file.
    pub fn open(path: &Path) -> Result<LogFile, LogError> {
        let file = open(path)?;
        Ok(LogFile {
            path: path.to_owned(),
            file,
            torn: false,
            loss: Loss::default(),
        })
    }

    /// Opens the path anew and goes on there: the old file has been renamed. On an error the old
    /// file stays in use, and none was made.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.file = open(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// What was lost so far.
    #[must_use]
    pub fn loss(&self) -> Loss {
        self.loss
    }

    /// Appends whole entries. Never fails: what cannot be written is counted.
    pub fn append(&mut self, entries: &[u8]) {
        if self.torn && self.file.write(b"\n").is_ok_and(|written| written == 1) {
            self.torn = false;
        }
        let mut done = 0;
        while done < entries.len() {
            match self.file.write(&entries[done..]) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
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
            let cut = self
                .file
                .metadata()
                .and_then(|metadata| self.file.set_len(metadata.len().saturating_sub(fragment)));
            self.torn |= cut.is_err();
        }
    }
}

fn open(path: &Path) -> Result<File, LogError> {
    let fail = |source| LogError::Open {
        path: path.to_owned(),
        source,
    };
    // O_NONBLOCK: a FIFO of that name must not make the node's only shim wait.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags);
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
            options.open(path).map_err(fail)?
        }
        other => other.map_err(fail)?,
    };
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
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"a\n");
        LogFile::open(&path).unwrap().append(b"b\n");
        assert_eq!(fs::read(&path).unwrap(), b"a\nb\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    }

    #[test]
    fn a_link_a_fifo_and_a_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink(dir.path().join("victim"), &link).unwrap();
        assert!(matches!(LogFile::open(&link), Err(LogError::Open { .. })));
        assert!(!dir.path().join("victim").exists());
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(LogFile::open(&fifo).is_err());
        assert!(LogFile::open(dir.path()).is_err());
    }

    #[test]
    fn reopening_goes_on_in_a_new_file_and_its_failure_in_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let rotated = dir.path().join("0.log.1");
        let mut log = LogFile::open(&path).unwrap();
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
            let mut log = LogFile::open(&path).unwrap();
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
}
