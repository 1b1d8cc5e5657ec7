//! The OOM score of a container that runs: that of its processes, which cgroups know nothing of.

use std::fs;
use std::io;

use super::ReconcileError;
use crate::cgroup::{CgroupPath, Cgroups};

/// Gives the processes of a cgroup another score (-1000 to 1000; proc_pid_oom_score_adj(5)), those
/// that have the former one: who has given itself another keeps that. If one cannot be changed,
/// those before it are changed back.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn change(
    cgroups: &Cgroups,
    path: &CgroupPath,
    (from, to): (i64, i64),
) -> Result<(), ReconcileError> {
    if from == to {
        return Ok(());
    }
    let mut changed = Vec::new();
    for pid in cgroups.list_processes(path)? {
        match exchange(pid, from, to) {
            Ok(true) => changed.push(pid),
            Ok(false) => {}
            Err(error) => {
                for pid in changed {
                    // What it was changed from it may be again.
                    let _ = exchange(pid, to, from);
                }
                let file = format!("/proc/{pid}/oom_score_adj");
                return Err(ReconcileError::file("write", file)(error));
            }
        }
    }
    Ok(())
}

/// Whether the process had that score. One that has ended has none.
fn exchange(pid: i32, from: i64, to: i64) -> io::Result<bool> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let changed = fs::read_to_string(&path).and_then(|now| {
        let has = now.trim().parse() == Ok(from);
        if has {
            fs::write(&path, to.to_string())?;
        }
        Ok(has)
    });
    match changed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        other => other,
    }
}
