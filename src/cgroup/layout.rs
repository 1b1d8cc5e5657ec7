//! Which cgroup hierarchies the node has mounted, and where (cgroups(7)).
//!
//! Looked at once, at the start. Mounts nothing.

use std::path::{Path, PathBuf};

use super::error::CgroupError;
use super::path::CgroupPath;
use super::systemd::Systemd;
use crate::sys::mountinfo::{self, MountEntry};

/// The v1 controllers that containers join. The others (`net_cls`, `net_prio`, `perf_event`,
/// `rdma`, `misc`) bring us nothing, and each one joined costs every start.
const V1_CONTROLLERS: [&str; 9] = [
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb",
];

/// The named v1 hierarchy that systemd keeps its own view of processes in.
const SYSTEMD: &str = "name=systemd";

/// How the node's hierarchies are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// cgroup v2 only.
    Unified,
    /// cgroup v1 only.
    Legacy,
    /// v1 controllers, and a v2 hierarchy beside them.
    Hybrid,
}

/// One v1 hierarchy that containers join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount_point: PathBuf,
    /// Several, where they are mounted together (`cpu,cpuacct`).
    pub(super) controllers: Vec<String>,
}

/// The node's cgroup hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    pub(super) unified: Option<PathBuf>,
    /// Controllers that the v2 hierarchy has, in the kernel's order.
    pub(super) unified_controllers: Vec<String>,
    pub(super) v1: Vec<Hierarchy>,
    /// Who makes cgroups in slices, under the systemd driver.
    pub(super) systemd: Option<Systemd>,
}

impl Cgroups {
    /// Looks at what is mounted at or below `cgroup_mount`, which is `/sys/fs/cgroup`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotMounted`] when that is nothing; [`CgroupError::File`] when the mount table
    /// or the list of controllers cannot be read.
    pub fn probe(cgroup_mount: &Path) -> Result<Self, CgroupError> {
        let table = mountinfo::read().map_err(CgroupError::file(
            "read",
            Path::new("/proc/thread-self/mountinfo"),
        ))?;
        let mut found = Self::from_mounts(&table, cgroup_mount)?;
        if let Some(unified) = &found.unified {
            let path = unified.join("cgroup.controllers");
            let text = std::fs::read_to_string(&path).map_err(CgroupError::file("read", &path))?;
            found.unified_controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    fn from_mounts(table: &[MountEntry], cgroup_mount: &Path) -> Result<Self, CgroupError> {
        let mut found = Self {
            unified: None,
            unified_controllers: vec![],
            v1: vec![],
            systemd: None,
        };
        for entry in table
            .iter()
            .filter(|entry| entry.mount_point.starts_with(cgroup_mount))
        {
            match entry.fs_type.as_str() {
                "cgroup2" => {
                    found
                        .unified
                        .get_or_insert_with(|| entry.mount_point.clone());
                }
                "cgroup" => found.add_v1(entry),
                _ => {}
            }
        }
        if found.unified.is_none() && found.v1.is_empty() {
            return Err(CgroupError::NotMounted(cgroup_mount.to_owned()));
        }
        Ok(found)
    }

    fn add_v1(&mut self, entry: &MountEntry) {
        let controllers: Vec<String> = entry
            .super_options
            .iter()
            .filter(|name| V1_CONTROLLERS.contains(&name.as_str()) || *name == SYSTEMD)
            .cloned()
            .collect();
        let known = self
            .v1
            .iter()
            .any(|hierarchy| hierarchy.controllers == controllers);
        if !controllers.is_empty() && !known {
            self.v1.push(Hierarchy {
                mount_point: entry.mount_point.clone(),
                controllers,
            });
        }
    }

    /// The same with systemd to make the cgroups of pods in slices.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotUnified`] beside cgroup v1, which systemd has given up;
    /// [`CgroupError::Systemd`] when it does not answer or is too old.
    pub fn with_systemd(self, systemd: Systemd) -> Result<Self, CgroupError> {
        if self.layout() != Layout::Unified {
            return Err(CgroupError::NotUnified);
        }
        let version = systemd.version()?;
        tracing::info!(version, "systemd makes the cgroups");
        Ok(Self {
            systemd: Some(systemd),
            ..self
        })
    }

    /// How the hierarchies are arranged.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match (&self.unified, self.v1.is_empty()) {
            (Some(_), true) => Layout::Unified,
            (Some(_), false) => Layout::Hybrid,
            (None, _) => Layout::Legacy,
        }
    }

    /// Whether a controller is there, in either version.
    #[must_use]
    pub fn has_controller(&self, controller: &str) -> bool {
        self.v1_mount(controller).is_some() || self.unified_has(controller)
    }

    pub(super) fn unified_has(&self, controller: &str) -> bool {
        self.unified_controllers
            .iter()
            .any(|name| name == controller)
    }

    fn v1_mount(&self, controller: &str) -> Option<&Path> {
        let mut hierarchies = self.v1.iter();
        hierarchies
            .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
            .map(|hierarchy| hierarchy.mount_point.as_path())
    }

    /// The directory of a cgroup in the hierarchy of a v1 controller.
    pub(super) fn v1_dir(&self, controller: &str, path: &CgroupPath) -> Option<PathBuf> {
        self.v1_mount(controller).map(|mount| path.below(mount))
    }

    /// The directory of a cgroup in the v2 hierarchy, controllers or not.
    pub(super) fn unified_dir(&self, path: &CgroupPath) -> Option<PathBuf> {
        self.unified.as_deref().map(|mount| path.below(mount))
    }

    /// The directory of a cgroup in the v2 hierarchy, if that hierarchy has the controller.
    pub(super) fn v2_dir(&self, controller: &str, path: &CgroupPath) -> Option<PathBuf> {
        self.unified_has(controller)
            .then(|| self.unified_dir(path))
            .flatten()
    }

    /// The directories of a cgroup in all hierarchies that containers join, the v2 one first.
    pub(super) fn all_dirs(&self, path: &CgroupPath) -> Vec<PathBuf> {
        let v1 = self
            .v1
            .iter()
            .map(|hierarchy| path.below(&hierarchy.mount_point));
        self.unified_dir(path).into_iter().chain(v1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[u8] = b"\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/perf_event rw - cgroup cgroup rw,perf_event
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:39 / /elsewhere/pids rw - cgroup cgroup rw,pids
";

    fn from(table: &[u8]) -> Result<Cgroups, CgroupError> {
        Cgroups::from_mounts(&mountinfo::parse(table), Path::new("/sys/fs/cgroup"))
    }

    #[test]
    fn controllers_that_bring_nothing_are_not_joined() {
        let cgroups = from(V1).unwrap();
        assert_eq!(cgroups.layout(), Layout::Legacy);
        assert_eq!(cgroups.v1.len(), 3);
        let path = CgroupPath::parse("/a/b").unwrap();
        let cpu = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/a/b");
        assert_eq!(cgroups.v1_dir("cpuacct", &path), Some(cpu));
        assert!(!cgroups.has_controller("perf_event") && !cgroups.has_controller("pids"));
    }

    #[test]
    fn the_three_layouts_are_told_apart() {
        let v2 = b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(from(v2).unwrap().layout(), Layout::Unified);
        let beside = b"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let hybrid = [V1, beside.as_slice()].concat();
        assert_eq!(from(&hybrid).unwrap().layout(), Layout::Hybrid);
        assert!(matches!(
            from(b"1 1 0:1 / / rw - ext4 x rw\n"),
            Err(CgroupError::NotMounted(_))
        ));
    }
}
