//! The FIFOs between a container and the shim, and how their ends are held.
//!
//! ```text
//! stdout, stderr   container: O_RDWR            shim: O_RDONLY | O_NONBLOCK
//! stdin            container: O_RDWR            shim: nothing      (kept open for ever)
//! stdin, once      container: O_RDONLY          shim: O_RDWR, until the first session has ended
//! ```
//!
//! A container that holds its output `O_RDWR` is its own reader too: when the shim dies it waits at
//! a full FIFO instead of dying of SIGPIPE, and the next shim opens the same FIFO and reads on.
//! Once everybody on the container's side has closed, the shim reads the end of file and closes as
//! well: a FIFO whose writers are all gone would poll readable for ever.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, mkfifoat, openat};
use rustix::io::Errno;

use crate::runtime::launch::ProcessStreams;
use crate::runtime::plan::Stdio;

/// Asked for every output FIFO: lets a container write on while the shim writes its log. The pages
/// are the container's own, and only taken when they are full.
const PIPE_BYTES: usize = 256 * 1024;

/// Why the standard streams could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The plan's directory is relative, or goes upwards.
    #[error("FIFO directory {0} is not an absolute path without '..'")]
    BadDirectory(PathBuf),
    /// Something other than a FIFO has its name.
    #[error("{0} is not a FIFO")]
    NotAFifo(PathBuf),
    /// A system call failed.
    #[error("{doing} {path}: {source}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The shim's ends.
#[derive(Debug)]
pub struct ShimEnds {
    /// Where standard output is read.
    pub stdout: OwnedFd,
    /// Where standard error is read.
    pub stderr: OwnedFd,
    /// Keeps a `stdin_once` input open until its first session has ended.
    pub stdin_keeper: Option<OwnedFd>,
}

/// Makes the FIFOs that are missing and opens both sides of all of them.
///
/// # Errors
/// [`StdioError`]. FIFOs made before the error stay: the directory is the daemon's to remove.
pub fn prepare(stdio: &Stdio) -> Result<(ShimEnds, ProcessStreams), StdioError> {
    let dir = Directory::open(&stdio.fifo_dir)?;
    for name in ["stdout", "stderr"] {
        dir.make(name)?;
    }
    // The reading ends first: from here on nobody can find a FIFO without a reader.
    let ends = dir.shim_ends(stdio)?;
    let streams = ProcessStreams {
        stdin: dir.container_stdin(stdio)?,
        stdout: dir.fifo("stdout", OFlags::RDWR)?,
        stderr: dir.fifo("stderr", OFlags::RDWR)?,
    };
    Ok((ends, streams))
}

/// Opens the shim's side of FIFOs that a former shim made.
///
/// # Errors
/// [`StdioError`].
pub fn reopen(stdio: &Stdio) -> Result<ShimEnds, StdioError> {
    Directory::open(&stdio.fifo_dir)?.shim_ends(stdio)
}

struct Directory<'a> {
    fd: OwnedFd,
    path: &'a Path,
}

impl Directory<'_> {
    fn open(path: &Path) -> Result<Directory<'_>, StdioError> {
        let upwards = path
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        if !path.is_absolute() || upwards {
            return Err(StdioError::BadDirectory(path.to_owned()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(rustix::fs::CWD, path, flags, Mode::empty());
        let fd = fd.map_err(|source| call("open FIFO directory", path.to_owned(), source))?;
        Ok(Directory { fd, path })
    }

    fn make(&self, name: &str) -> Result<(), StdioError> {
        match mkfifoat(&self.fd, name, Mode::RUSR | Mode::WUSR) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(source) => Err(call("make FIFO", self.path.join(name), source)),
        }
    }

    fn fifo(&self, name: &str, mode: OFlags) -> Result<OwnedFd, StdioError> {
        let path = || self.path.join(name);
        let flags = mode | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = openat(&self.fd, name, flags, Mode::empty());
        let fd = fd.map_err(|source| call("open FIFO", path(), source))?;
        let status = fstat(&fd).map_err(|source| call("look at FIFO", path(), source))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Fifo {
            return Err(StdioError::NotAFifo(path()));
        }
        Ok(fd)
    }

    fn shim_ends(&self, stdio: &Stdio) -> Result<ShimEnds, StdioError> {
        let read_end = |name| -> Result<OwnedFd, StdioError> {
            let fd = self.fifo(name, OFlags::RDONLY | OFlags::NONBLOCK)?;
            // Refused at the user's limit of pipe pages; the default size does as well, slower.
            let _ = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_BYTES);
            Ok(fd)
        };
        let stdin_keeper = if stdio.stdin {
            self.make("stdin")?;
            stdio
                .stdin_once
                .then(|| self.fifo("stdin", OFlags::RDWR))
                .transpose()?
        } else {
            None
        };
        Ok(ShimEnds {
            stdout: read_end("stdout")?,
            stderr: read_end("stderr")?,
            stdin_keeper,
        })
    }

    fn container_stdin(&self, stdio: &Stdio) -> Result<OwnedFd, StdioError> {
        match (stdio.stdin, stdio.stdin_once) {
            // The keeper is open: this does not wait for a writer.
            (true, true) => self.fifo("stdin", OFlags::RDONLY),
            (true, false) => self.fifo("stdin", OFlags::RDWR),
            (false, _) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                openat(rustix::fs::CWD, "/dev/null", flags, Mode::empty())
                    .map_err(|source| call("open", "/dev/null".into(), source))
            }
        }
    }
}

/// How much a pipe can hold: no process can have left more in it when it died.
#[must_use]
pub fn pipe_capacity(fd: impl AsFd) -> usize {
    rustix::pipe::fcntl_getpipe_size(fd).unwrap_or(PIPE_BYTES)
}

fn call(doing: &'static str, path: PathBuf, source: Errno) -> StdioError {
    StdioError::Call {
        doing,
        path,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::plan::LogLimits;

    fn stdio(dir: &Path) -> Stdio {
        Stdio {
            fifo_dir: dir.to_owned(),
            log_path: None,
            log_limits: LogLimits::default(),
            terminal: false,
            stdin: true,
            stdin_once: true,
        }
    }

    #[test]
    fn what_a_container_wrote_while_no_shim_lived_is_read_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = stdio(dir.path());
        let (ends, streams) = prepare(&stdio).unwrap();
        assert!(ends.stdin_keeper.is_some());
        drop(ends);
        rustix::io::write(&streams.stdout, b"alone").unwrap();
        let ends = reopen(&stdio).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&ends.stdout, &mut buffer).unwrap(), 5);
        assert_eq!(
            rustix::io::read(&ends.stderr, &mut buffer),
            Err(Errno::AGAIN)
        );
        drop(streams);
        assert_eq!(rustix::io::read(&ends.stdout, &mut buffer), Ok(0));
    }

    #[test]
    fn an_input_is_at_its_end_when_its_keeper_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (ends, streams) = prepare(&stdio(dir.path())).unwrap();
        rustix::io::ioctl_fionbio(&streams.stdin, true).unwrap();
        assert_eq!(
            rustix::io::read(&streams.stdin, &mut [0; 1]),
            Err(Errno::AGAIN)
        );
        drop(ends);
        assert_eq!(rustix::io::read(&streams.stdin, &mut [0; 1]), Ok(0));
    }

    #[test]
    fn only_fifos_in_a_plain_directory_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let missing = prepare(&stdio(&dir.path().join("none")));
        assert!(matches!(missing, Err(StdioError::Call { .. })));
        assert!(matches!(
            prepare(&stdio(Path::new("a"))),
            Err(StdioError::BadDirectory(_))
        ));
        std::fs::write(dir.path().join("stdout"), "").unwrap();
        assert!(matches!(
            prepare(&stdio(dir.path())),
            Err(StdioError::NotAFifo(_))
        ));
    }
}
