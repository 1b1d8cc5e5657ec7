//! The network driver: pods' namespaces, their links to the node's bridge, and the files by which
//! they find names.
//!
//! Idempotent pairs: `ensure_x` completes what is missing, `remove_x` takes absence for success.
//! All of it blocks (a few milliseconds at most) and belongs on a thread that may. It knows no
//! database and no CRI, and decides no address: which one a pod gets is the caller's to remember,
//! and [`next_free`] only computes it. Of the node's firewall only one table of our own is touched
//! ([`ensure_rules`]), and of its settings only forwarding; other interfaces never are.
//!
//! Where a cluster brings a network along, [`cni`] calls the plugins that make it.
//!
//! Every interface is marked by its alias, so that what exists without a row can be found
//! ([`list_links`]), and what is not ours is left alone.

mod address;
mod bridge;
pub mod cni;
mod config;
mod dns;
mod error;
mod inspect;
mod interface_sysctl;
mod link;
mod namespace;
mod netlink;
mod nft;
mod pod;
mod shaping;
mod sysctl;

pub use bridge::{BridgeSpec, ensure_bridge, remove_bridge};
pub use config::{NetworkConfig, NetworkMode};
pub use dns::{
    choose_node_resolv_conf, read_node_resolv_conf, render_hostname, render_hosts,
    render_resolv_conf,
};
pub use error::NetworkError;
pub use inspect::{BridgeProblem, MarkedLink, Problem, check_bridge, check_pod_link, list_links};
pub use interface_sysctl::set_interface_sysctls;
pub use link::{MAX_ALIAS_BYTES, MAX_NAME_BYTES};
pub use namespace::{
    MAX_HOSTNAME_BYTES, NamespaceSpec, UserSpec, ensure_namespaces, ensure_pin_directory,
    is_pinned, pin_again, remove_namespaces, remove_pin_directory, settle_namespaces,
};
pub use netlink::NetlinkError;
pub use nft::{
    EgressPolicy, EgressRule, Netfilter, PortForward, RuleSpec, RuleWatch, RulesSeen, close_policy,
    close_ports, ensure_rules, forget_before, forget_closed, look_at_rules, open_policy,
    open_ports, remove_rules,
};
pub use pod::{PodLinkSpec, ensure_pod_link, has_link, is_connected, mac_address, remove_pod_link};
pub use shaping::{ShapingSpec, check_shaping, ensure_shaping};
pub use sysctl::{Sysctl, SysctlScope};

#[cfg(test)]
mod tests;
