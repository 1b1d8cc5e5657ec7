//! Creating a cgroup in every hierarchy, ready for processes to join.
//!
//! v1: a new `cpuset` cgroup has no CPUs and takes no process, so each level inherits its parent's.
//! v2: a controller is there only when every level above has it switched on for its children.

use std::io;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::error::CgroupError;
use super::file;
use super::layout::Cgroups;
use super::path::CgroupPath;
use super::resources;
use super::systemd::Holder;

/// v2 controllers that containers get.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "hugetlb", "pids"];

impl Cgroups {
    /// Makes the cgroup of a pod or container, with its limits, ready for a process. Under the
    /// systemd driver the process that comes back is to be kept until another has come in: an empty
    /// scope is taken away.
    ///
    /// # Errors
    ///
    /// As [`Cgroups::ensure`]; [`CgroupError::Systemd`] when systemd does not make the scope, and
    /// [`CgroupError::OtherDriver`] when nobody is to ask it.
    pub fn prepare(
        &self,
        path: &CgroupPath,
        resources: Option<&LinuxResources>,
    ) -> Result<Option<Holder>, CgroupError> {
        let Some(units) = path.units() else {
            self.ensure(path, resources)?;
            return Ok(None);
        };
        let Some((systemd, unified)) = self.systemd.as_ref().zip(self.unified.as_ref()) else {
            return Err(CgroupError::OtherDriver(path.to_string()));
        };
        if let Some(resources) = resources {
            resources::validate(self, resources)?;
        }
        let holder = systemd.start_scope(&units)?;
        // systemd has made it; anywhere else it would be found by nobody.
        let dir = path.below(unified);
        std::fs::metadata(&dir).map_err(CgroupError::file("find what systemd made,", &dir))?;
        self.enable_controllers(unified, path)?;
        if let Some(resources) = resources {
            resources::apply(self, path, resources)?;
        }
        systemd.tell(&units.scope, &dir)?;
        Ok(Some(holder))
    }

    /// Creates a cgroup and those above it, in every hierarchy that containers join, and sets its
    /// limits. What exists is kept; limits are set again. Limits that are not given stay as they
    /// are.
    ///
    /// # Errors
    ///
    /// [`CgroupError::InvalidPath`] for the root, [`CgroupError::InvalidValue`] and
    /// [`CgroupError::ControllerMissing`] before anything is touched; otherwise the file and value
    /// that the kernel refused.
    pub fn ensure(
        &self,
        path: &CgroupPath,
        resources: Option<&LinuxResources>,
    ) -> Result<(), CgroupError> {
        require_not_root(path)?;
        if let Some(resources) = resources {
            resources::validate(self, resources)?;
        }
        if let Some((systemd, name)) = self.systemd.as_ref().zip(path.slice())
            && !self.exists(path)
        {
            systemd.start_slice(name)?;
        }
        for hierarchy in &self.v1 {
            create_levels(&hierarchy.mount_point, path)?;
            if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(&hierarchy.mount_point, path)?;
            }
        }
        if let Some(unified) = &self.unified {
            create_levels(unified, path)?;
            self.enable_controllers(unified, path)?;
        }
        match resources {
            Some(resources) => resources::apply(self, path, resources),
            None => Ok(()),
        }
    }

    /// Switches the controllers on from the root down to the parent. A parent that has processes of
    /// its own refuses (`EBUSY`: no internal processes), except the real root.
    fn enable_controllers(&self, unified: &Path, path: &CgroupPath) -> Result<(), CgroupError> {
        let wanted: Vec<&str> = V2_CONTROLLERS
            .into_iter()
            .filter(|name| self.unified_has(name))
            .collect();
        let parent = path.parent().map(|parent| parent.below(unified));
        let Some(parent) = parent.filter(|_| !wanted.is_empty()) else {
            return Ok(());
        };
        if missing(&file::read(&parent, "cgroup.subtree_control")?, &wanted).is_empty() {
            return Ok(());
        }
        let root = CgroupPath::parse("/")?;
        let above = path.levels().filter(|level| level != path);
        for level in std::iter::once(root).chain(above) {
            let dir = level.below(unified);
            let available = file::read(&dir, "cgroup.controllers")?;
            let possible: Vec<&str> = wanted
                .iter()
                .copied()
                .filter(|name| has_word(&available, name))
                .collect();
            let switched_on = file::read(&dir, "cgroup.subtree_control")?;
            let value: Vec<String> = missing(&switched_on, &possible)
                .iter()
                .map(|name| format!("+{name}"))
                .collect();
            if !value.is_empty() {
                file::write(&dir, "cgroup.subtree_control", &value.join(" "))?;
            }
        }
        Ok(())
    }
}

pub(super) fn require_not_root(path: &CgroupPath) -> Result<(), CgroupError> {
    if path.is_root() {
        let reason = "the root is the node's own";
        return Err(CgroupError::InvalidPath {
            path: path.to_string(),
            reason,
        });
    }
    Ok(())
}

fn missing<'a>(switched_on: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    wanted
        .iter()
        .copied()
        .filter(|name| !has_word(switched_on, name))
        .collect()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|found| found == word)
}

/// Creates the directory, and those above it when they are missing.
fn create_levels(mount_point: &Path, path: &CgroupPath) -> Result<(), CgroupError> {
    if create_dir(&path.below(mount_point))? {
        return Ok(());
    }
    for level in path.levels() {
        let dir = level.below(mount_point);
        if !create_dir(&dir)? {
            let error = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(CgroupError::file("create", &dir)(error));
        }
    }
    Ok(())
}

/// False when the directory above is missing.
pub(super) fn create_dir(dir: &Path) -> Result<bool, CgroupError> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(true),
        Err(error) => Err(CgroupError::file("create", dir)(error)),
    }
}

/// Gives a cgroup its parent's CPUs and memory nodes where it has none, from the first one that has
/// some downwards. Returns what it has then.
fn inherit_cpuset(mount_point: &Path, path: &CgroupPath) -> Result<[String; 2], CgroupError> {
    const NAMES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
    let dir = path.below(mount_point);
    let mut values = [file::read(&dir, NAMES[0])?, file::read(&dir, NAMES[1])?];
    let Some(parent) = path
        .parent()
        .filter(|_| values.iter().any(String::is_empty))
    else {
        return Ok(values);
    };
    // As deep as a path can be, which is bounded.
    let inherited = inherit_cpuset(mount_point, &parent)?;
    for ((value, inherited), name) in values.iter_mut().zip(inherited).zip(NAMES) {
        if value.is_empty() {
            file::write(&dir, name, &inherited)?;
            *value = inherited;
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_switched_on() {
        assert_eq!(
            missing("cpu memory", &["cpu", "cpuset", "memory"]),
            ["cpuset"]
        );
        assert!(missing("cpu memory pids", &["cpu"]).is_empty());
    }

    #[test]
    fn controllers_are_switched_on_from_the_root_down() {
        // A directory laid out like a v2 hierarchy shows what is written where.
        let root = tempfile::tempdir().unwrap();
        let levels = ["", "a", "a/b"].map(|level| root.path().join(level));
        for dir in &levels {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(dir.join("cgroup.controllers"), "cpu io memory pids rdma\n").unwrap();
            std::fs::write(dir.join("cgroup.subtree_control"), "\n").unwrap();
        }
        let controllers = ["cpu", "io", "memory", "pids", "rdma"].map(str::to_owned);
        let cgroups = Cgroups {
            unified: Some(root.path().to_owned()),
            unified_controllers: controllers.into(),
            v1: vec![],
            systemd: None,
        };
        cgroups
            .ensure(&CgroupPath::parse("/a/b").unwrap(), None)
            .unwrap();
        let on = |dir: &Path| file::read(dir, "cgroup.subtree_control").unwrap();
        assert_eq!(on(&levels[0]), "+cpu +io +memory +pids");
        assert_eq!(on(&levels[1]), "+cpu +io +memory +pids");
        assert_eq!(on(&levels[2]), "", "the leaf is for processes");
    }
}
