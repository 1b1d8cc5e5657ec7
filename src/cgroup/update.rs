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
use super::systemd::Systemd;

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

/// The limits that a cgroup had before a change.
#[derive(Debug)]
pub struct Before {
    held: Vec<Held>,
    told: Option<Told>,
}

/// Who is told of the limits of a cgroup besides the kernel.
#[derive(Debug)]
struct Told {
    systemd: Systemd,
    unit: String,
    dir: PathBuf,
}

impl Told {
    fn tell(&self) -> Result<(), CgroupError> {
        self.systemd.tell(&self.unit, &self.dir)
    }
}

/// A file, and what it held.
#[derive(Debug)]
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

    /// Changes the limits of a cgroup that exists, and tells systemd if it is one of its. If the
    /// kernel refuses one of them, or systemd, those that were set before are put back.
    ///
    /// # Errors
    ///
    /// As [`Cgroups::check`]; otherwise the file and value that the kernel refused: `EBUSY` for
    /// less memory than is in use, `EINVAL` and `EACCES` for what the parent does not allow; and
    /// [`CgroupError::Systemd`].
    pub fn update(
        &self,
        path: &CgroupPath,
        resources: &LinuxResources,
    ) -> Result<Before, CgroupError> {
        require_not_root(path)?;
        resources::validate(self, resources)?;
        let before = Before {
            held: self.held(path, resources)?,
            told: self.told(path),
        };
        let set = resources::apply(self, path, resources);
        match set.and_then(|()| before.told.as_ref().map_or(Ok(()), Told::tell)) {
            Ok(()) => Ok(before),
            Err(error) => {
                before.put_back();
                Err(error)
            }
        }
    }

    fn told(&self, path: &CgroupPath) -> Option<Told> {
        let scope = path.units().map(|units| units.scope);
        Some(Told {
            systemd: self.systemd.clone()?,
            unit: scope.or_else(|| path.slice().map(str::to_owned))?,
            dir: self.unified_dir(path)?,
        })
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

impl Before {
    /// Writes back what has changed. Some limits bound each other, so one may be taken only after
    /// another: rounds go on as long as one is taken. What the kernel does not take is logged.
    pub fn put_back(&self) {
        let differs = |held: &&Held| is_other(&held.dir, held);
        let mut left: Vec<&Held> = self.held.iter().filter(differs).collect();
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
        if let Some(told) = &self.told
            && let Err(error) = told.tell()
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                unit = told.unit,
                error,
                "systemd does not know of former limits"
            );
        }
    }
}

fn is_other(dir: &Path, held: &Held) -> bool {
    !matches!(file::read(dir, &held.name), Ok(now) if now == held.value)
}

/// Files with a line for each device or node take one line at a time. One that was empty (a v2
/// cpuset without a set) becomes so again by an empty line.
fn write_lines(held: &Held) -> Result<(), CgroupError> {
    if held.value.is_empty() {
        return file::write(&held.dir, &held.name, "\n");
    }
    let mut lines = held.value.lines();
    lines.try_for_each(|line| file::write(&held.dir, &held.name, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_held_nothing_is_emptied_and_what_held_lines_gets_each() {
        let dir = tempfile::tempdir().unwrap();
        let held = |name: &str, value: &str| {
            std::fs::write(dir.path().join(name), value).unwrap();
            let (dir, name, value) = (dir.path().to_owned(), name.into(), value.into());
            Held { dir, name, value }
        };
        let before = Before {
            held: vec![held("cpuset.cpus", ""), held("cpu.max", "max 100000")],
            told: None,
        };
        for name in ["cpuset.cpus", "cpu.max"] {
            std::fs::write(dir.path().join(name), "0").unwrap();
        }
        before.put_back();
        let now = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(now("cpuset.cpus").trim(), "");
        assert_eq!(now("cpu.max").trim(), "max 100000");
    }
}
