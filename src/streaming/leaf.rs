//! A cgroup for one command below its container's, so that a command whose time is over ends with
//! all its children (cgroup v2, `cgroup.kill`; on a hybrid node in the unified hierarchy).
//!
//! Where there is no unified hierarchy there is no leaf, and the command alone is killed.

use std::path::{Path, PathBuf};

use crate::id::ContainerId;
use crate::runtime::plan::{CgroupEntry, EXEC_LEAF_PREFIX};

/// The leaf; dropping it removes it.
pub(super) struct Leaf {
    dir: PathBuf,
    container: PathBuf,
}

impl Leaf {
    /// Makes a leaf below the container's cgroup `entry`. On a thread that may block: the kernel
    /// makes one cgroup at a time.
    pub(super) async fn make(entry: CgroupEntry, id: ContainerId) -> Option<Self> {
        let container = entry.unified_dir?;
        // Not 64 digits long: cAdvisor would take it for a container.
        let dir = container.join(format!("{EXEC_LEAF_PREFIX}{}", id.short()));
        let made = tokio::task::spawn_blocking(move || {
            // Made before anybody can stop waiting for it, so that it is removed in any case.
            std::fs::create_dir(&dir).ok()?;
            Some(Self { dir, container })
        });
        made.await.ok().flatten()
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills everything in it; `false` when that cannot be.
    pub(super) fn kill(&self) -> bool {
        std::fs::write(self.dir.join("cgroup.kill"), "1").is_ok()
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        let dir = std::mem::take(&mut self.dir);
        let container = std::mem::take(&mut self.container);
        let remove = move || remove(&dir, &container);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            // The daemon has ended: nobody waits.
            Err(_) => remove(),
        }
    }
}

fn remove(dir: &Path, container: &Path) {
    // What a finished command left running goes on as the container's.
    if std::fs::remove_dir(dir).is_err() {
        move_processes(dir, container);
        // Should a killed process still be there, the leaf goes with the container.
        let _ = std::fs::remove_dir(dir);
    }
}

fn move_processes(from: &Path, to: &Path) {
    let left = std::fs::read_to_string(from.join("cgroup.procs")).unwrap_or_default();
    for pid in left.lines() {
        // One that has ended meanwhile cannot be moved and need not be.
        let _ = std::fs::write(to.join("cgroup.procs"), pid);
    }
}
