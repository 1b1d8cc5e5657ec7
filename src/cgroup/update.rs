//! Other limits for a cgroup that is in use: all of them, or none.
//!
//! The kernel takes one file at a time and may refuse any. So what the files hold is read first,
//! and written back when one is refused.

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::create::require_not_root;
use super::error::CgroupError;
use super::file;
use super::layout::Cgroups;
use super::path::CgroupPath;
use super::resources;

/// The files behind the limits of a container: v1 controller and file.
const V1: [(&str, &str); 11] = [
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpu", "cpu.cfs_burst_us"),
    ("cpu", "cpu.idle"),
    ("cpuset", "cpuset.cpus"),
    ("cpuset", "cpuset.mems"),
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("memory", "memory.soft_limit_in_bytes"),
    ("pids", "pids.max"),
];

/// The same in v2.
const V2: [(&str, &str); 10] = [
    ("cpu", "cpu.idle"),
    ("cpu", "cpu.weight"),
    ("cpu", "cpu.max"),
    ("cpu", "cpu.max.burst"),
    ("cpuset", "cpuset.cpus"),
    ("cpuset", "cpuset.mems"),
    ("memory", "memory.swap.max"),
    ("memory", "memory.max"),
    ("memory", "memory.low"),
    ("pids", "pids.max"),
];

/// A file, and what it held.
struct Held {
    dir: PathBuf,
    name: String,
    value: String,
}

impl Cgroups {
    /// Checks limits as far as that goes without a cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::InvalidValue`] and [`CgroupError::ControllerMissing`].
    pub fn check(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        resources::validate(self, resources)
    }

    /// Changes the limits of a cgroup that exists. If the kernel refuses one of them, those that it
    /// took before are put back.
    ///
    /// # Errors
    ///
    /// As [`Cgroups::check`]; otherwise the file and value that the kernel refused: `EBUSY` for
    /// less memory than is in use, `EINVAL` and `EACCES` for what the parent does not allow.
    pub fn update(&self, path: &CgroupPath, resources: &LinuxResources) -> Result<(), CgroupError> {
        require_not_root(path)?;
        resources::validate(self, resources)?;
        let held = self.held(path, resources)?;
        let applied = resources::apply(self, path, resources);
        if applied.is_err() {
            put_back(&held);
        }
        applied
    }

    /// What every file that may be written holds now.
    fn held(
        &self,
        path: &CgroupPath,
        resources: &LinuxResources,
    ) -> Result<Vec<Held>, CgroupError> {
        let mut files: Vec<(PathBuf, String)> = Vec::new();
        let mut add = |dir: Option<PathBuf>, name: &str| {
            files.extend(dir.map(|dir| (dir, name.to_owned())));
        };
        for (controller, name) in V1 {
            add(self.v1_dir(controller, path), name);
        }
        for (controller, name) in V2 {
            add(self.v2_dir(controller, path), name);
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            let size = limit.page_size();
            let v1 = format!("hugetlb.{size}.limit_in_bytes");
            add(self.v1_dir("hugetlb", path), &v1);
            add(self.v2_dir("hugetlb", path), &format!("hugetlb.{size}.max"));
        }
        for name in resources.unified().iter().flatten().map(|(name, _)| name) {
            add(self.unified_dir(path), name);
        }
        let mut held = Vec::with_capacity(files.len());
        for (dir, name) in files {
            if let Some(value) = file::read_if_present(&dir, &name)? {
                held.push(Held { dir, name, value });
            }
        }
        Ok(held)
    }
}

/// Writes back what has changed. Some limits bound each other, so one may be taken only after
/// another: rounds go on as long as one is taken.
fn put_back(held: &[Held]) {
    let differs = |held: &&Held| is_other(&held.dir, held);
    let mut left: Vec<&Held> = held.iter().filter(differs).collect();
    loop {
        let before = left.len();
        left.retain(|held| write_lines(held).is_err() || is_other(&held.dir, held));
        if left.is_empty() || left.len() == before {
            break;
        }
    }
    for held in left {
        tracing::warn!(
            file = %held.dir.join(&held.name).display(),
            value = held.value,
            "cannot put a limit back"
        );
    }
}

fn is_other(dir: &Path, held: &Held) -> bool {
    !matches!(file::read(dir, &held.name), Ok(now) if now == held.value)
}

/// Files with a line for each device or node take one line at a time.
fn write_lines(held: &Held) -> Result<(), CgroupError> {
    let mut lines = held.value.lines();
    lines.try_for_each(|line| file::write(&held.dir, &held.name, line))
}
