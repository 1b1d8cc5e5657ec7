//! Removing cgroups, and finding which there are.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::create::require_not_root;
use super::error::CgroupError;
use super::layout::Cgroups;
use super::path::CgroupPath;

impl Cgroups {
    /// Removes a cgroup and all below it from every hierarchy, children first. Absence is success,
    /// and one failure does not stop the rest. What systemd has made for a pod or container it is
    /// told to stop.
    ///
    /// # Errors
    ///
    /// [`CgroupError::StillPopulated`] while there is a process in it (which can be so for a moment
    /// after the last one was reaped), [`CgroupError::InvalidPath`] for the root, otherwise what
    /// failed.
    pub fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        require_not_root(path)?;
        let units = path.units().map(|units| units.slice);
        let unit = units.or_else(|| path.slice().map(str::to_owned));
        if let Some((systemd, unit)) = self.systemd.as_ref().zip(unit)
            && self.exists(path)
        {
            // It would kill what is in there, and wait for it.
            if self.is_populated(path)? {
                return Err(CgroupError::StillPopulated(PathBuf::from(path.to_string())));
            }
            systemd.stop(&unit)?;
        }
        let path = path.whole();
        let mut errors = Vec::new();
        for dir in self.all_dirs(&path) {
            match remove_tree(&dir) {
                Ok(()) => {}
                Err(busy @ CgroupError::StillPopulated(_)) => errors.insert(0, busy),
                Err(error) => errors.push(error),
            }
        }
        // Whoever waits for processes to end needs to see that this is all that is missing.
        if matches!(errors.first(), Some(CgroupError::StillPopulated(_))) {
            return Err(errors.remove(0));
        }
        CgroupError::collect(errors)
    }

    /// Removes the cgroups above `path` that have become empty, up to but not including `stop_at`.
    /// One that is in use ends it, and is not an error.
    ///
    /// # Errors
    ///
    /// [`CgroupError::InvalidPath`] when `path` is not below `stop_at`; otherwise what failed.
    pub fn remove_empty_parents(
        &self,
        path: &CgroupPath,
        stop_at: &CgroupPath,
    ) -> Result<(), CgroupError> {
        let above: Vec<CgroupPath> = std::iter::successors(path.parent(), CgroupPath::parent)
            .take_while(|parent| parent != stop_at)
            .collect();
        if above.iter().any(CgroupPath::is_root) || path == stop_at {
            let reason = "not below the cgroup at which to stop";
            return Err(CgroupError::InvalidPath {
                path: path.to_string(),
                reason,
            });
        }
        for parent in above {
            for dir in self.all_dirs(&parent) {
                if !remove_dir(&dir)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether the cgroup, or what is left of it, exists in any hierarchy.
    #[must_use]
    pub fn exists(&self, path: &CgroupPath) -> bool {
        self.all_dirs(&path.whole()).iter().any(|dir| dir.is_dir())
    }

    /// The names of a cgroup's children, in any hierarchy, in order. Absence is no children.
    ///
    /// # Errors
    ///
    /// When a directory cannot be read.
    pub fn list_children(&self, path: &CgroupPath) -> Result<Vec<String>, CgroupError> {
        let mut names = BTreeSet::new();
        for dir in self.all_dirs(path) {
            let children = child_dirs(&dir)?;
            names.extend(children.iter().filter_map(|child| {
                child
                    .file_name()
                    .and_then(|name| name.to_str())
                    .map(str::to_owned)
            }));
        }
        Ok(names.into_iter().collect())
    }
}

/// A directory and all below it, each before its children. Absence is an empty list.
pub(super) fn descendants(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        open.extend(child_dirs(&dir)?);
        found.push(dir);
    }
    Ok(found)
}

pub(super) fn child_dirs(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(Vec::new()),
        _ if error.raw_os_error() == Some(libc::ENODEV) => Ok(Vec::new()),
        _ => Err(CgroupError::file("list", dir)(error)),
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return failed(error),
    };
    let mut children = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                children.push(entry.path());
            }
            Ok(_) => {}
            Err(error) => return failed(error),
        }
    }
    Ok(children)
}

/// The usual cgroup has no children, so the directory itself is tried first.
fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    if remove_dir(dir)? {
        return Ok(());
    }
    for dir in descendants(dir)?.into_iter().rev() {
        if !remove_dir(&dir)? {
            return Err(CgroupError::StillPopulated(dir));
        }
    }
    Ok(())
}

/// False when there are processes or children in it.
fn remove_dir(dir: &Path) -> Result<bool, CgroupError> {
    match std::fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error)
            if [Some(libc::EBUSY), Some(libc::ENOTEMPTY)].contains(&error.raw_os_error()) =>
        {
            Ok(false)
        }
        Err(error) => Err(CgroupError::file("remove", dir)(error)),
    }
}
