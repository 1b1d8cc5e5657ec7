//! The bridge that joins the node's pods: one per daemon, made when absent.
//!
//! An interface is known as ours by its alias. One of the same name without that alias, of another
//! kind belongs to somebody, and is refused, never changed. Pods reach each other on the bridge,
//! and the node at the bridge's addresses, one for each of the pods' subnets. Where the kernel's
//! `br_netfilter` is on (`/proc/sys/net/bridge/bridge-nf-call-iptables` is 1), the node's firewall
//! sees bridged frames as if forwarded, and a FORWARD policy of DROP cuts pods off from each other.

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo,
};

use super::address;
use super::config::validate_mtu;
use super::error::NetworkError;
use super::link::{self, Link};
use super::netlink::Socket;
use super::pod::mac_address;
use super::sysctl::{prepare_for_ipv6, refuse_router_advertisements};

/// A bridge, as it should be.
#[derive(Debug, Clone, Copy)]
pub struct BridgeSpec<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Its own address, which is the pods' gateway, with the prefix length of their subnet.
    pub gateway: Ipv4Net,
    /// Further addresses: the IPv6 gateway, and those of pods that were made under another
    /// configuration. Whatever else it has is taken from it.
    pub others: &'a [IpNet],
    /// Largest packet in bytes.
    pub mtu: u32,
    /// What marks it as ours: `quilt:` and something that only this daemon's root has.
    pub alias: &'a str,
}

impl BridgeSpec<'_> {
    /// All addresses that it should have.
    pub(super) fn addresses(&self) -> Vec<IpNet> {
        let mut all = vec![IpNet::V4(self.gateway)];
        let others = self.others.iter();
        all.extend(others.filter(|net| **net != IpNet::V4(self.gateway)));
        all
    }
}

/// Creates the bridge, or completes an existing one of ours, and sets it up.
///
/// # Errors
///
/// [`NetworkError::NotOurs`] and [`NetworkError::SubnetInUse`] when the name or a subnet is
/// somebody else's; then nothing has been changed.
pub fn ensure_bridge(spec: &BridgeSpec<'_>) -> Result<(), NetworkError> {
    link::validate_name("bridge", spec.name)?;
    link::validate_alias(spec.alias)?;
    validate_mtu("mtu", spec.mtu)?;
    let mut socket =
        Socket::open().map_err(NetworkError::netlink("open a socket for", spec.name))?;
    let existing = link::find(&mut socket, spec.name)?;
    if let Some(found) = &existing {
        require_ours(found, spec.alias)?;
    }
    let strange = check_addresses(&mut socket, spec, existing.as_ref())?;
    if existing.is_none() {
        create(&mut socket, spec)?;
    }
    let bridge = link::find(&mut socket, spec.name)?.ok_or_else(|| vanished(spec.name))?;
    // Before it is up, and so before a pod can say anything to the node.
    refuse_router_advertisements(spec.name)?;
    let wanted = spec.addresses();
    if wanted.iter().any(|net| matches!(net, IpNet::V6(_))) {
        prepare_for_ipv6(spec.name)?;
    }
    let mut message = link::indexed(bridge.index);
    if bridge.mtu != spec.mtu {
        message.attributes.push(LinkAttribute::Mtu(spec.mtu));
    }
    link::set_up(&mut message);
    // What goes comes first: an address takes others of its subnet with it.
    let mut requests: Vec<_> = strange
        .iter()
        .map(|net| address::withdraw(bridge.index, *net))
        .collect();
    requests.extend(wanted.iter().map(|net| address::assign(bridge.index, *net)));
    requests.push(link::change(message));
    let outcomes = socket
        .batch(requests)
        .map_err(NetworkError::netlink("configure the bridge", spec.name))?;
    let actions = std::iter::repeat_n("take an address from", strange.len())
        .chain(std::iter::repeat_n("give an address to", wanted.len()))
        .chain(["set up"]);
    for (outcome, action) in outcomes.into_iter().zip(actions) {
        match outcome {
            Err(error) if address::already_gone(&error) && action.starts_with("take") => {}
            other => drop(other.map_err(NetworkError::netlink(action, spec.name))?),
        }
    }
    Ok(())
}

/// Removes the bridge if it is ours and has no ports. Absence is success.
///
/// # Errors
///
/// [`NetworkError::NotOurs`] and [`NetworkError::BridgeInUse`].
pub fn remove_bridge(name: &str, alias: &str) -> Result<(), NetworkError> {
    link::validate_name("bridge", name)?;
    link::validate_alias(alias)?;
    let mut socket = Socket::open().map_err(NetworkError::netlink("open a socket for", name))?;
    let Some(bridge) = link::find(&mut socket, name)? else {
        return Ok(());
    };
    require_ours(&bridge, alias)?;
    let ports: Vec<String> = link::list(&mut socket)?
        .into_iter()
        .filter(|port| port.controller == Some(bridge.index))
        .map(|port| port.name)
        .collect();
    if !ports.is_empty() {
        return Err(NetworkError::BridgeInUse {
            name: name.to_owned(),
            ports,
        });
    }
    match socket.one(link::delete(link::indexed(bridge.index))) {
        Err(error) if !error.is(libc::ENODEV) => {
            Err(NetworkError::netlink("remove the bridge", name)(error))
        }
        _ => Ok(()),
    }
}

fn vanished(name: &str) -> NetworkError {
    NetworkError::Vanished {
        name: name.to_owned(),
        place: "on the node",
    }
}

fn require_ours(found: &Link, alias: &str) -> Result<(), NetworkError> {
    if found.is_kind("bridge") && found.alias.as_deref() == Some(alias) {
        return Ok(());
    }
    Err(NetworkError::NotOurs {
        name: found.name.clone(),
        found: found.describe(),
    })
}

/// Refuses a subnet that the node already uses elsewhere: two interfaces in one subnet would take
/// each other's traffic. Returns what the bridge has and should not have.
fn check_addresses(
    socket: &mut Socket,
    spec: &BridgeSpec<'_>,
    bridge: Option<&Link>,
) -> Result<Vec<IpNet>, NetworkError> {
    let wanted = spec.addresses();
    let mut strange = Vec::new();
    for found in address::list(socket)? {
        if bridge.is_some_and(|bridge| bridge.index == found.index) {
            if !wanted.contains(&found.address) {
                strange.push(found.address);
            }
            continue;
        }
        let mut subnets = wanted.iter().map(IpNet::trunc);
        if let Some(subnet) = subnets.find(|net| overlaps(*net, found.address)) {
            return Err(NetworkError::SubnetInUse {
                subnet,
                address: found.address,
                interface: name_of(socket, found.index),
            });
        }
    }
    Ok(strange)
}

fn overlaps(left: IpNet, right: IpNet) -> bool {
    left.contains(&right.addr()) || right.contains(&left.network())
}

/// For an error message: the interface's name, or its index when it is just going.
fn name_of(socket: &mut Socket, index: u32) -> String {
    let links = link::list(socket).unwrap_or_default();
    let found = links.into_iter().find(|link| link.index == index);
    found.map_or_else(|| format!("number {index}"), |link| link.name)
}

/// Creates and marks it in one system call, so that no bridge of ours is ever without its mark.
fn create(socket: &mut Socket, spec: &BridgeSpec<'_>) -> Result<(), NetworkError> {
    let mut new = link::named(spec.name);
    let address = mac_address(spec.gateway.addr());
    new.attributes.extend([
        LinkAttribute::Mtu(spec.mtu),
        // An address of its own: without one, a bridge takes its lowest port's, and so changes
        // it as pods come and go, while pods remember the old one.
        LinkAttribute::Address(address.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                // No spanning tree and no delay: a new port forwards at once.
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::ForwardDelay(0),
            ])),
        ]),
    ]);
    let mut mark = link::named(spec.name);
    mark.attributes
        .push(LinkAttribute::IfAlias(spec.alias.to_owned()));
    let outcomes = socket
        .batch(vec![link::create(new), link::change(mark)])
        .map_err(NetworkError::netlink("create the bridge", spec.name))?;
    for (outcome, action) in outcomes
        .into_iter()
        .zip(["create the bridge", "mark as ours"])
    {
        outcome.map_err(NetworkError::netlink(action, spec.name))?;
    }
    Ok(())
}
