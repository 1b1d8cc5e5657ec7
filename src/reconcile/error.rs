//! Why a step failed.

use std::path::PathBuf;

use crate::causes::with_causes;
use crate::cdi::CdiError;
use crate::cgroup::CgroupError;
use crate::confinement::seccomp::SeccompError;
use crate::image::{ImageError, LayerError};
use crate::lifecycle::image;
use crate::network::cni::CniError;
use crate::network::{NetlinkError, NetworkError};
use crate::runtime::error::LaunchError;
use crate::shim::client::ShimClientError;
use crate::snapshot::SnapshotError;
use crate::state::StateError;

/// A failed step.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The database failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// A namespace, link or address could not be made or removed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A plugin did not connect a pod, or not disconnect it.
    #[error(transparent)]
    Plugin(#[from] CniError),
    /// Plugins have not connected the pod; what the last one had to say.
    #[error("{0}")]
    NotAttached(String),
    /// There is no network that plugins could connect a pod to; why.
    #[error("the pod network is not ready: {0}")]
    NoNetwork(String),
    /// A cgroup could not be made, set or removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// An image could not be fetched or stored.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A layer could not be stored or removed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A writable layer could not be made or removed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The shim refused or failed.
    #[error(transparent)]
    Shim(#[from] ShimClientError),
    /// A file could not be made, read or removed.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// An image that the container mounts is not as it was asked for.
    #[error("{}: image on {destination:?}", image::VOLUME_FAILED)]
    ImageVolume {
        /// Where it would be.
        destination: String,
        /// Why it cannot be.
        source: LaunchError,
    },
    /// A CDI device that cannot be had.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// A seccomp profile that cannot be used.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// A launch plan that cannot be written down.
    #[error("the launch plan cannot be built: {0}")]
    Plan(String),
    /// A cleanup task names something that is not in a directory of ours; nothing was touched.
    #[error("{0:?} is not in a directory of ours and stays as it is")]
    NotOurs(String),
    /// A pod that is up lacks something that could not be given back to it.
    #[error("the pod is not whole: {0}")]
    NotWhole(String),
    /// An operator names an image that is not there.
    #[error("there is no image {0:?}")]
    NoImage(String),
    /// An operator names the beginning of several ids.
    #[error("{0:?} is ambiguous: give more of the id")]
    SeveralImages(String),
    /// A layer is gone from the disk; its images are forgotten with it.
    #[error(
        "layer {0} is gone from the disk: its images are forgotten, pull the image of this \
         container again and create the container anew"
    )]
    LayerGone(String),
    /// A pull whose credentials were in the memory of another daemon.
    #[error("the credentials of this pull were lost with the daemon that had them; pull again")]
    CredentialsLost,
    /// A point made the step fail (`crate::fault`).
    #[error(transparent)]
    Fault(#[from] crate::fault::Fault),
    /// The shim is away; it is being started anew.
    #[error("the shim is not connected")]
    NoShim,
    /// What an earlier start left in the cgroup was killed and has not ended yet.
    #[error("what an earlier start left behind is still ending")]
    StillEnding,
    /// Who asked for an import has gone.
    #[error("the command that asked for it was interrupted")]
    GivenUp,
    /// A thread died.
    #[error("a worker thread died; the daemon's log tells why")]
    Panicked,
}

impl ReconcileError {
    /// A failed file operation.
    pub(super) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }

    /// The text with every cause, for a row or a log line.
    #[must_use]
    pub fn full_text(&self) -> String {
        with_causes(self)
    }

    /// Whether trying the same again may go better: the fault is not in what was asked for.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::State(_) | Self::NoShim | Self::StillEnding | Self::Panicked
        ) || matches!(self, Self::Shim(error) if error.is_passing())
            || matches!(self, Self::Cgroup(error) if error.is_passing())
            || matches!(
                self,
                Self::Fault(fault)
                    | Self::Layer(LayerError::Fault(fault))
                    | Self::Snapshot(SnapshotError::Fault(fault))
                    | Self::Network(NetworkError::Netlink {
                        source: NetlinkError::Fault(fault),
                        ..
                    })
                    if fault.is_passing()
            )
    }
}
