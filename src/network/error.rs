//! What can go wrong in the network driver: what was being done, to what, and why it failed.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::netlink::NetlinkError;
use crate::causes::with_causes;

/// An error of the network driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A value that was asked for cannot be right; nothing has been touched.
    #[error("{field} {value:?}: {reason}")]
    Invalid {
        /// Which value, in the words of the configuration or the specification struct.
        field: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file or directory could not be worked with.
    #[error("{action} {}", .path.display())]
    File {
        /// What was being done, as in "open".
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A system call on the calling thread failed.
    #[error("{action}")]
    System {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel did not do what was asked over netlink.
    #[error("{action} {object}")]
    Netlink {
        /// What was being done, as in "create the bridge".
        action: &'static str,
        /// To which interface.
        object: String,
        /// Why it failed.
        #[source]
        source: NetlinkError,
    },
    /// A sysctl could not be set.
    #[error("set sysctl {name} to {value:?}")]
    Sysctl {
        /// Its name.
        name: String,
        /// The value wanted.
        value: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// An interface of the wanted name exists and belongs to somebody else.
    #[error("interface {name} exists and is not ours: {found}; it is left as it is")]
    NotOurs {
        /// The interface.
        name: String,
        /// What was found instead.
        found: String,
    },
    /// The pod subnet is in use on another interface of the node.
    #[error("subnet {subnet} overlaps with {address} on interface {interface}")]
    SubnetInUse {
        /// The pods' subnet.
        subnet: IpNet,
        /// The address that lies in it, or whose network contains it.
        address: IpNet,
        /// Where that address is, by name or index.
        interface: String,
    },
    /// The bridge still has ports.
    #[error("bridge {name} still has ports: {}", .ports.join(", "))]
    BridgeInUse {
        /// The bridge.
        name: String,
        /// The interfaces attached to it.
        ports: Vec<String>,
    },
    /// There is no bridge to attach a pod to.
    #[error("there is no bridge {name}")]
    NoBridge {
        /// Its name.
        name: String,
    },
    /// An interface vanished or did not appear while it was being worked on.
    #[error("interface {name} is not there {place}")]
    Vanished {
        /// The interface.
        name: String,
        /// Where it was looked for.
        place: &'static str,
    },
    /// The file is not a network namespace.
    #[error("{} is not a pinned namespace", .0.display())]
    NotANamespace(PathBuf),
    /// The gateway is not in the pod's subnet.
    #[error("gateway {gateway} is not in the subnet of {address}")]
    GatewayOutside {
        /// The gateway.
        gateway: IpAddr,
        /// The pod's address.
        address: IpNet,
    },
    /// Several things failed while tearing down; all that could go is gone.
    #[error("{} steps of the removal failed, the first: {}", .0.len(), first(.0))]
    Several(Vec<NetworkError>),
    /// A thread that worked inside a namespace panicked.
    #[error("the thread that {0} panicked")]
    ThreadPanicked(&'static str),
}

/// The first of several errors with its causes, since a list can have no `source`.
fn first(errors: &[NetworkError]) -> String {
    let first = errors.first();
    first.map(|error| with_causes(error)).unwrap_or_default()
}

impl NetworkError {
    /// For `map_err` on netlink requests about one interface.
    pub(super) fn netlink(action: &'static str, object: &str) -> impl FnOnce(NetlinkError) -> Self {
        move |source| Self::Netlink {
            action,
            object: object.to_owned(),
            source,
        }
    }

    /// For `map_err` on file operations.
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
