//! The processes of a cgroup: how they enter, whether there are any, and how they end.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::create::require_not_root;
use super::error::CgroupError;
use super::file::{self, keyed};
use super::layout::Cgroups;
use super::path::CgroupPath;
use super::remove::descendants;

/// Rounds of looking for processes that were forked meanwhile. Each round kills whoever could fork
/// in the one before, so more than a few means that something is put in from outside.
const KILL_ROUNDS: usize = 100;

/// Between two looks at a hierarchy that cannot tell when it becomes empty.
const LEGACY_POLL: Duration = Duration::from_millis(2);

impl Cgroups {
    /// How a process enters: the v2 directory for `CLONE_INTO_CGROUP`, and the `tasks` files of the
    /// v1 hierarchies, to each of which a single-threaded process writes `0` itself.
    #[must_use]
    pub fn entry(&self, path: &CgroupPath) -> (Option<PathBuf>, Vec<PathBuf>) {
        let tasks = self
            .v1
            .iter()
            .map(|v1| path.below(&v1.mount_point).join("tasks"));
        (self.unified_dir(path), tasks.collect())
    }

    /// Whether there is a process in the cgroup or below it. Absence is emptiness.
    ///
    /// # Errors
    ///
    /// When the kernel's files cannot be read.
    pub fn is_populated(&self, path: &CgroupPath) -> Result<bool, CgroupError> {
        if let Some(dir) = self.unified_dir(&path.whole()) {
            return match read_or_gone(&dir, "cgroup.events")? {
                Some(text) => Ok(keyed(&text, "populated") == Some(1)),
                None => Ok(false),
            };
        }
        let Some(first) = self.v1.first() else {
            return Ok(false);
        };
        Ok(!processes(&path.below(&first.mount_point))?.is_empty())
    }

    /// The processes in the cgroup or below it, in no order. Absence is emptiness.
    ///
    /// # Errors
    ///
    /// When the kernel's files cannot be read.
    pub fn list_processes(&self, path: &CgroupPath) -> Result<Vec<i32>, CgroupError> {
        let first = self.v1.first().map(|v1| path.below(&v1.mount_point));
        match self.unified_dir(path).or(first) {
            Some(dir) => Ok(processes(&dir)?.into_iter().collect()),
            None => Ok(Vec::new()),
        }
    }

    /// Waits until the cgroup is empty, at most `timeout`. Returns whether it is.
    ///
    /// # Errors
    ///
    /// When the kernel's files cannot be read.
    pub fn wait_until_empty(
        &self,
        path: &CgroupPath,
        timeout: Duration,
    ) -> Result<bool, CgroupError> {
        let deadline = Instant::now() + timeout;
        let events = self.unified_dir(&path.whole());
        let events = events.map(|dir| dir.join("cgroup.events"));
        let Some(events) = events else {
            return self.poll_until_empty(path, deadline);
        };
        let mut file = match File::open(&events) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(CgroupError::file("open", &events)(error)),
        };
        loop {
            // Reading arms the notification, so nothing is missed between it and the wait.
            let mut text = String::new();
            let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
            match read {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(true),
                Err(error) => return Err(CgroupError::file("read", &events)(error)),
                Ok(_) if keyed(&text, "populated") != Some(1) => return Ok(true),
                Ok(_) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&file, PollFlags::PRI)], left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(CgroupError::file("wait for", &events)(errno.into())),
            }
        }
    }

    /// A v1 hierarchy tells nobody when it becomes empty.
    fn poll_until_empty(&self, path: &CgroupPath, deadline: Instant) -> Result<bool, CgroupError> {
        while self.is_populated(path)? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LEGACY_POLL);
        }
        Ok(true)
    }

    /// Sends SIGKILL to every process in the cgroup and below it. Does not wait for them to end.
    /// Absence is success.
    ///
    /// # Errors
    ///
    /// [`CgroupError::InvalidPath`] for the root; otherwise what the kernel refused.
    pub fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        require_not_root(path)?;
        if let Some(dir) = self.unified_dir(&path.whole()) {
            match file::write(&dir, "cgroup.kill", "1") {
                Ok(()) => return Ok(()),
                Err(error) if !error.is(libc::ENOENT) => return Err(error),
                Err(_) if !dir.exists() => return Ok(()),
                // Before Linux 5.14.
                Err(_) => return kill_one_by_one(&dir),
            }
        }
        let Some(first) = self.v1.first() else {
            return Ok(());
        };
        kill_one_by_one(&path.below(&first.mount_point))
    }
}

fn read_or_gone(dir: &Path, name: &str) -> Result<Option<String>, CgroupError> {
    match file::read_if_present(dir, name) {
        Err(error) if error.is(libc::ENODEV) => Ok(None),
        other => other,
    }
}

/// Kills until a round finds nobody new. A killed process forks no more, so each round leaves only
/// what was forked before its own signal arrived.
fn kill_one_by_one(dir: &Path) -> Result<(), CgroupError> {
    let mut killed: HashSet<i32> = HashSet::new();
    for _ in 0..KILL_ROUNDS {
        let mut found: Vec<(i32, OwnedFd)> = Vec::new();
        for pid in processes(dir)?.difference(&killed) {
            if let Some(handle) =
                Pid::from_raw(*pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            {
                found.push((*pid, handle));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        // A number may have passed to another process between reading it and opening it. What is
        // still listed now is what the handle refers to.
        let listed = processes(dir)?;
        for (pid, handle) in found {
            if listed.contains(&pid) {
                // It may have ended by itself.
                let _ = pidfd_send_signal(&handle, Signal::KILL);
                killed.insert(pid);
            }
        }
    }
    Err(CgroupError::StillPopulated(dir.to_owned()))
}

/// Process ids in a directory and those below it. Absence is emptiness.
fn processes(dir: &Path) -> Result<HashSet<i32>, CgroupError> {
    let mut pids = HashSet::new();
    for dir in descendants(dir)? {
        let text = read_or_gone(&dir, "cgroup.procs")?.unwrap_or_default();
        pids.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid > 0),
        );
    }
    Ok(pids)
}
