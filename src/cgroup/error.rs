//! What can go wrong in the cgroup driver: what was being done, to which file, with which value.

use std::io;
use std::path::{Path, PathBuf};

use super::systemd::BusError;
use crate::causes::with_causes;

/// An error of the cgroup driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// A path that is not one of a cgroup; nothing has been touched.
    #[error("cgroup path {path:?}: {reason}")]
    InvalidPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A limit that cannot be right.
    #[error("{field} {value:?}: {reason}")]
    InvalidValue {
        /// Which one, in the words of the OCI runtime spec.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No hierarchy is mounted where one was expected.
    #[error("no cgroup hierarchy is mounted at or below {}", .0.display())]
    NotMounted(PathBuf),
    /// A limit was asked for, and the controller that would keep it is not there.
    #[error("controller {controller} is not available, and {wanted} needs it")]
    ControllerMissing {
        /// The controller.
        controller: String,
        /// What was asked for.
        wanted: String,
    },
    /// A directory or file could not be worked with.
    #[error("{action} {}", .path.display())]
    File {
        /// What was being done, as in "create".
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// A file does not have the form that the kernel documents.
    #[error("{} has unexpected contents {text:?}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it says, cut short.
        text: String,
    },
    /// systemd did not do what it was asked for.
    #[error("{action} {unit}")]
    Systemd {
        /// What was being done, as in "start".
        action: &'static str,
        /// To which unit.
        unit: String,
        /// Why it failed.
        #[source]
        source: BusError,
    },
    /// The systemd driver, on a node with hierarchies of cgroup v1.
    #[error(
        "the systemd cgroup driver needs cgroup v2 alone; this node has hierarchies of cgroup v1"
    )]
    NotUnified,
    /// A unit of systemd's is where the other driver is configured, or the other way round.
    #[error("{0} is a systemd unit's, but this runtime's cgroup driver is cgroupfs")]
    OtherDriver(String),
    /// There is a process in it, or below it.
    #[error("{} still has processes", .0.display())]
    StillPopulated(PathBuf),
    /// Several things failed while tearing down; all that could go is gone.
    #[error("{} steps failed, the first: {}", .0.len(), first(.0))]
    Several(Vec<CgroupError>),
}

/// The first of several errors with its causes, since a list can have no `source`.
fn first(errors: &[CgroupError]) -> String {
    let first = errors.first();
    first.map(|error| with_causes(error)).unwrap_or_default()
}

impl CgroupError {
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the kernel's error number is this one (`libc::E…`).
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        match self {
            Self::File { source, .. } | Self::Write { source, .. } => {
                source.raw_os_error() == Some(errno)
            }
            _ => false,
        }
    }

    /// Whether trying the same again may go better: what failed is the way to systemd.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Systemd { source, .. } if source.is_passing())
    }

    /// One error for a list, or none for an empty one.
    pub(super) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}
