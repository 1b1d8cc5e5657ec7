//! What the node's cgroups count and limit.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceType, LinuxMemoryBuilder, LinuxResourcesBuilder,
};

use super::probe::{Need, Node, Probe, always, passing_name, whole};
use crate::cgroup::{CgroupPath, Cgroups, Driver, Layout, Systemd};
use crate::id::random_name;

const CONTROLLER: &str = "a kernel that has the controller; on v1 it must be mounted below \
                          /sys/fs/cgroup, on v2 cgroup_disable must not name it";

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "cgroup.hierarchy",
        what: "cgroups are mounted",
        need: Need::Required,
        costs: "no container starts",
        mend: "mount cgroup2 on /sys/fs/cgroup",
        applies: always,
        look: hierarchy,
    },
    Probe {
        name: "cgroup.limits",
        what: "cgroups can be made, limited and removed",
        need: Need::Required,
        costs: "no container starts",
        mend: "let the daemon write below /sys/fs/cgroup; on v2 no process may be in the cgroups \
               above",
        applies: always,
        look: |_| within(limits),
    },
    controller(
        "cgroup.cpu",
        "CPU shares and quotas (cpu)",
        "cpu",
        "CPU is not limited",
    ),
    controller(
        "cgroup.cpuset",
        "CPUs and memory nodes (cpuset)",
        "cpuset",
        "containers cannot be held to CPUs",
    ),
    controller(
        "cgroup.memory",
        "memory limits (memory)",
        "memory",
        "memory is not limited, and no kill for want of it is seen",
    ),
    controller(
        "cgroup.pids",
        "process limits (pids)",
        "pids",
        "processes are not limited",
    ),
    controller(
        "cgroup.hugetlb",
        "huge pages (hugetlb)",
        "hugetlb",
        "huge pages are neither limited nor counted",
    ),
    Probe {
        name: "cgroup.io",
        what: "input and output are counted (io, blkio)",
        need: Need::Wanted,
        costs: "statistics have no input and output",
        mend: CONTROLLER,
        applies: always,
        look: |_| {
            let cgroups = found()?;
            match ["io", "blkio"]
                .iter()
                .find(|one| cgroups.has_controller(one))
            {
                Some(name) => Ok((*name).to_owned()),
                None => Err("neither controller is there".into()),
            }
        },
    },
    Probe {
        name: "cgroup.swap",
        what: "swap is limited",
        need: Need::Wanted,
        costs: "containers may swap beyond their limits",
        mend: "on v1 boot with swapaccount=1; on v2 a kernel with SWAP",
        applies: always,
        look: |_| within(|_, path| file_of(path, &SWAP)),
    },
    Probe {
        name: "cgroup.kill",
        what: "a cgroup is killed at once (cgroup.kill)",
        need: Need::Wanted,
        costs: "containers are killed process by process, which a fork bomb can draw out",
        mend: "run Linux 5.14 or newer with a cgroup2 mount, beside v1 if need be",
        applies: always,
        look: |_| within(|_, path| file_of(path, &["cgroup.kill"])),
    },
    Probe {
        name: "cgroup.marks",
        what: "cgroups keep the daemon's mark (trusted.*)",
        need: Need::Wanted,
        costs: "cgroups that were left over are recognised below the configured root alone",
        mend: "run Linux 5.7 or newer",
        applies: always,
        look: |_| within(marks),
    },
    Probe {
        name: "cgroup.devices",
        what: "devices are allowed one by one",
        need: Need::Required,
        costs: "on cgroup v2 no container starts; on v1 one that may make device nodes (MKNOD) \
                reaches every device of the node",
        mend: "on v2 a kernel with CONFIG_CGROUP_BPF, on v1 the controller devices",
        applies: always,
        look: |_| within(devices),
    },
    Probe {
        name: "cgroup.root",
        what: "the configured root is a cgroup path",
        need: Need::Required,
        costs: "the daemon does not start",
        mend: "set [cgroup] root to an absolute path such as /quilt, or with the systemd driver \
               to a slice such as quilt.slice",
        applies: always,
        look: |node| {
            let root = node.config.cgroup.root();
            root.map(|path| path.to_string()).map_err(whole)
        },
    },
    Probe {
        name: "cgroup.systemd",
        what: "systemd makes cgroups",
        need: Need::Required,
        costs: "the daemon does not start",
        mend: "run systemd 244 or newer with a system bus (package dbus) and cgroup v2 alone \
               (systemd.unified_cgroup_hierarchy=1), or set [cgroup] driver to cgroupfs, as \
               kubelet's cgroupDriver",
        applies: |node| node.config.cgroup.driver == Driver::Systemd,
        look: |_| {
            let executable = std::env::current_exe().map_err(|error| error.to_string())?;
            let systemd = Systemd::new(executable);
            found()?.with_systemd(systemd.clone()).map_err(whole)?;
            let version = systemd.version().map_err(whole)?;
            Ok(format!("version {version}"))
        },
    },
];

/// Where swap is limited, in either version.
const SWAP: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];

const fn controller(
    name: &'static str,
    what: &'static str,
    controller: &'static str,
    costs: &'static str,
) -> Probe {
    Probe {
        name,
        what,
        need: Need::Wanted,
        costs,
        mend: CONTROLLER,
        applies: always,
        look: match controller.as_bytes() {
            b"cpu" => |_| has("cpu"),
            b"cpuset" => |_| has("cpuset"),
            b"memory" => |_| has("memory"),
            b"pids" => |_| has("pids"),
            _ => |_| has("hugetlb"),
        },
    }
}

fn found() -> Result<Cgroups, String> {
    Cgroups::probe(Path::new("/sys/fs/cgroup")).map_err(whole)
}

fn has(controller: &str) -> Result<String, String> {
    match found()?.has_controller(controller) {
        true => Ok(String::new()),
        false => Err("the controller is not there".into()),
    }
}

fn hierarchy(_node: &Node) -> Result<String, String> {
    Ok(match found()?.layout() {
        Layout::Unified => "v2",
        Layout::Hybrid => "v1, with v2 beside it",
        Layout::Legacy => "v1",
    }
    .into())
}

/// Tries something on a cgroup that is there for no longer.
fn within(
    work: impl FnOnce(&Cgroups, &CgroupPath) -> Result<String, String>,
) -> Result<String, String> {
    let cgroups = found()?;
    let name = format!("/{}", passing_name());
    let path = CgroupPath::parse(&name).map_err(whole)?;
    let made = cgroups.ensure(&path, None).map_err(whole);
    let tried = made.and_then(|()| work(&cgroups, &path));
    let removed = cgroups.remove(&path).map_err(whole);
    tried.and_then(|detail| removed.map(|()| detail))
}

fn limits(cgroups: &Cgroups, path: &CgroupPath) -> Result<String, String> {
    if !cgroups.has_controller("memory") {
        return Ok("made, without a memory limit".into());
    }
    let memory = LinuxMemoryBuilder::default().limit(64_i64 << 20).build();
    let memory = memory.map_err(|error| error.to_string())?;
    let limits = LinuxResourcesBuilder::default().memory(memory).build();
    let limits = limits.map_err(|error| error.to_string())?;
    let set = cgroups.ensure(path, Some(&limits));
    set.map(|()| String::new()).map_err(whole)
}

/// Nothing but the null device may be used in it.
fn devices(cgroups: &Cgroups, path: &CgroupPath) -> Result<String, String> {
    if cgroups.layout() == Layout::Legacy {
        return has("devices");
    }
    let mut null = LinuxDeviceCgroup::default();
    null.set_allow(true).set_typ(Some(LinuxDeviceType::C));
    null.set_major(Some(1)).set_minor(Some(3));
    let rules = LinuxResourcesBuilder::default()
        .devices([LinuxDeviceCgroup::default(), null])
        .build();
    let rules = rules.map_err(|error| error.to_string())?;
    let set = cgroups.ensure(path, Some(&rules));
    set.map(|()| String::new()).map_err(whole)
}

fn marks(cgroups: &Cgroups, path: &CgroupPath) -> Result<String, String> {
    let mark = "quilt-doctor";
    let name = path.join(&random_name()).map_err(whole)?;
    let made = cgroups
        .ensure(&name, None)
        .and_then(|()| cgroups.mark(&name, mark))
        .and_then(|()| cgroups.list_ids(path));
    let found = made.map_err(whole)?;
    let kept = found.iter().any(|one| one.mark.as_deref() == Some(mark));
    match kept {
        true => Ok(String::new()),
        false => Err("the kernel does not keep it".into()),
    }
}

/// Whether the cgroup has one of these files in any hierarchy.
fn file_of(path: &CgroupPath, names: &[&str]) -> Result<String, String> {
    let table = crate::sys::mountinfo::read().map_err(|error| error.to_string())?;
    let mounts = table
        .into_iter()
        .filter(|entry| ["cgroup", "cgroup2"].contains(&entry.fs_type.as_str()));
    let dirs: Vec<PathBuf> = mounts.map(|entry| path.below(&entry.mount_point)).collect();
    let there = |name: &&&str| dirs.iter().any(|dir| dir.join(name).exists());
    match names.iter().find(there) {
        Some(name) => Ok((*name).to_owned()),
        None => Err(format!("there is no {}", names.join(" and no "))),
    }
}
