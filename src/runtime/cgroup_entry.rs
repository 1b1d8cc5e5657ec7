//! Entering the cgroups that were made for a process. Not a cgroup driver: nothing is created.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::error::{At, LaunchError, stage};
use super::plan::CgroupEntry;

/// Moves the calling process, which has one thread, into the cgroups of `entry`. `born_in_unified`
/// says that clone3 has put it into the cgroup v2 one.
pub(super) fn enter(entry: &CgroupEntry, born_in_unified: bool) -> Result<(), LaunchError> {
    for file in &entry.v1_tasks_files {
        write_self(file).at(stage::CGROUP, || format!("join cgroup {file:?}"))?;
    }
    match &entry.unified_dir {
        Some(directory) if !born_in_unified => {
            let file = directory.join("cgroup.procs");
            write_self(&file).at(stage::CGROUP, || format!("join cgroup {file:?}"))
        }
        _ => Ok(()),
    }
}

/// `0` stands for the writer, so that no PID has to be translated between namespaces.
fn write_self(file: &Path) -> Result<(), Errno> {
    let file = openat(CWD, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, b"0")).map(drop)
}
