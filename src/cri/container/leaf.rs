//! A cgroup for one command below its container's, so that a command whose time is over ends with
//! all its children (cgroup v2, `cgroup.kill`; on a hybrid node in the unified hierarchy).
//!
//! Where there is no unified hierarchy there is no leaf, and the command alone is killed.

use std::path::{Path, PathBuf};

use crate::id::ContainerId;
use crate::runtime::plan::CgroupEntry;

/// The leaf; dropping it removes it.
pub(super) struct Leaf {
    dir: PathBuf,
    container: PathBuf,
}

impl Leaf {
    /// Makes a leaf below the container's cgroup and points `entry` at it.
    pub(super) fn make(entry: &mut CgroupEntry, id: &ContainerId) -> Option<Self> {
        let container = entry.unified_dir.clone()?;
        // Not 64 digits long: cAdvisor would take it for a container.
        let dir = container.join(format!("exec-{}", id.short()));
        std::fs::create_dir(&dir).ok()?;
        entry.unified_dir = Some(dir.clone());
        Some(Self { dir, container })
    }

    /// Kills everything in it.
    pub(super) fn kill(&self) -> std::io::Result<()> {
        std::fs::write(self.dir.join("cgroup.kill"), "1")
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // What a finished command left running goes on as the container's.
        if std::fs::remove_dir(&self.dir).is_err() {
            move_processes(&self.dir, &self.container);
            // Should a killed process still be there, the leaf goes with the container.
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}

fn move_processes(from: &Path, to: &Path) {
    let left = std::fs::read_to_string(from.join("cgroup.procs")).unwrap_or_default();
    for pid in left.lines() {
        // One that has ended meanwhile cannot be moved and need not be.
        let _ = std::fs::write(to.join("cgroup.procs"), pid);
    }
}
