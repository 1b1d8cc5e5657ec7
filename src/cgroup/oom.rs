//! How often the kernel killed a process of a cgroup for want of memory, and where memory ran out.
//!
//! v2 counts in `memory.events`, v1 in `memory.oom_control`; both with the key `oom_kill`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::error::CgroupError;
use super::file::{self, cut, keyed};
use super::layout::Cgroups;
use super::path::CgroupPath;
use crate::lifecycle::ending::Exhausted;
use crate::sys::xattr;

/// What systemd-oomd leaves on a cgroup that it has killed.
const OOMD: &[u8] = b"user.oomd_kill";
/// A limit from here on is none: v1 has the greatest multiple of a page for it.
const NO_LIMIT: u64 = 1 << 62;

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
    /// The file in which the kernel counts for a cgroup; `None` where memory has no controller.
    #[must_use]
    pub fn oom_counter(&self, path: &CgroupPath) -> Option<PathBuf> {
        let v1 = self
            .v1_dir("memory", path)
            .map(|dir| dir.join("memory.oom_control"));
        let v2 = || {
            // Of a scope its slice counts, which is there when the scope has gone.
            self.v2_dir("memory", &path.whole())
                .map(|dir| dir.join("memory.events"))
        };
        v1.or_else(v2)
    }

    /// Opens the counter of a cgroup; `None` where there is no memory controller.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn open_oom_counter(&self, path: &CgroupPath) -> Result<Option<OomCounter>, CgroupError> {
        let Some(path) = self.oom_counter(path) else {
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

    /// Where memory ran out for a cgroup in which the kernel has killed: at its own limit, at that
    /// of one above it, or on the node. v2 counts at each level the times when its limit left
    /// nothing to give (`memory.events.local`, Linux 5.2); v1 only those when it was reached, so
    /// the lowest one that was counts. `limit` is what it was given (bytes): a scope that is gone
    /// no longer says so.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn exhausted(&self, path: &CgroupPath, limit: u64) -> Result<Exhausted, CgroupError> {
        if path.units().is_some()
            && let Some(dir) = self.v2_dir("memory", &path.whole())
        {
            // Counted here is what happened below, where the limit was.
            let events = file::read_if_present(&dir, "memory.events")?.unwrap_or_default();
            if keyed(&events, "oom").unwrap_or(0) > 0 {
                return Ok(Exhausted::OwnLimit(limit));
            }
        }
        let levels: Vec<CgroupPath> = path.levels().collect();
        for level in levels.iter().rev() {
            let Some(bytes) = self.limit_that_left_nothing(level)? else {
                continue;
            };
            return Ok(match level == path {
                true => Exhausted::OwnLimit(bytes),
                false => Exhausted::LimitAbove {
                    path: level.to_string(),
                    bytes,
                },
            });
        }
        Ok(Exhausted::Node)
    }

    fn limit_that_left_nothing(&self, path: &CgroupPath) -> Result<Option<u64>, CgroupError> {
        let (limit, reached) = if let Some(dir) = self.v1_dir("memory", path) {
            let reached = file::read_number(&dir, "memory.failcnt")?;
            (file::read_number(&dir, "memory.limit_in_bytes")?, reached)
        } else if let Some(dir) = self.v2_dir("memory", path) {
            let events = file::read_if_present(&dir, "memory.events.local")?.unwrap_or_default();
            (
                file::read_number(&dir, "memory.max")?,
                keyed(&events, "oom"),
            )
        } else {
            return Ok(None);
        };
        Ok(limit.filter(|limit| *limit < NO_LIMIT && reached.unwrap_or(0) > 0))
    }

    /// Whether systemd-oomd has killed a cgroup: it says so as an attribute
    /// (systemd-oomd.service(8), `user.oomd_kill`).
    #[must_use]
    pub fn killed_by_oomd(&self, path: &CgroupPath) -> bool {
        let Some(dir) = self.unified_dir(path) else {
            return false;
        };
        let said = File::open(dir).and_then(|dir| xattr::get(dir, OOMD));
        said.ok().flatten().is_some_and(|count| count != b"0")
    }
}
