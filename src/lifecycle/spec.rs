//! What a client asked for, as this project keeps it: validated, free of protobuf, stored as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::id_map::IdMaps;
use super::process::ProcessSpec;

/// String to string, in order, so that stored JSON compares equal.
pub type Map = BTreeMap<String, String>;

/// Whose namespace a process lives in (CRI `NamespaceMode`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// One for the whole pod.
    #[default]
    Pod,
    /// One of the container's own.
    Container,
    /// The node's.
    Node,
    /// That of another container, by id.
    Target(String),
}

/// A pod sandbox as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// How often the pod's sandbox has been made anew.
    pub attempt: u32,
    /// Host name inside; empty takes the sandbox' short id.
    pub hostname: String,
    /// Directory of the containers' logs; empty discards them.
    pub log_directory: String,
    /// RuntimeClass handler; empty is ours.
    pub runtime_handler: String,
    /// Labels.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// resolv.conf; `None` takes the node's.
    pub dns: Option<DnsSpec>,
    /// Ports as asked for; `port::host_ports` says which of the node's lead to it.
    pub port_mappings: Vec<PortMapping>,
    /// Parent in the cgroup hierarchy; empty takes the configured root.
    pub cgroup_parent: String,
    /// Namespaced sysctls.
    pub sysctls: Map,
    /// Network namespace: pod or node.
    pub network: NamespaceMode,
    /// PID namespace: pod, container or node.
    pub pid: NamespaceMode,
    /// IPC namespace: pod or node.
    pub ipc: NamespaceMode,
    /// Whether privileged containers are allowed in it.
    pub privileged: bool,
    /// The maps of its user namespace; `None` is the node's.
    #[serde(default)]
    pub users: Option<IdMaps>,
}

/// CRI `DNSConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// CRI `PortMapping`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// 0 TCP, 1 UDP, 2 SCTP.
    pub protocol: i32,
    /// Port in the pod.
    pub container_port: i32,
    /// Port on the node; 0 is none.
    pub host_port: i32,
    /// Address on the node; empty is all.
    pub host_ip: String,
}

/// A container as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Container name.
    pub name: String,
    /// How often it has been made anew.
    pub attempt: u32,
    /// Image as requested: an image id or a reference.
    pub image: String,
    /// Image as the pod's author wrote it.
    pub user_specified_image: String,
    /// A name of the image that was found, for status: a tag if it has one.
    pub image_name: String,
    /// The image that was found, for status: what PullImage answers.
    pub image_ref: String,
    /// Replaces the image's entry point when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory when not empty.
    pub working_dir: String,
    /// Added to the image's environment, in order.
    pub environment: Vec<(String, String)>,
    /// The same, of variables whose values are no UTF-8; values in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment_bytes: Vec<(String, String)>,
    /// Mounts besides the standard ones.
    pub mounts: Vec<MountSpec>,
    /// Devices besides the standard ones.
    pub devices: Vec<DeviceSpec>,
    /// CDI devices by name (`vendor.com/class=device`), of the field and of annotations.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// Labels.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Log file relative to the sandbox' log directory; empty discards output.
    pub log_path: String,
    /// Whether standard input is kept open.
    pub stdin: bool,
    /// Whether standard input closes with its first session.
    pub stdin_once: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// Signal of a stop, by number; `None` takes the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// What runs: image and request put together.
    pub process: ProcessSpec,
}

impl ContainerSpec {
    /// The images among its mounts, in the order of the request.
    pub fn image_mounts(&self) -> impl Iterator<Item = &ImageMount> {
        self.mounts.iter().filter_map(|mount| mount.image.as_ref())
    }
}

/// A host path, or an image, in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Where, inside.
    pub container_path: String,
    /// What, on the node.
    pub host_path: String,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether that holds for mounts below it too.
    pub recursive_read_only: bool,
    /// How later mounts travel.
    pub propagation: Propagation,
    /// `noexec`, `nodev`, `nosuid`.
    #[serde(default)]
    pub options: Vec<String>,
    /// An image to mount instead of a host path: always read-only.
    pub image: Option<ImageMount>,
    /// Whose files are seen as whose; `None` shows owners as they are on the disk.
    #[serde(default)]
    pub ids: Option<IdMaps>,
}

/// An image as a volume (KEP-4639, CRI `Mount.image`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// As requested: what PullImage answered, or a reference.
    pub image: String,
    /// As the pod's author wrote it.
    pub user_specified_image: String,
    /// The directory in it to mount; empty is its root.
    pub sub_path: String,
    /// Id of the image that was found.
    pub image_id: String,
}

/// CRI `MountPropagation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// From the node into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A device node of the host in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Where, inside.
    pub container_path: String,
    /// What, on the node.
    pub host_path: String,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// The most CPU shares that the kernel takes.
const CPU_SHARES_MAX: i64 = 262_144;

/// Limits of a container (CRI `LinuxContainerResources`); 0 is "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CFS period, µs.
    pub cpu_period_us: i64,
    /// CFS quota per period, µs; negative is none.
    pub cpu_quota_us: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Memory, bytes.
    pub memory_limit_bytes: i64,
    /// Memory and swap together, bytes; -1 is no limit.
    pub memory_swap_limit_bytes: i64,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPUs it may use, as a list (`0-3,7`).
    pub cpuset_cpus: String,
    /// Memory nodes it may use.
    pub cpuset_mems: String,
    /// Limits of huge pages: page size (`2MB`) and bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// Files of cgroup v2 to write as they are.
    pub unified: Map,
}

impl fmt::Display for Resources {
    /// The limits that are set, for an event.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [
            ("memory", self.memory_limit_bytes, " bytes"),
            ("memory and swap", self.memory_swap_limit_bytes, " bytes"),
            ("CPU quota", self.cpu_quota_us, " µs"),
            ("CPU period", self.cpu_period_us, " µs"),
            ("CPU shares", self.cpu_shares, ""),
        ];
        let numbers = numbers.into_iter().filter(|(_, value, _)| *value != 0);
        let mut parts: Vec<String> = numbers
            .map(|(name, value, unit)| format!("{name} {value}{unit}"))
            .collect();
        let lists = [
            ("CPUs", &self.cpuset_cpus),
            ("memory nodes", &self.cpuset_mems),
        ];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        parts.extend(lists.map(|(name, list)| format!("{name} {list}")));
        let pages = self.hugepage_limits.iter().filter(|(_, limit)| *limit > 0);
        parts.extend(pages.map(|(size, limit)| format!("huge pages of {size} {limit} bytes")));
        parts.extend(
            self.unified
                .iter()
                .map(|(file, value)| format!("{file} {value}")),
        );
        match parts.is_empty() {
            true => f.write_str("no limits"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

impl Resources {
    /// The limits of a pod whose containers may use this much together, and that takes `overhead`
    /// besides (CRI `LinuxPodSandboxConfig`). What is not limited stays so, whatever the overhead;
    /// the OOM score is the processes' own.
    #[must_use]
    pub fn with_overhead(&self, overhead: &Self) -> Self {
        let sum = |limit: i64, more: i64| match limit > 0 {
            true => limit.saturating_add(more.max(0)),
            false => limit,
        };
        // Quotas are comparable for one period only.
        let period = |us: i64| if us > 0 { us } else { 100_000 };
        let (own, other) = (period(self.cpu_period_us), period(overhead.cpu_period_us));
        let quota = i128::from(overhead.cpu_quota_us.max(0)) * i128::from(own) / i128::from(other);
        let pages = self.hugepage_limits.iter().map(|(size, limit)| {
            let mut more = overhead.hugepage_limits.iter();
            let more = more
                .find(|(other, _)| other == size)
                .map_or(0, |found| found.1);
            (size.clone(), limit.saturating_add(more))
        });
        Self {
            cpu_quota_us: sum(self.cpu_quota_us, i64::try_from(quota).unwrap_or(i64::MAX)),
            cpu_shares: sum(self.cpu_shares, overhead.cpu_shares).min(CPU_SHARES_MAX),
            memory_limit_bytes: sum(self.memory_limit_bytes, overhead.memory_limit_bytes),
            memory_swap_limit_bytes: sum(self.memory_swap_limit_bytes, overhead.memory_limit_bytes),
            hugepage_limits: pages.collect(),
            oom_score_adj: 0,
            ..self.clone()
        }
    }

    /// These limits with what `change` sets; what it leaves at 0 or empty stays as it is. Huge
    /// pages are changed size by size, files of cgroup v2 name by name.
    #[must_use]
    pub fn changed_by(&self, change: Self) -> Self {
        let number = |new: i64, old: i64| if new == 0 { old } else { new };
        let text = |new: String, old: &String| if new.is_empty() { old.clone() } else { new };
        let mut hugepage_limits = self.hugepage_limits.clone();
        for (size, limit) in change.hugepage_limits {
            match hugepage_limits.iter_mut().find(|(known, _)| *known == size) {
                Some(known) => known.1 = limit,
                None => hugepage_limits.push((size, limit)),
            }
        }
        let mut unified = self.unified.clone();
        unified.extend(change.unified);
        Self {
            cpu_period_us: number(change.cpu_period_us, self.cpu_period_us),
            cpu_quota_us: number(change.cpu_quota_us, self.cpu_quota_us),
            cpu_shares: number(change.cpu_shares, self.cpu_shares),
            memory_limit_bytes: number(change.memory_limit_bytes, self.memory_limit_bytes),
            memory_swap_limit_bytes: number(
                change.memory_swap_limit_bytes,
                self.memory_swap_limit_bytes,
            ),
            oom_score_adj: number(change.oom_score_adj, self.oom_score_adj),
            cpuset_cpus: text(change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(change.cpuset_mems, &self.cpuset_mems),
            hugepage_limits,
            unified,
        }
    }
}

/// Who a container runs as and what it may do (CRI `LinuxContainerSecurityContext`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Everything the node may do.
    pub privileged: bool,
    /// User by number.
    pub run_as_user: Option<i64>,
    /// User by name.
    pub run_as_username: String,
    /// Group by number.
    pub run_as_group: Option<i64>,
    /// Groups to add.
    pub supplemental_groups: Vec<i64>,
    /// Only those, none of the image's (policy Strict).
    pub supplemental_groups_strict: bool,
    /// Whether the rootfs is read-only.
    pub readonly_rootfs: bool,
    /// Whether `no_new_privs` is set.
    pub no_new_privs: bool,
    /// Capabilities to add, as CRI names them (`NET_ADMIN`, `ALL`).
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// Capabilities to make ambient as well.
    pub add_ambient_capabilities: Vec<String>,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths it may not write.
    pub readonly_paths: Vec<String>,
    /// Its PID namespace.
    pub pid: NamespaceMode,
    /// Its network namespace.
    pub network: NamespaceMode,
    /// Its IPC namespace.
    pub ipc: NamespaceMode,
    /// The maps of its user namespace, which are its sandbox' own; `None` is the node's.
    #[serde(default)]
    pub users: Option<IdMaps>,
    /// Whether it asks for an SELinux label.
    #[serde(default)]
    pub selinux: bool,
    /// Seccomp profile. None means unconfined, as the interface has it.
    #[serde(default)]
    pub seccomp: Option<Profile>,
    /// AppArmor profile. None means the default one, where the node has it.
    #[serde(default)]
    pub apparmor: Option<Profile>,
}

/// A profile of seccomp or of AppArmor (CRI `SecurityProfile`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// The node's: a file for seccomp, the name of a loaded profile for AppArmor.
    Localhost(String),
}

/// Who a process runs as, after names have been looked up in its rootfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
}

/// What an image's config says of its containers (OCI image spec, `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// First part of the command line.
    pub entrypoint: Vec<String>,
    /// Second part, replaced by a client's arguments.
    pub cmd: Vec<String>,
    /// `user[:group]`, by number or name.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// Stop signal, by name or number.
    pub stop_signal: String,
    /// Labels.
    pub labels: Map,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_added_to_what_is_limited_and_to_nothing_else() {
        let limits = Resources {
            cpu_period_us: 100_000,
            cpu_quota_us: 20_000,
            memory_limit_bytes: 192 << 20,
            hugepage_limits: vec![("2MB".into(), 4 << 20)],
            ..Resources::default()
        };
        assert_eq!(limits.with_overhead(&Resources::default()), limits);
        let overhead = Resources {
            cpu_period_us: 50_000,
            cpu_quota_us: 5_000,
            cpu_shares: 100,
            memory_limit_bytes: 8 << 20,
            hugepage_limits: vec![("2MB".into(), 2 << 20), ("1GB".into(), 1 << 30)],
            ..Resources::default()
        };
        let sum = limits.with_overhead(&overhead);
        assert_eq!((sum.cpu_quota_us, sum.cpu_period_us), (30_000, 100_000));
        assert_eq!(sum.memory_limit_bytes, 200 << 20);
        assert_eq!(sum.hugepage_limits, [("2MB".into(), 6 << 20)]);
        assert_eq!((sum.cpu_shares, sum.memory_swap_limit_bytes), (0, 0));
        let most = Resources {
            cpu_shares: CPU_SHARES_MAX,
            memory_limit_bytes: i64::MAX,
            cpu_quota_us: -1,
            ..Resources::default()
        };
        let sum = most.with_overhead(&overhead);
        assert_eq!((sum.cpu_shares, sum.cpu_quota_us), (CPU_SHARES_MAX, -1));
        assert_eq!(sum.memory_limit_bytes, i64::MAX);
    }
}
