//! The CRI front: 43 calls, one file per verb, in three classes. Round trips write a wish and wait
//! for the fact; reads answer from the database alone; sessions speak to the shim and change no
//! state. Nothing here waits on a process, and nothing here knows how a wish is carried out.

pub mod abandoned;
mod call;
pub mod container;
mod error;
pub mod events;
mod handlers;
pub mod image;
pub mod image_service;
mod labels;
mod metrics;
pub mod node;
mod pieces;
pub mod runtime_service;
pub mod sandbox;
mod sessions;
mod traced;
mod usage;
mod user_namespace;
mod validate;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use crate::lifecycle::address::Pool;
use crate::shim::client::ShimClient;
use crate::state::{DesiredWriter, Store};
use crate::streaming::Door;
use crate::traces::Tracer;

pub use error::CallError;
pub use handlers::KnownHandlers;

/// What the front knows of the node, decided at start.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The pod network.
    pub pool: Pool,
    /// Where images are stored, for ImageFsInfo.
    pub image_root: PathBuf,
    /// Where containers' writable layers are stored.
    pub snapshot_root: PathBuf,
    /// Where the FIFOs and launch plans of containers are.
    pub state_dir: PathBuf,
    /// Longest wait of a call whose client names no deadline.
    pub default_deadline: Duration,
    /// After how long a pod is withdrawn whose caller never came back; `None` is never.
    pub abandoned_after: Option<Duration>,
    /// OCI runtimes beside our own.
    pub handlers: Arc<KnownHandlers>,
    /// Whether mounts can be made read-only with everything below them (kernel 5.12).
    pub recursive_read_only: bool,
    /// Whether pods can have user namespaces of their own, and why not.
    pub user_namespaces: Result<(), String>,
    /// Where CDI devices are described; later ones count more.
    pub cdi_directories: Vec<PathBuf>,
    /// Whether systemd makes the cgroups, and not we.
    pub systemd_cgroups: bool,
    /// Classes of block I/O that containers may have.
    pub block_io_classes: BTreeSet<String>,
}

/// What every call works with. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    store: Store,
    desired: DesiredWriter,
    shim: ShimLink,
    info: Arc<NodeInfo>,
    health: Health,
    stopped: Stopped,
    range_told: Arc<Notify>,
    streams: Arc<Semaphore>,
    door: Door,
    tracer: Tracer,
}

/// The shim that is connected now; sessions take it as they come.
pub type ShimLink = tokio::sync::watch::Receiver<Option<ShimClient>>;

/// What the back last found out about itself: why it is not ready, if it is not.
pub type Health = tokio::sync::watch::Receiver<crate::state::health::Report>;

/// Turns true when the daemon ends: streams, which have no end of their own, end then.
pub type Stopped = tokio::sync::watch::Receiver<bool>;

/// What the front hears of the back and of the daemon.
pub struct Signals {
    /// The shim.
    pub shim: ShimLink,
    /// How the node is.
    pub health: Health,
    /// Whether the daemon ends.
    pub stopped: Stopped,
    /// Told when kubelet has told another pod range.
    pub range_told: Arc<Notify>,
}

impl Front {
    /// Joins what the front needs.
    #[must_use]
    pub fn new(
        store: Store,
        desired: DesiredWriter,
        signals: Signals,
        info: NodeInfo,
        (door, tracer): (Door, Tracer),
    ) -> Self {
        Self {
            store,
            desired,
            shim: signals.shim,
            health: signals.health,
            info: Arc::new(info),
            stopped: signals.stopped,
            range_told: signals.range_told,
            streams: Arc::new(Semaphore::new(events::STREAMS)),
            door,
            tracer,
        }
    }

    /// The database, through the front's own connections.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The shim, for a session.
    fn shim(&self) -> Result<ShimClient, CallError> {
        self.shim.borrow().clone().ok_or(CallError::NoShim)
    }
}
