//! What there is: whether a pod's link is as it should be, and which links carry a mark of ours.
//!
//! Reads only. What to do about it is the caller's to decide.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::address;
use super::bridge::BridgeSpec;
use super::error::NetworkError;
use super::link;
use super::netlink::Socket;
use super::pod::{
    PodLinkSpec, are_a_pair, in_namespace, mac_address, on_the_node, open_netns, open_socket,
};

/// Something about a pod's link that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The network namespace is not pinned.
    NamespaceMissing,
    /// The node's end does not exist.
    HostLinkMissing,
    /// The pod's end does not exist.
    PodLinkMissing,
    /// The two ends are not each other's.
    NotAPair,
    /// The node's end has another mark, or none.
    AliasDiffers(Option<String>),
    /// The node's end is not a port of the bridge.
    NotOnBridge,
    /// The node's end is down.
    HostLinkDown,
    /// The pod's end is down.
    PodLinkDown,
    /// An end's MTU in bytes is another one.
    MtuDiffers(u32),
    /// The pod's end has another hardware address.
    HardwareAddressDiffers,
    /// The pod does not have this address of its.
    AddressMissing(IpNet),
    /// The pod's end has an address that the pod was not given.
    AnotherAddress(IpNet),
    /// The pod has no default route by way of this gateway.
    DefaultRouteMissing(IpAddr),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NamespaceMissing => f.write_str("the network namespace is not pinned"),
            Self::HostLinkMissing => f.write_str("the node's end of the link is missing"),
            Self::PodLinkMissing => f.write_str("the pod's end of the link is missing"),
            Self::NotAPair => f.write_str("the two ends do not belong to each other"),
            Self::AliasDiffers(Some(alias)) => write!(f, "the link is marked {alias:?}"),
            Self::AliasDiffers(None) => f.write_str("the link is not marked"),
            Self::NotOnBridge => f.write_str("the node's end is not attached to the bridge"),
            Self::HostLinkDown => f.write_str("the node's end of the link is down"),
            Self::PodLinkDown => f.write_str("the pod's end of the link is down"),
            Self::MtuDiffers(mtu) => write!(f, "the link's MTU is {mtu}"),
            Self::HardwareAddressDiffers => f.write_str("the pod has another hardware address"),
            Self::AddressMissing(address) => {
                write!(f, "the pod does not have its address {address}")
            }
            Self::AnotherAddress(other) => write!(f, "the pod has the address {other} as well"),
            Self::DefaultRouteMissing(gateway) => {
                write!(f, "the pod has no default route by way of {gateway}")
            }
        }
    }
}

/// An interface of the node that carries a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedLink {
    /// Its name.
    pub name: String,
    /// Its mark.
    pub alias: String,
    /// `veth` or `bridge`.
    pub kind: String,
    /// Whether it is ready to pass packets.
    pub operational: bool,
}

/// Something about the bridge that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BridgeProblem {
    /// It does not exist.
    Missing,
    /// Something else has its name; in words.
    NotOurs(String),
    /// It is down.
    Down,
    /// It does not have this address.
    AddressMissing(IpNet),
    /// Its MTU in bytes is another one.
    MtuDiffers(u32),
}

impl fmt::Display for BridgeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the bridge is missing"),
            Self::NotOurs(found) => write!(f, "an interface of its name is not ours: {found}"),
            Self::Down => f.write_str("the bridge is down"),
            Self::AddressMissing(address) => {
                write!(f, "the bridge does not have the address {address}")
            }
            Self::MtuDiffers(mtu) => write!(f, "the bridge's MTU is {mtu}"),
        }
    }
}

/// Compares the bridge with what it should be. An empty list means that it is so.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn check_bridge(spec: &BridgeSpec<'_>) -> Result<Vec<BridgeProblem>, NetworkError> {
    let mut socket = open_socket(spec.name)?;
    let Some(found) = link::find(&mut socket, spec.name)? else {
        return Ok(vec![BridgeProblem::Missing]);
    };
    if !found.is_kind("bridge") || found.alias.as_deref() != Some(spec.alias) {
        return Ok(vec![BridgeProblem::NotOurs(found.describe())]);
    }
    let mut problems = Vec::new();
    if !found.up {
        problems.push(BridgeProblem::Down);
    }
    if found.mtu != spec.mtu {
        problems.push(BridgeProblem::MtuDiffers(found.mtu));
    }
    let assigned = address::list(&mut socket)?;
    for wanted in spec.addresses() {
        let has = address::Assigned {
            index: found.index,
            address: wanted,
        };
        if !assigned.contains(&has) {
            problems.push(BridgeProblem::AddressMissing(wanted));
        }
    }
    Ok(problems)
}

/// Compares a pod's link with what it should be. An empty list means that it is so.
///
/// # Errors
///
/// When the kernel cannot be asked; a thing that is missing is a problem, not an error.
pub fn check_pod_link(spec: &PodLinkSpec<'_>) -> Result<Vec<Problem>, NetworkError> {
    let mut problems = Vec::new();
    let (bridge, host_end) = on_the_node(&mut open_socket(spec.host_name)?, spec)?;
    match &host_end {
        None => problems.push(Problem::HostLinkMissing),
        Some(found) => {
            if found.alias.as_deref() != Some(spec.alias) {
                problems.push(Problem::AliasDiffers(found.alias.clone()));
            }
            if found.controller.is_none() || found.controller != bridge.map(|b| b.index) {
                problems.push(Problem::NotOnBridge);
            }
            if !found.up {
                problems.push(Problem::HostLinkDown);
            }
            if found.mtu != spec.mtu {
                problems.push(Problem::MtuDiffers(found.mtu));
            }
        }
    }
    let Ok(netns) = open_netns(spec.netns) else {
        problems.push(Problem::NamespaceMissing);
        return Ok(problems);
    };
    let mut pod = in_namespace(&netns, || open_socket(spec.pod_name))?;
    let Some(pod_end) = link::find(&mut pod, spec.pod_name)? else {
        problems.push(Problem::PodLinkMissing);
        return Ok(problems);
    };
    let mut unless = |holds: bool, problem| {
        if !holds {
            problems.push(problem);
        }
    };
    unless(
        host_end.is_none_or(|host_end| are_a_pair(&host_end, &pod_end)),
        Problem::NotAPair,
    );
    unless(pod_end.up, Problem::PodLinkDown);
    unless(pod_end.mtu == spec.mtu, Problem::MtuDiffers(pod_end.mtu));
    let mac = mac_address(spec.address.addr());
    unless(pod_end.address == mac, Problem::HardwareAddressDiffers);
    compare_addresses(&mut pod, pod_end.index, spec, &mut problems)?;
    Ok(problems)
}

fn compare_addresses(
    pod: &mut Socket,
    index: u32,
    spec: &PodLinkSpec<'_>,
    problems: &mut Vec<Problem>,
) -> Result<(), NetworkError> {
    let own: Vec<IpNet> = address::list(pod)?
        .into_iter()
        .filter(|assigned| assigned.index == index)
        .map(|assigned| assigned.address)
        .collect();
    let gateways = address::default_gateways(pod, index)?;
    let wanted = spec.addresses();
    for (address, gateway) in &wanted {
        if !own.contains(address) {
            problems.push(Problem::AddressMissing(*address));
        }
        if !gateways.contains(gateway) {
            problems.push(Problem::DefaultRouteMissing(*gateway));
        }
    }
    let strange = own
        .into_iter()
        .filter(|address| wanted.iter().all(|(wanted, _)| wanted != address));
    problems.extend(strange.map(Problem::AnotherAddress));
    Ok(())
}

/// The node's interfaces whose mark begins with `alias_prefix`, for finding what has no row.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn list_links(alias_prefix: &str) -> Result<Vec<MarkedLink>, NetworkError> {
    let mut socket = open_socket("the node")?;
    let links = link::list(&mut socket)?;
    let marked = links.into_iter().filter_map(|found| {
        let alias = found
            .alias
            .filter(|alias| alias.starts_with(alias_prefix))?;
        Some(MarkedLink {
            name: found.name,
            alias,
            kind: found.kind.unwrap_or_default(),
            operational: found.operational,
        })
    });
    Ok(marked.collect())
}
