//! How often the kernel killed a process of a cgroup for want of memory.
//!
//! v2 counts in `memory.events`, v1 in `memory.oom_control`; both with the key `oom_kill`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::error::CgroupError;
use super::file::{cut, keyed};
use super::layout::Cgroups;
use super::path::CgroupPath;

/// An open counter. It can be read for as long as the cgroup exists, also when its processes are
/// gone; open it before they start, and read it before the cgroup is removed.
#[derive(Debug)]
pub struct OomCounter {
    file: File,
    path: PathBuf,
}

impl OomCounter {
    /// The number of OOM kills so far. A cgroup that is gone has none that could still be told.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has another form.
    pub fn read(&self) -> Result<u64, CgroupError> {
        let mut buffer = [0u8; 1024];
        let length = match self.file.read_at(&mut buffer, 0) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(0),
            Err(error) => return Err(CgroupError::file("read", &self.path)(error)),
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        keyed(&text, "oom_kill").ok_or_else(|| CgroupError::Malformed {
            path: self.path.clone(),
            text: cut(&text),
        })
    }
}

impl Cgroups {
    /// Opens the counter of a cgroup; `None` where there is no memory controller.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn open_oom_counter(&self, path: &CgroupPath) -> Result<Option<OomCounter>, CgroupError> {
        let v1 = self
            .v1_dir("memory", path)
            .map(|dir| dir.join("memory.oom_control"));
        let v2 = || {
            self.v2_dir("memory", path)
                .map(|dir| dir.join("memory.events"))
        };
        let Some(path) = v1.or_else(v2) else {
            return Ok(None);
        };
        match File::open(&path) {
            Ok(file) => Ok(Some(OomCounter { file, path })),
            Err(error) => Err(CgroupError::file("open", &path)(error)),
        }
    }

    /// The number of OOM kills in a cgroup; 0 when it is gone or nobody counts.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn oom_kills(&self, path: &CgroupPath) -> Result<u64, CgroupError> {
        match self.open_oom_counter(path) {
            Ok(Some(counter)) => counter.read(),
            Ok(None) => Ok(0),
            Err(error) if error.is(libc::ENOENT) => Ok(0),
            Err(error) => Err(error),
        }
    }
}
