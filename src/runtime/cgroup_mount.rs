//! `/sys/fs/cgroup` of a container, read-only or not, for each of the three layouts of a node.
//!
//! cgroup v2: the file system itself; with a cgroup namespace it begins at the container's cgroup.
//! cgroup v1 and hybrid: a tmpfs with a directory per hierarchy, on which the container's own
//! directory of that hierarchy is bound. The container sees only what it was placed in.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, stat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::{At, LaunchError};
use super::plan::CgroupEntry;
use crate::sys::mounts::{MountAttributes, set_attributes};

/// What will be shown, taken hold of while the node's paths still mean something.
#[derive(Debug)]
pub(super) enum CgroupSource {
    /// A cgroup2 file system.
    Unified,
    /// Detached mounts of the container's own directories, by the name of their hierarchy.
    Hierarchies(Vec<(String, OwnedFd)>),
}

/// Takes hold of the cgroups that the process has entered.
pub(super) fn prepare(entry: &CgroupEntry, at: &str) -> Result<CgroupSource, LaunchError> {
    if entry.v1_tasks_files.is_empty() {
        return Ok(CgroupSource::Unified);
    }
    let v1 = entry.v1_tasks_files.iter().filter_map(|file| file.parent());
    let mut hierarchies: Vec<(String, OwnedFd)> = Vec::new();
    for directory in v1.chain(entry.unified_dir.as_deref()) {
        let what = || format!("take hold of cgroup {directory:?}");
        let name = hierarchy_name(directory).at(at, what)?;
        if hierarchies.iter().any(|(seen, _)| *seen == name) {
            continue;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        hierarchies.push((name, open_tree(CWD, directory, flags).at(at, what)?));
    }
    Ok(CgroupSource::Hierarchies(hierarchies))
}

/// The name of the directory on which the hierarchy that holds `directory` is mounted: the last
/// one, going up, that is still on the same file system.
fn hierarchy_name(directory: &Path) -> Result<String, Errno> {
    let device = stat(directory)?.st_dev;
    let mut top = directory;
    while let Some(parent) = top.parent() {
        if stat(parent)?.st_dev != device {
            break;
        }
        top = parent;
    }
    let name = top.file_name().and_then(|name| name.to_str());
    name.map(ToOwned::to_owned).ok_or(Errno::INVAL)
}

/// Puts the hierarchies onto a fresh tmpfs that is mounted already.
pub(super) fn attach_hierarchies(
    tmpfs: &OwnedFd,
    hierarchies: &[(String, OwnedFd)],
    attributes: MountAttributes,
    at: &str,
) -> Result<(), LaunchError> {
    for (name, tree) in hierarchies {
        let what = || format!("show cgroup hierarchy {name:?}");
        mkdirat(tmpfs, name, Mode::from_raw_mode(0o755)).at(at, what)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = openat(tmpfs, name, flags, Mode::empty()).at(at, what)?;
        let private = MountAttributes {
            propagation: libc::MS_PRIVATE,
            ..attributes
        };
        set_attributes(tree, false, private).at(at, what)?;
        super::mounts::attach(tree, &target).at(at, what)?;
        for controller in name.split(',').filter(|part| *part != name) {
            // Programs look for `cpu` where a node mounts `cpu,cpuacct`.
            symlinkat(name, tmpfs, controller).at(at, what)?;
        }
    }
    set_attributes(tmpfs, false, attributes).at(at, || "restrict the cgroup tmpfs")
}
