//! The node's packet rules, in one nf_tables table of our own: masquerade for what leaves the pod
//! network, and ports of the node that lead to pods; and what pods may send, in a second one of the
//! same name, of the family `bridge` (`egress.rs`).
//!
//! ```text
//! guard        (prerouting, raw)  from the bridge to 127.0.0.0/8: dropped
//! prerouting   (nat)  to an address of the node ──► hostports
//! output       (nat)  the node's own, to an address of the node ──► hostports
//! hostports           by protocol, address and port in a map: on to the pod
//! postrouting  (nat)  sent on by hostports, and from a pod or the node's loopback: masquerade
//!                     from a pod subnet ──► leaving
//! leaving             within the pod network, or on the bridge: as it is; else masquerade
//! ```
//!
//! The table is replaced as a whole in one transaction ([`ensure_rules`]); a port is one element of
//! a map. Everything is derived from a [`RuleSpec`], which the caller derives from its database.
//! Connections under way are the kernel's to remember; `conntrack` has those forgotten that would
//! go on past a change. Tables of others are never read beyond their mark, and never changed. What
//! another table drops stays dropped: no rule of ours can accept it.

mod conntrack;
mod egress;
mod encode;
mod expression;
mod forward;
mod inspect;
mod rules;
mod sockets;
mod transaction;
mod watch;

use std::fmt;

use ipnet::IpNet;

use super::error::NetworkError;
use super::link;
use super::netlink::{NetlinkError, Socket};
use super::sysctl;
use encode::{Attributes, Message};
use transaction::{commit, kind};

pub(super) use encode::find;

pub use conntrack::{forget_before, forget_closed};
pub use egress::{close_policy, open_policy};
pub use forward::PortForward;
pub use inspect::{RulesSeen, look_at_rules};
pub use sockets::Netfilter;
pub use watch::RuleWatch;

/// `NFPROTO_INET`: one table for both families.
const INET: u8 = 1;
/// `NFPROTO_BRIDGE`.
const BRIDGE: u8 = 7;

/// The rules as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// The bridge, whose name the table carries.
    pub bridge: String,
    /// What marks the table as ours.
    pub alias: String,
    /// The pods' networks.
    pub subnets: Vec<IpNet>,
    /// Networks that pods reach with their own address.
    pub direct: Vec<IpNet>,
    /// Whether what leaves the pod network gets the node's address.
    pub masquerade: bool,
    /// Whether ports of the node lead to pods.
    pub host_ports: bool,
    /// Those ports.
    pub forwards: Vec<PortForward>,
    /// What pods with a policy may send.
    pub policies: Vec<EgressPolicy>,
}

/// What a pod may send; everything else is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressPolicy {
    /// The node's end of the pod's link.
    pub link: String,
    /// What is allowed.
    pub rules: Vec<EgressRule>,
}

/// Something that a pod may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressRule {
    /// Where to.
    pub net: IpNet,
    /// By which protocol (its number in a packet); `None` is every one.
    pub protocol: Option<u8>,
    /// To which ports, first and last; `None` is every one.
    pub ports: Option<(u16, u16)>,
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.net)?;
        if let Some(protocol) = self.protocol {
            write!(f, " protocol {protocol}")?;
        }
        match self.ports {
            Some((first, last)) if first == last => write!(f, " port {first}"),
            Some((first, last)) => write!(f, " ports {first}-{last}"),
            None => Ok(()),
        }
    }
}

impl RuleSpec {
    /// Whether there is to be any table at all.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.has_addresses() || !self.policies.is_empty()
    }

    /// Whether addresses or ports of packets are changed.
    fn has_addresses(&self) -> bool {
        self.masquerade || self.host_ports
    }

    fn has_ipv6(&self) -> bool {
        self.subnets.iter().any(|net| matches!(net, IpNet::V6(_)))
    }

    /// The maps of ports that there are to be.
    fn maps(&self) -> impl Iterator<Item = forward::Map> {
        let ipv6 = self.has_ipv6();
        forward::MAPS
            .into_iter()
            .filter(move |map| ipv6 || !map.ipv6)
    }
}

/// The name of the table of a bridge.
fn table(bridge: &str) -> String {
    format!("quilt-{bridge}")
}

fn failed(action: &'static str) -> impl FnOnce(NetlinkError) -> NetworkError {
    NetworkError::netlink(action, "the packet rules")
}

/// Puts everything in place and lets the node forward packets. The table of addresses and ports is
/// replaced as a whole, in one transaction; of the policies only what is not as it should be, since
/// their table remembers who speaks to pods. A table of which nothing is wanted goes, and tables of
/// ours for other bridges go as well.
///
/// # Errors
///
/// [`NetworkError::NotOurs`] when somebody else has a table of that name; otherwise what the kernel
/// refused, and then nothing has changed.
pub fn ensure_rules(netfilter: &Netfilter, spec: &RuleSpec) -> Result<(), NetworkError> {
    link::validate_name("bridge", &spec.bridge)?;
    link::validate_alias(&spec.alias)?;
    netfilter.with(|socket| match replace(socket, spec) {
        // A pod has made the table of policies for its own in between.
        Err(NetworkError::Netlink { source, .. }) if source.is(libc::EEXIST) => {
            replace(socket, spec)
        }
        other => other,
    })?;
    if spec.has_addresses() {
        sysctl::forward_packets(spec.has_ipv6())?;
    }
    if spec.host_ports {
        // Only now: the guard stands before anything can get by.
        sysctl::route_loopback(&spec.bridge)?;
    }
    Ok(())
}

fn replace(socket: &mut Socket, spec: &RuleSpec) -> Result<(), NetworkError> {
    let name = table(&spec.bridge);
    let mut messages = Vec::new();
    for family in [INET, BRIDGE] {
        for (found, mark) in inspect::tables(socket, family)? {
            let ours = mark.as_deref() == Some(spec.alias.as_str());
            if found == name && !ours {
                let found = "an nf_tables table without our mark".to_owned();
                return Err(NetworkError::NotOurs { name, found });
            }
            if ours && (family == INET || found != name) {
                let table = (family, found.as_str());
                messages.push(rules::table_message(rules::DELETE_TABLE, 0, table, None));
            }
        }
    }
    if spec.has_addresses() {
        messages.extend(rules::build(&name, spec));
    }
    messages.extend(egress::put_right(socket, &name, spec)?);
    commit(socket, &messages).map_err(failed("put in place"))
}

/// Removes the tables of a bridge. Absence is success.
///
/// # Errors
///
/// What the kernel refused.
pub fn remove_rules(netfilter: &Netfilter, bridge: &str, alias: &str) -> Result<(), NetworkError> {
    let name = table(bridge);
    netfilter.with(|socket| {
        for family in [INET, BRIDGE] {
            let ours = inspect::tables(socket, family)?
                .iter()
                .any(|(found, mark)| *found == name && mark.as_deref() == Some(alias));
            if !ours {
                continue;
            }
            let message = rules::table_message(rules::DELETE_TABLE, 0, (family, &name), None);
            match commit(socket, &[message]) {
                Err(error) if !error.is(libc::ENOENT) => return Err(failed("remove")(error)),
                _ => {}
            }
        }
        Ok(())
    })
}

/// Lets ports of the node lead to a pod. One that leads elsewhere is led here instead. `false` says
/// that the table is not there, and nothing was done.
///
/// # Errors
///
/// What the kernel refused.
pub fn open_ports(
    netfilter: &Netfilter,
    bridge: &str,
    forwards: &[PortForward],
) -> Result<bool, NetworkError> {
    if forwards.is_empty() {
        return Ok(true);
    }
    netfilter.with(|socket| open_all(socket, &table(bridge), forwards))
}

fn open_all(
    socket: &mut Socket,
    name: &str,
    forwards: &[PortForward],
) -> Result<bool, NetworkError> {
    let add = |forward: &PortForward| forward.message(name, forward::ADD);
    let all: Vec<_> = forwards.iter().map(add).collect();
    match commit(socket, &all) {
        Ok(()) => return Ok(true),
        Err(error) if error.is(libc::ENOENT) => return Ok(false),
        // Somebody's entry with another destination, such as one of a pod that is gone.
        Err(error) if error.is(libc::EBUSY) || error.is(libc::EEXIST) => {}
        Err(error) => return Err(failed("open a port in")(error)),
    }
    for forward in forwards {
        let replace = [forward.message(name, forward::DELETE), add(forward)];
        match commit(socket, &replace) {
            Err(error) if error.is(libc::ENOENT) => commit(socket, &[add(forward)]),
            other => other,
        }
        .map_err(failed("open a port in"))?;
    }
    Ok(true)
}

/// Takes ports away again. One that is not there is success.
///
/// # Errors
///
/// What the kernel refused.
pub fn close_ports(
    netfilter: &Netfilter,
    bridge: &str,
    forwards: &[PortForward],
) -> Result<(), NetworkError> {
    if forwards.is_empty() {
        return Ok(());
    }
    netfilter.with(|socket| close_all(socket, &table(bridge), forwards))
}

fn close_all(
    socket: &mut Socket,
    name: &str,
    forwards: &[PortForward],
) -> Result<(), NetworkError> {
    let delete = |forward: &PortForward| forward.message(name, forward::DELETE);
    let all: Vec<_> = forwards.iter().map(delete).collect();
    match commit(socket, &all) {
        Ok(()) => return Ok(()),
        Err(error) if error.is(libc::ENOENT) => {}
        Err(error) => return Err(failed("close a port in")(error)),
    }
    for forward in forwards {
        match commit(socket, &[delete(forward)]) {
            Err(error) if !error.is(libc::ENOENT) => {
                return Err(failed("close a port in")(error));
            }
            _ => {}
        }
    }
    Ok(())
}
