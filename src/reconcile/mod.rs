//! The back: looks at one object at a time, compares wish and fact, and does the next step.
//!
//! A reconciler gets a key and nothing else. Each step is safe to repeat, nothing is retried
//! inside, and what has to wait is put back into the queue; so recovery after a crash is the daily
//! path.

mod attachment;
pub mod caught;
mod cdi;
pub mod cleanup;
pub mod collector;
mod container;
mod container_confinement;
mod container_launch;
mod container_plan;
mod container_update;
mod devices;
mod error;
pub mod external;
mod hooks;
mod image;
pub mod image_check;
mod image_layers;
mod image_volume;
mod inspect;
pub mod layer_usage;
mod log_loss;
pub mod monitor;
mod mounts;
pub mod node_network;
mod oom_score;
pub mod plugin_network;
mod pod_network;
mod pod_request;
pub mod prepared;
mod process_figures;
mod processes;
mod propagation;
pub mod pruner;
mod pull_progress;
mod rebuild;
pub mod records;
pub mod recovery;
pub mod sampler;
mod sandbox;
mod sandbox_files;
mod sandbox_repair;
mod sandbox_update;
pub mod shim_link;
mod stand_in;
pub mod sweep;
pub mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use crate::cgroup::{BlockIoClasses, CgroupPath, Cgroups};
use crate::id::{ContainerId, SandboxId};
use crate::image::ImageDriver;
use crate::lifecycle::handler::Handlers;
use crate::lifecycle::hook::HooksConfig;
use crate::lifecycle::image::Pins;
use crate::lifecycle::ulimit::Ulimit;
use crate::network::{Netfilter, NetworkConfig};
use crate::runtime::plan::LogLimits;
use crate::shim::client::ShimClient;
use crate::snapshot;
use crate::state::{ObservedWriter, Store};
use plugin_network::PluginNetwork;

pub use error::ReconcileError;
pub use image::import;
pub use processes::{Processes, Watched, is_alive};
pub use rebuild::{Loss, rebuild};

/// What every reconciler works with. Cheap to clone.
#[derive(Clone)]
pub struct Back(Arc<Parts>);

/// The parts of the back, joined once.
pub struct Parts {
    /// Reading.
    pub store: Store,
    /// Writing facts.
    pub observed: ObservedWriter,
    /// The shim that is connected now.
    pub shim: tokio::sync::watch::Receiver<Option<ShimClient>>,
    /// Handles on living processes.
    pub processes: Processes,
    /// The node's cgroup hierarchies.
    pub cgroups: Cgroups,
    /// Images on disk and in registries.
    pub images: ImageDriver,
    /// How writable layers are made.
    pub snapshots: snapshot::Kind,
    /// The pod network.
    pub network: NetworkConfig,
    /// The way to the packet rules.
    pub netfilter: Netfilter,
    /// The pod network that plugins make, where they do.
    pub plugins: PluginNetwork,
    /// Where things are.
    pub paths: Paths,
    /// Under which cgroup a sandbox without a parent goes.
    pub cgroup_root: CgroupPath,
    /// Classes of block I/O that containers may have.
    pub block_io: BlockIoClasses,
    /// Which boot of the node this is.
    pub boot_id: String,
    /// Told when an image has come or gone, for its record.
    pub image_records: tokio::sync::Notify,
    /// Which images and layers are kept.
    pub image_rules: ImageRules,
    /// What the log of a container may take.
    pub log_limits: LogLimits,
    /// Where hooks are.
    pub hooks: HooksConfig,
    /// Resource limits that every container gets.
    pub ulimits: Vec<Ulimit>,
    /// OCI runtimes beside our own.
    pub handlers: Handlers,
    /// Told when layers have begun to wait for a retry of their pull.
    pub unused_layers: tokio::sync::Notify,
    /// Where CDI devices are described; later ones count more.
    pub cdi_directories: Vec<PathBuf>,
}

/// Which images and layers are kept.
#[derive(Debug, Clone, Default)]
pub struct ImageRules {
    /// Images that clients are advised to keep.
    pub pins: Pins,
    /// How long the layers of a failed pull wait for a retry, ns.
    pub failed_pull_kept_ns: i64,
}

/// Where things are.
#[derive(Debug, Clone)]
pub struct Paths {
    /// What outlives a reboot.
    pub root: PathBuf,
    /// What does not.
    pub state: PathBuf,
}

impl Paths {
    /// A sandbox' directory: its generated files, and its namespaces in `ns`.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    /// All sandboxes' directories.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// A container's directory: its launch plan and its FIFOs.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// All containers' directories.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }

    /// The empty directory that every container mounts its rootfs on, each in its own namespace.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.state.join("rootfs")
    }

    /// What marks links as this daemon's: the root directory, which only one daemon can own.
    #[must_use]
    pub fn marker(&self) -> String {
        format!("quilt:{}", self.root.display())
    }
}

impl Back {
    /// Joins the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    fn shim(&self) -> Result<ShimClient, ReconcileError> {
        self.shim.borrow().clone().ok_or(ReconcileError::NoShim)
    }

    /// The cgroup of a sandbox' containers.
    fn pod_cgroup(&self, parent: &str) -> Result<CgroupPath, ReconcileError> {
        if parent.is_empty() {
            return Ok(self.cgroup_root.clone());
        }
        Ok(CgroupPath::parse_parent(parent)?)
    }

    /// The cgroup of a pod or container with this id, below the parent that its pod has.
    fn member_cgroup(&self, parent: &str, id: &str) -> Result<CgroupPath, ReconcileError> {
        Ok(self.pod_cgroup(parent)?.member(id)?)
    }
}

impl std::ops::Deref for Back {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Runs a driver's blocking call on a thread of its own.
async fn blocking<T, F>(work: F) -> Result<T, ReconcileError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ReconcileError> + Send + 'static,
{
    tokio::task::spawn_blocking(|| caught::inside_blocking(work))
        .await
        .map_err(|_| ReconcileError::Panicked)?
}
