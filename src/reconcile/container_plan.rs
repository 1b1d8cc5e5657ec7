//! From rows to a launch plan: every decision about a container is made here, and the node side
//! only carries it out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBlockIoBuilder, LinuxBuilder, LinuxCapabilitiesBuilder,
    LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxResourcesBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
};

use super::container_confinement::Confinement;
use super::devices::{self, Nodes};
use super::mounts::{self, SandboxMounts};
use super::{Back, ReconcileError, external, hooks, processes};
use crate::lifecycle::hook::Hook;
use crate::lifecycle::spec::{ContainerSpec, NamespaceMode, Resources};
use crate::lifecycle::ulimit::Ulimit;
use crate::lifecycle::{block_io, capability};
use crate::runtime::plan::{
    CgroupEntry, ImageVolume, LaunchPlan, PlanUser, Rootfs, SeccompFilter, Stdio,
};
use crate::snapshot::Snapshot;
use crate::state::container::Container;
use crate::state::sandbox::Sandbox;

/// Version of the OCI runtime spec that plans follow.
const OCI_VERSION: &str = "1.2.0";
/// Open files: what systemd gives its services (`DefaultLimitNOFILE`).
const FILES_SOFT: u64 = 1024;
const FILES_HARD: u64 = 524_288;

/// What a plan is made from besides the rows.
pub(super) struct Parts {
    /// The writable layer.
    pub(super) snapshot: Snapshot,
    /// The image's layers, topmost first.
    pub(super) lower: Vec<PathBuf>,
    /// Mounts of images, in the order of the request.
    pub(super) image_volumes: Vec<ImageVolume>,
    /// Seccomp and AppArmor.
    pub(super) confinement: Confinement,
    /// Device nodes.
    pub(super) devices: Nodes,
    /// All hooks that are there.
    pub(super) hooks: Vec<Hook>,
    /// The PID namespace of another container that it joins.
    pub(super) target: Option<PathBuf>,
}

/// Builds the plan of a container.
pub(super) fn build(
    back: &Back,
    container: &Container,
    sandbox: &Sandbox,
    parts: Parts,
) -> Result<LaunchPlan, ReconcileError> {
    let cgroup = back.member_cgroup(&sandbox.spec.cgroup_parent, container.id.as_str())?;
    let (unified_dir, v1_tasks_files) = back.cgroups.entry(&cgroup);
    let spec = &container.spec;
    let security = &spec.security;
    let log_path = Some(PathBuf::from(&container.log_path)).filter(|p| !p.as_os_str().is_empty());
    Ok(LaunchPlan {
        spec: runtime_spec(back, container, sandbox, &parts)
            .map_err(|error| ReconcileError::Plan(error.to_string()))?,
        rootfs: Rootfs {
            lower: parts.lower,
            upper: parts.snapshot.upper,
            work: parts.snapshot.work,
            mount_point: back.paths.mount_point(),
        },
        image_volumes: parts.image_volumes,
        user: PlanUser {
            user: spec.process.user.clone(),
            group: spec.process.group.clone(),
            additional_gids: security
                .supplemental_groups
                .iter()
                .filter_map(|gid| u32::try_from(*gid).ok())
                .collect(),
            merge_image_groups: !security.supplemental_groups_strict,
        },
        cgroup: CgroupEntry {
            unified_dir,
            v1_tasks_files,
            oom_counter: back.cgroups.oom_counter(&cgroup),
        },
        environment_bytes: spec.process.env_bytes.clone(),
        stdio: Stdio {
            fifo_dir: back.paths.container(&container.id),
            log_path,
            log_limits: back.log_limits,
            terminal: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
        },
        seccomp: parts
            .confinement
            .seccomp
            .map(|filter| SeccompFilter::new(&filter.program, filter.flags)),
        external: external::of(back, &container.id, sandbox, &cgroup)?,
    })
}

fn runtime_spec(
    back: &Back,
    container: &Container,
    sandbox: &Sandbox,
    parts: &Parts,
) -> Result<Spec, OciSpecError> {
    let spec = &container.spec;
    let security = &spec.security;
    let dir = back.paths.sandbox(&sandbox.id);
    let files = SandboxMounts {
        own_ipc: sandbox.spec.ipc == NamespaceMode::Pod,
        own_network: sandbox.spec.network == NamespaceMode::Pod,
        dir: dir.clone(),
    };
    let mut process = ProcessBuilder::default()
        .terminal(spec.tty)
        .args(spec.process.args.clone())
        .env(spec.process.env.clone())
        .cwd(&spec.process.cwd)
        .capabilities(capabilities(spec)?)
        .rlimits(limits(&back.ulimits)?)
        .no_new_privileges(security.no_new_privs)
        .oom_score_adj(i32::try_from(spec.resources.oom_score_adj).unwrap_or(0));
    if let Some(profile) = &parts.confinement.apparmor {
        process = process.apparmor_profile(profile);
    }
    let (masked, readonly) = if security.privileged {
        (Vec::new(), Vec::new())
    } else {
        (
            security.masked_paths.clone(),
            security.readonly_paths.clone(),
        )
    };
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(spec, sandbox, &dir.join("ns"), parts)?)
        .devices(devices::of_plan(
            &parts.devices,
            sandbox.spec.users.is_some(),
        )?)
        .resources(resources(back, container, sandbox, &parts.devices)?)
        .masked_paths(masked)
        .readonly_paths(readonly);
    if let Some(filter) = &parts.confinement.seccomp {
        linux = linux.seccomp(filter.rules.clone());
    }
    if let Some(maps) = &sandbox.spec.users {
        linux = linux
            .uid_mappings(mounts::id_map(&maps.uids)?)
            .gid_mappings(mounts::id_map(&maps.gids)?);
    }
    let mut whole = SpecBuilder::default()
        .version(OCI_VERSION)
        .process(process.build()?)
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(security.readonly_rootfs)
                .build()?,
        )
        .mounts(mounts::all(spec, &files)?)
        .linux(linux.build()?)
        .build()?;
    whole.set_hooks(hooks::of(back, container, sandbox, &parts.hooks)?);
    whole.set_annotations(annotations(back, container, sandbox));
    // The library's default; the name is the pinned UTS namespace's business.
    whole.set_hostname(None);
    Ok(whole)
}

/// Those that another runtime or a hook may see.
fn annotations(
    back: &Back,
    container: &Container,
    sandbox: &Sandbox,
) -> Option<HashMap<String, String>> {
    let all = hooks::annotations(container, sandbox);
    let mut visible = external::annotations(back, sandbox, &all);
    visible.extend(hooks::visible(back, &all));
    (!visible.is_empty()).then(|| visible.into_iter().collect())
}

fn capabilities(
    spec: &ContainerSpec,
) -> Result<oci_spec::runtime::LinuxCapabilities, OciSpecError> {
    let set = |names: Vec<&str>| -> Result<Capabilities, OciSpecError> {
        let parsed = names.into_iter().map(str::parse::<Capability>);
        parsed
            .collect::<Result<_, _>>()
            .map_err(|error| OciSpecError::Other(error.to_string()))
    };
    let granted = set(capability::granted(&spec.security))?;
    let ambient = set(capability::ambient(&spec.security))?;
    LinuxCapabilitiesBuilder::default()
        .bounding(granted.clone())
        .permitted(granted.clone())
        .effective(granted)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
}

/// What the operator wants, and open files in any case.
fn limits(ulimits: &[Ulimit]) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let mut limits = Vec::new();
    for limit in ulimits {
        let kind = limit.kind.parse::<PosixRlimitType>();
        let kind = kind.map_err(|error| OciSpecError::Other(error.to_string()))?;
        let built = PosixRlimitBuilder::default().typ(kind);
        limits.push(built.soft(limit.soft).hard(limit.hard).build()?);
    }
    let files = |limit: &PosixRlimit| limit.typ() == PosixRlimitType::RlimitNofile;
    if !limits.iter().any(files) {
        limits.push(files_limit()?);
    }
    Ok(limits)
}

/// Never above what this process may give.
fn files_limit() -> Result<PosixRlimit, OciSpecError> {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let hard = own
        .maximum
        .map_or(FILES_HARD, |maximum| maximum.min(FILES_HARD));
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(FILES_SOFT.min(hard))
        .hard(hard)
        .build()
}

fn namespaces(
    spec: &ContainerSpec,
    sandbox: &Sandbox,
    pins: &Path,
    parts: &Parts,
) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let joined = |kind, path: PathBuf| {
        LinuxNamespaceBuilder::default()
            .typ(kind)
            .path(path)
            .build()
    };
    let mut list = vec![new(LinuxNamespaceType::Mount)?];
    // In a user namespace nobody mounts cgroups but those of a namespace that belongs to it.
    if !spec.security.privileged || sandbox.spec.users.is_some() {
        list.push(new(LinuxNamespaceType::Cgroup)?);
    }
    match (&spec.security.pid, sandbox.init, &parts.target) {
        (NamespaceMode::Container, ..) => list.push(new(LinuxNamespaceType::Pid)?),
        (NamespaceMode::Pod, Some((pid, start)), _) if processes::is_alive(pid, start) => {
            let path = format!("/proc/{pid}/ns/pid").into();
            list.push(joined(LinuxNamespaceType::Pid, path)?);
        }
        (NamespaceMode::Target(_), _, Some(path)) => {
            list.push(joined(LinuxNamespaceType::Pid, path.clone())?);
        }
        (NamespaceMode::Node, ..) | (NamespaceMode::Target(_), _, None)
            if sandbox.spec.pid == NamespaceMode::Node => {}
        // Never the node's for want of another.
        (mode, ..) => {
            let why = format!("its PID namespace ({mode:?}) is not there: the pod's init is gone");
            return Err(OciSpecError::Other(why));
        }
    }
    if sandbox.spec.network == NamespaceMode::Pod {
        list.push(joined(LinuxNamespaceType::Network, pins.join("net"))?);
        list.push(joined(LinuxNamespaceType::Uts, pins.join("uts"))?);
    }
    if sandbox.spec.ipc == NamespaceMode::Pod {
        list.push(joined(LinuxNamespaceType::Ipc, pins.join("ipc"))?);
    }
    if sandbox.spec.users.is_some() {
        list.push(joined(LinuxNamespaceType::User, pins.join("user"))?);
    }
    Ok(list)
}

fn resources(
    back: &Back,
    container: &Container,
    sandbox: &Sandbox,
    devices: &Nodes,
) -> Result<LinuxResources, OciSpecError> {
    let spec = &container.spec;
    let mut resources = limits_of(&spec.resources, &back.cgroups)?;
    let rules = devices::rules(spec.security.privileged, devices)?;
    resources.set_devices(Some(rules));
    let class = block_io::class_of(&spec.annotations, &sandbox.spec.annotations, &spec.name);
    if let Some(name) = class {
        let class = back.block_io.get(name).ok_or_else(|| {
            OciSpecError::Other(format!(
                "no class of block I/O {name:?} is configured any more"
            ))
        })?;
        let weight = LinuxBlockIoBuilder::default()
            .weight(class.weight)
            .build()?;
        resources.set_block_io(Some(weight));
    }
    Ok(resources)
}

/// The limits alone, which may change while the container runs; devices and class do not.
pub(super) fn limits_of(
    limits: &Resources,
    cgroups: &crate::cgroup::Cgroups,
) -> Result<LinuxResources, OciSpecError> {
    let mut cpu = LinuxCpuBuilder::default();
    if limits.cpu_shares > 0 {
        cpu = cpu.shares(u64::try_from(limits.cpu_shares).unwrap_or(2));
    }
    if limits.cpu_period_us > 0 {
        cpu = cpu.period(u64::try_from(limits.cpu_period_us).unwrap_or(100_000));
    }
    if limits.cpu_quota_us != 0 {
        cpu = cpu.quota(limits.cpu_quota_us);
    }
    if !limits.cpuset_cpus.is_empty() {
        cpu = cpu.cpus(&limits.cpuset_cpus);
    }
    if !limits.cpuset_mems.is_empty() {
        cpu = cpu.mems(&limits.cpuset_mems);
    }
    let mut memory = LinuxMemoryBuilder::default();
    if limits.memory_limit_bytes > 0 {
        memory = memory.limit(limits.memory_limit_bytes);
    }
    if limits.memory_swap_limit_bytes != 0 {
        memory = memory.swap(limits.memory_swap_limit_bytes);
    }
    let mut resources = LinuxResourcesBuilder::default()
        .cpu(cpu.build()?)
        .memory(memory.build()?);
    // Kubelet always sends limits of 0 for huge pages; without the controller there are none to
    // be had, and 0 holds by itself.
    let huge = cgroups.has_controller("hugetlb");
    let limits_of_pages = limits
        .hugepage_limits
        .iter()
        .filter(|(_, limit)| huge || *limit > 0)
        .map(|(size, limit)| {
            let limit = i64::try_from(*limit).unwrap_or(i64::MAX);
            LinuxHugepageLimitBuilder::default()
                .page_size(size)
                .limit(limit)
                .build()
        })
        .collect::<Result<Vec<_>, _>>()?;
    if !limits_of_pages.is_empty() {
        resources = resources.hugepage_limits(limits_of_pages);
    }
    if !limits.unified.is_empty() {
        let files: HashMap<String, String> = limits.unified.clone().into_iter().collect();
        resources = resources.unified(files);
    }
    resources.build()
}
