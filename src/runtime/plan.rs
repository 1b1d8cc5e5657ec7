//! The launch plan: everything the node side needs to turn a prepared sandbox into a running
//! process.
//!
//! It is an OCI runtime spec plus the few things that spec lacks, stored as JSON beside the
//! container's FIFOs, so that it can be printed, compared, and read again by a restarted shim.
//! Whoever writes a plan has decided everything; whoever runs it decides nothing.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_spec::runtime::{LinuxIdMapping, Spec};
use serde::{Deserialize, Serialize};

pub use super::launch::PodInitPlan;
use super::user_namespace::maps_of;

/// What to run, in what, and where its output goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// Process, mounts, namespaces (with the paths of pinned ones), devices, masked and read-only
    /// paths, rlimits. `spec.root` says only whether the rootfs is read-only; where it comes from
    /// is `rootfs`. `spec.linux.resources` has been applied to the cgroup before the launch, and
    /// is kept here to be printed.
    pub spec: Spec,
    /// The layers to assemble inside the container's own mount namespace.
    pub rootfs: Rootfs,
    /// Images to mount read-only beside it. A mount of `spec` with the type `image` names one of
    /// them by its place in this list, as its source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_volumes: Vec<ImageVolume>,
    /// Who to run as; names are resolved in the rootfs, by the child, after it has been assembled.
    pub user: PlanUser,
    /// Variables of its environment whose values are no UTF-8, for which a spec has no place:
    /// `NAME=value`, each in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment_bytes: Vec<String>,
    /// What the process joins before anything else.
    pub cgroup: CgroupEntry,
    /// Where standard streams go.
    pub stdio: Stdio,
    /// `spec.linux.seccomp`, compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompFilter>,
    /// The OCI runtime that starts it, when that is not us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRuntime>,
}

/// An OCI runtime that is a program of its own, and what it has of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalRuntime {
    /// The RuntimeClass handler.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Options before its command.
    pub options: Vec<String>,
    /// Where it keeps what it knows of its containers (`--root`).
    pub root: PathBuf,
    /// Longest time of one call, in seconds.
    pub timeout_s: u64,
    /// The container's name there.
    pub id: String,
    /// The directory of the container's bundle.
    pub bundle: PathBuf,
    /// The container's cgroup, as a path in all hierarchies.
    pub cgroup: String,
}

/// A program that the kernel runs at every system call, ready to be installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_*` of seccomp(2).
    pub flags: u32,
    /// `struct sock_filter` after `struct sock_filter`, in this machine's byte order, as base64.
    pub program: String,
}

impl SeccompFilter {
    /// From the bytes of a program.
    #[must_use]
    pub fn new(program: &[u8], flags: u32) -> Self {
        Self {
            flags,
            program: STANDARD.encode(program),
        }
    }
}

/// The directories of one overlayfs mount. It is made in the container's mount namespace, never on
/// the host, and so it ends with the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// The overlayfs work directory, on the same file system as `upper`.
    pub work: PathBuf,
    /// An empty directory to mount on.
    pub mount_point: PathBuf,
}

/// The directories of a read-only overlay, and what of it is mounted. Made where the rootfs is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// Layers, topmost first; none for an image without layers.
    pub lower: Vec<PathBuf>,
    /// The image as a copy, which stands for all layers, where there can be no overlays.
    #[serde(default)]
    pub copy: Option<PathBuf>,
    /// The directory or file in it that is mounted, resolved in the image; empty is its root.
    pub sub_path: String,
}

/// A user as an image or a client wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanUser {
    /// Number or name; empty means root.
    pub user: String,
    /// Number or name; `None` takes the user's primary group from `/etc/passwd`, else 0.
    pub group: Option<String>,
    /// Groups to add.
    pub additional_gids: Vec<u32>,
    /// Whether the groups that the rootfs' `/etc/group` lists for the user are added too
    /// (CRI `SupplementalGroupsPolicy` Merge).
    pub merge_image_groups: bool,
}

/// In a container's directory: the bundle, for another runtime and for hooks.
pub const BUNDLE: &str = "bundle";

/// How the name of a command's own cgroup begins, below its container's.
pub const EXEC_LEAF_PREFIX: &str = "exec-";

/// How a process enters its cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupEntry {
    /// A cgroup v2 directory for `CLONE_INTO_CGROUP`.
    pub unified_dir: Option<PathBuf>,
    /// Files of cgroup v1 hierarchies into which the process writes `0` itself (`…/tasks`: writing
    /// one's own single thread avoids the kernel's thread-group lock).
    pub v1_tasks_files: Vec<PathBuf>,
    /// The file in which the kernel counts what it kills there for want of memory
    /// (`memory.events`, `memory.oom_control`). Read, and not entered.
    #[serde(default)]
    pub oom_counter: Option<PathBuf>,
}

/// Standard streams of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// The directory under the state directory that holds this container's FIFOs (`stdout`,
    /// `stderr`, and `stdin` when it is kept open).
    pub fifo_dir: PathBuf,
    /// The CRI log file; `None` discards output.
    pub log_path: Option<PathBuf>,
    /// How long the log may become, and how fast.
    #[serde(default)]
    pub log_limits: LogLimits,
    /// Whether the process gets a terminal instead of FIFOs.
    pub terminal: bool,
    /// Whether standard input is a FIFO; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Whether standard input closes with its first session.
    pub stdin_once: bool,
}

/// What the log of a container may take. Each limit is off when it is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes of one file; the log then goes on in a new one.
    pub file_bytes: u64,
    /// Files that stay, with the one that is written.
    pub files: u32,
    /// Bytes of output that are taken in a second; who writes more waits.
    pub bytes_per_s: u64,
}

/// A further process in a running container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// Path and arguments, not empty.
    pub args: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// As of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment_bytes: Vec<String>,
    /// Working directory inside the container.
    pub cwd: String,
    /// Who to run as.
    pub user: PlanUser,
    /// Effective, permitted and bounding capabilities, by OCI name (`CAP_CHOWN`).
    pub capabilities: Vec<String>,
    /// Whether `no_new_privs` is set.
    pub no_new_privileges: bool,
    /// What the process joins (the container's own cgroup, or a leaf below it).
    pub cgroup: CgroupEntry,
    /// The AppArmor profile it changes to; the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apparmor_profile: Option<String>,
    /// The container's own filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompFilter>,
    /// The ids of the container's user namespace, if it is not the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)>,
    /// The runtime that has the container, when that is not us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRuntime>,
}

impl LaunchPlan {
    /// The plan of a further process in this container: it runs as the container's own does.
    /// `None` when this plan has no process.
    #[must_use]
    pub fn exec(&self, args: Vec<String>) -> Option<ExecPlan> {
        let process = self.spec.process().as_ref()?;
        let granted = process
            .capabilities()
            .as_ref()
            .and_then(|sets| sets.bounding().clone());
        Some(ExecPlan {
            args,
            env: process.env().clone().unwrap_or_default(),
            environment_bytes: self.environment_bytes.clone(),
            cwd: process.cwd().display().to_string(),
            user: self.user.clone(),
            capabilities: granted
                .into_iter()
                .flatten()
                .map(|name| format!("CAP_{name}"))
                .collect(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            cgroup: self.cgroup.clone(),
            apparmor_profile: process.apparmor_profile().clone(),
            seccomp: self.seccomp.clone(),
            users: maps_of(&self.spec),
            external: self.external.clone(),
        })
    }
}
