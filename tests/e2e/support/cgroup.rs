//! Cgroup files read back from the kernel, on v1, hybrid and v2 machines alike.

use std::fs;
use std::path::{Path, PathBuf};

use super::names::Names;

/// A mounted hierarchy: where, and which v1 controllers (none for v2).
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
    is_v2: bool,
}

/// The hierarchies this process sees (proc(5), mountinfo: `… mount-point … - type source options`).
fn hierarchies() -> Vec<Hierarchy> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let is_v2 = match after.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let mount = PathBuf::from(before.split(' ').nth(4)?);
        let controllers = after.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Hierarchy {
            mount,
            controllers,
            is_v2,
        })
    };
    text.lines().filter_map(parse).collect()
}

/// The daemon's part of every hierarchy, where it exists.
pub(crate) fn roots(names: &Names) -> Vec<PathBuf> {
    let below = names.cgroup_root.trim_start_matches('/');
    let all = hierarchies().into_iter().map(|h| h.mount.join(below));
    all.filter(|path| path.is_dir()).collect()
}

/// A cgroup of this path in every hierarchy, made.
pub(crate) fn make(path: &str) -> Vec<PathBuf> {
    let below = path.trim_start_matches('/');
    let all = hierarchies().into_iter().map(|h| h.mount.join(below));
    all.inspect(|dir| fs::create_dir_all(dir).expect("root may make cgroups"))
        .collect()
}

/// Every cgroup at and below `path`, deepest first.
pub(crate) fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.extend(tree(&entry.path()));
        }
    }
    found.push(path.to_owned());
    found
}

/// A file of the container's cgroup: `v1` of the hierarchy with `controller` or `v2` of the unified
/// one, whichever exists, without the line end.
pub(crate) fn read(names: &Names, id: &str, controller: &str, v1: &str, v2: &str) -> String {
    let below = names.cgroup_root.trim_start_matches('/');
    for hierarchy in hierarchies() {
        let file = match hierarchy.is_v2 {
            true => v2,
            false if hierarchy.controllers.iter().any(|c| c == controller) => v1,
            false => continue,
        };
        let dirs = tree(&hierarchy.mount.join(below));
        let own = dirs.iter().find(|dir| {
            dir.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(id))
        });
        if let Some(text) = own.and_then(|dir| fs::read_to_string(dir.join(file)).ok()) {
            return text.trim_end().to_owned();
        }
    }
    panic!("no cgroup of {id} has {v1} or {v2}");
}

/// Whether this controller, or what it counts, is the unified hierarchy's here.
pub(crate) fn is_v2(controller: &str) -> bool {
    let all = hierarchies();
    !all.iter()
        .any(|h| h.controllers.iter().any(|name| name == controller))
}

/// Freezes a container's processes, and thaws them when it is dropped. In cgroup v1 a frozen
/// process does not even notice SIGKILL; in v2 it does.
pub(crate) struct Frozen {
    file: PathBuf,
    thawed: &'static str,
}

/// Whether SIGKILL has no effect on what is frozen here.
pub(crate) fn frozen_is_stuck() -> bool {
    hierarchies()
        .iter()
        .any(|hierarchy| hierarchy.controllers.iter().any(|name| name == "freezer"))
}

impl Frozen {
    /// Freezes the container with this id; it must run.
    pub(crate) fn container(names: &Names, id: &str) -> Self {
        let stuck = frozen_is_stuck();
        let (name, frozen, thawed) = match stuck {
            true => ("freezer.state", "FROZEN", "THAWED"),
            false => ("cgroup.freeze", "1", "0"),
        };
        let below = names.cgroup_root.trim_start_matches('/');
        let files = hierarchies().into_iter().flat_map(|hierarchy| {
            let own = |dir: &PathBuf| {
                let name = dir.file_name().unwrap_or_default();
                name.to_string_lossy().contains(id)
            };
            let dirs = tree(&hierarchy.mount.join(below));
            dirs.into_iter().filter(own).map(|dir| dir.join(name))
        });
        let file = files.into_iter().find(|file| file.exists());
        let file = file.unwrap_or_else(|| panic!("no cgroup of {id} has {name}"));
        fs::write(&file, frozen).expect("the kernel freezes");
        Self { file, thawed }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Gone, if what was frozen has ended all the same.
        let _ = fs::write(&self.file, self.thawed);
    }
}
