//! A process the shim holds, alive or dead.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::output::Output;
use crate::runtime::launch::Identity;
use crate::shim::protocol::{ExitRecord, HeldProcess, ProcessId, ProcessKind};

/// One process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) kind: ProcessKind,
    pub(super) pid: i32,
    pub(super) start_time: u64,
    /// `None` only for an adopted process that was dead and of which nobody had a pidfd.
    pub(super) pidfd: Option<OwnedFd>,
    /// When it was seen to run, nanoseconds since 1970; 0 if it was adopted.
    pub(super) started_at_ns: i64,
    /// Who it runs as, if we know.
    pub(super) identity: Option<Identity>,
    /// `None` while it runs.
    pub(super) exit: Option<ExitRecord>,
    pub(super) output: Output,
    /// The cgroup that a command has for itself.
    pub(super) leaf: Option<PathBuf>,
}

impl Process {
    pub(super) fn is_running(&self) -> bool {
        self.exit.is_none()
    }

    pub(super) fn describe(&self, id: &ProcessId) -> HeldProcess {
        let loss = self.output.loss();
        HeldProcess {
            id: id.clone(),
            kind: self.kind,
            pid: self.pid,
            start_time: self.start_time,
            exit: self.exit.clone(),
            lost_log_lines: loss.lines,
            lost_log_bytes: loss.bytes,
        }
    }
}

/// When a process started, in clock ticks since boot (`proc_pid_stat(5)`, field 22).
///
/// # Errors
/// There is no such process, or `/proc` cannot be read.
pub(super) fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "/proc/<pid>/stat is malformed");
    // The command name may contain anything, ')' as well; the last one ends it. It is field 2.
    let name_end = memchr::memrchr(b')', &stat).ok_or_else(malformed)?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).map_err(|_| malformed())?;
    rest.split_ascii_whitespace()
        .nth(19)
        .and_then(|text| text.parse().ok())
        .ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_started_after_the_system_and_before_now() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let ticks = start_time(std::process::id() as i32).unwrap();
        assert!(ticks > 0 && (ticks as f64) <= (seconds + 1.0) * 100.0);
        assert!(start_time(i32::MAX).is_err());
    }
}
