//! A pod's link: a veth pair between its network namespace and the bridge, its address and default
//! route.
//!
//! ```text
//! absent ──one batch: create, mark, attach──► made ──one batch: up, address, route──► configured
//!                                                                    ──node's end up──► connected
//! ```
//!
//! Any state is completed by calling [`ensure_pod_link`] again. A half that has lost its other half
//! is replaced. Only links with our mark (their alias) are ever changed, or a veth of the very name
//! that has none yet.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkInfo, LinkMessage,
};
use nix::sched::{CloneFlags, setns};

use super::address;
use super::config::validate_mtu;
use super::error::NetworkError;
use super::link::{self, Link};
use super::namespace::is_pinned;
use super::netlink::{Request, Socket};
use super::shaping::shaper_name;
use super::sysctl::{Sysctl, prepare_for_ipv6, refuse_router_advertisements};

/// A pod's link, as it should be.
#[derive(Debug, Clone, Copy)]
pub struct PodLinkSpec<'a> {
    /// The pinned network namespace.
    pub netns: &'a Path,
    /// Name of the node's end, at most 15 bytes, the same for every attempt.
    pub host_name: &'a str,
    /// Name of the pod's end: `eth0`.
    pub pod_name: &'a str,
    /// The bridge that the node's end is attached to.
    pub bridge: &'a str,
    /// The pod's address, with the prefix length of the subnet.
    pub address: Ipv4Net,
    /// Where the pod's default route leads; in the subnet.
    pub gateway: Ipv4Addr,
    /// The IPv6 address with the prefix length of its subnet, and where the default route leads.
    pub ipv6: Option<(Ipv6Net, Ipv6Addr)>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// What marks the link as ours.
    pub alias: &'a str,
    /// The pod's sysctls; those of the interface `pod_name` are set, the others left out.
    pub sysctls: &'a [(String, String)],
}

impl PodLinkSpec<'_> {
    /// Each address with its gateway.
    pub(super) fn addresses(&self) -> Vec<(IpNet, IpAddr)> {
        let mut all = vec![(IpNet::V4(self.address), IpAddr::V4(self.gateway))];
        let ipv6 = self.ipv6.iter();
        all.extend(ipv6.map(|(net, gateway)| (IpNet::V6(*net), IpAddr::V6(*gateway))));
        all
    }
}

/// The hardware address that belongs to an IPv4 address, as CNI's bridge derives it: the same pod
/// address keeps the same one, so neighbours need not learn again.
#[must_use]
pub fn mac_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Connects a pod: creates what is missing of its link and sets it up.
///
/// # Errors
///
/// [`NetworkError::Invalid`] before anything is touched; [`NetworkError::NotOurs`] when the name is
/// somebody else's; otherwise the step that failed, after which it can be called again.
pub fn ensure_pod_link(spec: &PodLinkSpec<'_>) -> Result<(), NetworkError> {
    let sysctls = validate(spec)?;
    let netns = open_netns(spec.netns)?;
    let mut host = open_socket(spec.host_name)?;
    in_namespace(&netns, || {
        let mut pod = open_socket(spec.pod_name)?;
        prepare(&mut host, &mut pod, &netns, spec)?;
        configure(&mut host, &mut pod, spec)?;
        sysctls.iter().try_for_each(Sysctl::apply)
    })
}

/// Whether a pod's link is complete as far as the node's end shows: ours, up with a carrier (so
/// that the pod's end, which comes first, is up as well), on its bridge, with the right MTU, and
/// no sysctl is asked for on it. One round trip to the kernel.
///
/// # Errors
///
/// [`NetworkError::Invalid`], or when the kernel cannot be asked.
pub fn is_connected(spec: &PodLinkSpec<'_>) -> Result<bool, NetworkError> {
    if !validate(spec)?.is_empty() {
        return Ok(false);
    }
    let (bridge, found) = on_the_node(&mut open_socket(spec.host_name)?, spec)?;
    Ok(bridge.zip(found).is_some_and(|(bridge, found)| {
        found.is_kind("veth")
            && found.alias.as_deref() == Some(spec.alias)
            && found.peer_elsewhere
            && found.controller == Some(bridge.index)
            && found.mtu == spec.mtu
            && found.operational
    }))
}

/// Removes a pod's link by the name of its node's end; the other end goes with it, and what limits
/// the pod. Absence is success. The kernel makes the caller wait 16 to 35 ms (`rcu_barrier` after
/// the interface is gone, without a lock that others need), so this belongs off the path of any
/// request.
///
/// A namespace that ends takes its links with it, many at once: forty in the 40 ms that two take
/// one by one. So after the pod's processes have ended, call
/// [`remove_namespaces`](super::remove_namespaces) first, and this a moment later, to make sure.
///
/// # Errors
///
/// [`NetworkError::NotOurs`] when the interface has another mark or kind.
pub fn remove_pod_link(host_name: &str, alias: &str) -> Result<(), NetworkError> {
    link::validate_name("host_name", host_name)?;
    link::validate_alias(alias)?;
    let mut host = open_socket(host_name)?;
    if let Some(found) = link::find(&mut host, host_name)? {
        if found.is_kind("ifb") && found.alias.as_deref() == Some(alias) {
            return delete(&mut host, &found);
        }
        require_ours(&found, alias)?;
        delete(&mut host, &found)?;
    }
    // What the pod sent was led through another interface, if it was limited.
    let shaper = shaper_name(host_name);
    match link::find(&mut host, &shaper)? {
        Some(found) if found.is_kind("ifb") && found.alias.as_deref() == Some(alias) => {
            delete(&mut host, &found)
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a thread in the network namespace, because a thread of a pool must stay in its
/// own.
pub(super) fn in_namespace<T: Send>(
    netns: &File,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let entered = || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::System {
                action: "enter the pod's network namespace",
                source: errno.into(),
            })?;
            work()
        };
        scope
            .spawn(entered)
            .join()
            .map_err(|_| NetworkError::ThreadPanicked("works in the pod's namespace"))?
    })
}

pub(super) fn open_netns(path: &Path) -> Result<File, NetworkError> {
    if !is_pinned(path) {
        return Err(NetworkError::NotANamespace(path.to_owned()));
    }
    File::open(path).map_err(NetworkError::file("open", path))
}

pub(super) fn open_socket(name: &str) -> Result<Socket, NetworkError> {
    Socket::open().map_err(NetworkError::netlink("open a socket for", name))
}

/// Whether two interfaces are the two ends of one pair, seen from two namespaces.
pub(super) fn are_a_pair(host: &Link, pod: &Link) -> bool {
    host.is_kind("veth")
        && pod.is_kind("veth")
        && host.peer_elsewhere
        && host.peer_index == Some(pod.index)
        && pod.peer_index == Some(host.index)
}

fn validate(spec: &PodLinkSpec<'_>) -> Result<Vec<Sysctl>, NetworkError> {
    link::validate_name("host_name", spec.host_name)?;
    link::validate_name("pod_name", spec.pod_name)?;
    link::validate_name("bridge", spec.bridge)?;
    link::validate_alias(spec.alias)?;
    validate_mtu("mtu", spec.mtu)?;
    for (address, gateway) in spec.addresses() {
        if !address.contains(&gateway) {
            return Err(NetworkError::GatewayOutside { gateway, address });
        }
    }
    Sysctl::of_interface(spec.sysctls, spec.pod_name)
}

/// A veth without a mark is taken for one of ours that was never marked: its name is derived from a
/// sandbox id. One with another mark is not.
fn require_ours(found: &Link, alias: &str) -> Result<(), NetworkError> {
    let marked = found.alias.as_deref();
    if found.is_kind("veth") && (marked.is_none() || marked == Some(alias)) {
        return Ok(());
    }
    Err(NetworkError::NotOurs {
        name: found.name.clone(),
        found: found.describe(),
    })
}

/// The bridge, and the node's end of the pair, in one round trip.
pub(super) fn on_the_node(
    host: &mut Socket,
    spec: &PodLinkSpec<'_>,
) -> Result<(Option<Link>, Option<Link>), NetworkError> {
    let outcomes = host
        .batch(vec![link::get(spec.bridge), link::get(spec.host_name)])
        .map_err(NetworkError::netlink("read", spec.host_name))?;
    let [bridge, found] = <[_; 2]>::try_from(outcomes).map_err(|_| vanished(spec.bridge))?;
    let bridge = link::read(bridge, spec.bridge)?;
    Ok((bridge, link::read(found, spec.host_name)?))
}

/// Makes sure that the pair exists, is marked and attached.
fn prepare(
    host: &mut Socket,
    pod: &mut Socket,
    netns: &File,
    spec: &PodLinkSpec<'_>,
) -> Result<(), NetworkError> {
    let (bridge, found) = on_the_node(host, spec)?;
    let bridge = bridge
        .filter(|bridge| bridge.is_kind("bridge"))
        .ok_or_else(|| NetworkError::NoBridge {
            name: spec.bridge.to_owned(),
        })?;
    let Some(found) = found else {
        return match create(host, netns, &bridge, spec) {
            // The pod has an interface of that name already: the half of a lost pair.
            Err(NetworkError::Netlink { source, .. }) if source.is(libc::EEXIST) => {
                remove_pod_end(pod, spec)?;
                create(host, netns, &bridge, spec)
            }
            other => other,
        };
    };
    require_ours(&found, spec.alias)?;
    let pod_end = link::find(pod, spec.pod_name)?;
    if !pod_end.is_some_and(|pod_end| are_a_pair(&found, &pod_end)) {
        delete(host, &found)?;
        remove_pod_end(pod, spec)?;
        return create(host, netns, &bridge, spec);
    }
    let mut message = link::indexed(found.index);
    describe_host_end(&mut message, &bridge, spec);
    message.attributes.push(LinkAttribute::Mtu(spec.mtu));
    let outcomes = host
        .batch(vec![link::change(message), hairpin(spec.host_name)])
        .map_err(NetworkError::netlink("mark and attach", spec.host_name))?;
    for (outcome, action) in outcomes.into_iter().zip(ATTACHING) {
        outcome.map_err(NetworkError::netlink(action, spec.host_name))?;
    }
    remove_other_addresses(pod, spec)
}

/// Whether the node has an interface of this name.
///
/// # Errors
///
/// [`NetworkError::Invalid`], or when the kernel cannot be asked.
pub fn has_link(name: &str) -> Result<bool, NetworkError> {
    link::validate_name("link", name)?;
    Ok(link::find(&mut open_socket(name)?, name)?.is_some())
}

fn vanished(name: &str) -> NetworkError {
    NetworkError::Vanished {
        name: name.to_owned(),
        place: "on the node",
    }
}

/// Creates the pair with one end in the pod, marks it and attaches it, all in one system call.
///
/// Neither end is up yet: `IFF_UP` on the pod's end inside this request fails with `ENOTCONN`,
/// since its other half does not exist at that moment; and the node's end comes last of all.
fn create(
    host: &mut Socket,
    netns: &File,
    bridge: &Link,
    spec: &PodLinkSpec<'_>,
) -> Result<(), NetworkError> {
    let mut pod_end = link::named(spec.pod_name);
    pod_end.attributes.extend([
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::Address(mac_address(spec.address.addr()).to_vec()),
    ]);
    let mut new = link::named(spec.host_name);
    new.attributes.extend([
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(pod_end))),
        ]),
    ]);
    let mut described = link::named(spec.host_name);
    describe_host_end(&mut described, bridge, spec);
    let outcomes = host
        .batch(vec![
            link::create(new),
            link::change(described),
            hairpin(spec.host_name),
        ])
        .map_err(NetworkError::netlink("create", spec.host_name))?;
    for (outcome, action) in outcomes
        .into_iter()
        .zip(["create"].into_iter().chain(ATTACHING))
    {
        outcome.map_err(NetworkError::netlink(action, spec.host_name))?;
    }
    Ok(())
}

/// How often an interface is looked at that has no carrier yet: 45 ms in all.
const CARRIER_LOOKS: u64 = 10;

/// What is done to the node's end, for errors.
const ATTACHING: [&str; 2] = ["mark and attach", "send its own back to"];

/// Lets the bridge send a frame out by the port that it came in by. Where `br_netfilter` is on, the
/// node's rules see bridged frames, and a pod that calls itself by a port of the node would never
/// be heard.
fn hairpin(host_name: &str) -> Request {
    let mut message = link::named(host_name);
    let mode = InfoBridgePort::HairpinMode(true);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![mode])),
    ]));
    link::change_port(message)
}

fn describe_host_end(message: &mut LinkMessage, bridge: &Link, spec: &PodLinkSpec<'_>) {
    message
        .attributes
        .push(LinkAttribute::IfAlias(spec.alias.to_owned()));
    message
        .attributes
        .push(LinkAttribute::Controller(bridge.index));
    if link::ipv6_exists() {
        message.attributes.push(link::without_ipv6_addresses());
    }
}

/// Sets the pod's end up with its address and route, and then the node's end. In this order both
/// ends have a carrier the moment the bridge sees its port come up. The calling thread is in the
/// pod's network namespace.
fn configure(
    host: &mut Socket,
    pod: &mut Socket,
    spec: &PodLinkSpec<'_>,
) -> Result<(), NetworkError> {
    let pod_end = link::find(pod, spec.pod_name)?.ok_or_else(|| NetworkError::Vanished {
        name: spec.pod_name.to_owned(),
        place: "in the pod",
    })?;
    refuse_router_advertisements(spec.pod_name)?;
    if spec.ipv6.is_some() {
        prepare_for_ipv6(spec.pod_name)?;
    }
    let mut message = link::indexed(pod_end.index);
    let mac = mac_address(spec.address.addr());
    if pod_end.address != mac {
        message
            .attributes
            .push(LinkAttribute::Address(mac.to_vec()));
    }
    if pod_end.mtu != spec.mtu {
        message.attributes.push(LinkAttribute::Mtu(spec.mtu));
    }
    link::set_up(&mut message);
    let mut requests = vec![link::change(message)];
    for (address, gateway) in spec.addresses() {
        requests.push(address::assign(pod_end.index, address));
        requests.push(address::default_route(pod_end.index, gateway));
    }
    let outcomes = pod
        .batch(requests)
        .map_err(NetworkError::netlink("configure", spec.pod_name))?;
    let each = ["give an address to", "route by way of"];
    let actions = ["set up"].into_iter().chain(each.into_iter().cycle());
    for (outcome, action) in outcomes.into_iter().zip(actions) {
        outcome.map_err(NetworkError::netlink(action, spec.pod_name))?;
    }
    let mut message = link::named(spec.host_name);
    link::set_up(&mut message);
    let outcome = host.one(link::change(message));
    outcome.map_err(NetworkError::netlink("set up", spec.host_name))?;
    await_carrier(pod, spec.pod_name)?;
    await_carrier(host, spec.bridge)
}

/// Waits until an interface takes packets. One that was set up before it had a carrier is given it
/// by a worker of the kernel (`net/core/link_watch.c`) and drops what is sent before. Newer kernels
/// do that work when they are asked about the interface (`linkwatch_sync_dev`).
fn await_carrier(socket: &mut Socket, name: &str) -> Result<(), NetworkError> {
    for pause in 0..CARRIER_LOOKS {
        if link::find(socket, name)?.is_none_or(|link| link.operational) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(pause));
    }
    // A packet that is lost now is sent again; the pod is not lost for it.
    tracing::debug!(interface = name, "has no carrier yet");
    Ok(())
}

/// Addresses that the pod's end has from an earlier attempt with another one.
fn remove_other_addresses(pod: &mut Socket, spec: &PodLinkSpec<'_>) -> Result<(), NetworkError> {
    let Some(pod_end) = link::find(pod, spec.pod_name)? else {
        return Ok(());
    };
    for found in address::list(pod)? {
        let wanted = spec.addresses();
        let is_wanted = wanted.iter().any(|(address, _)| *address == found.address);
        if found.index == pod_end.index && !is_wanted {
            match pod.one(address::withdraw(found.index, found.address)) {
                Err(error) if !address::already_gone(&error) => {
                    return Err(NetworkError::netlink("withdraw", spec.pod_name)(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn remove_pod_end(pod: &mut Socket, spec: &PodLinkSpec<'_>) -> Result<(), NetworkError> {
    let Some(found) = link::find(pod, spec.pod_name)? else {
        return Ok(());
    };
    if !found.is_kind("veth") {
        return Err(NetworkError::NotOurs {
            name: found.name.clone(),
            found: found.describe(),
        });
    }
    delete(pod, &found)
}

fn delete(socket: &mut Socket, found: &Link) -> Result<(), NetworkError> {
    match socket.one(link::delete(link::indexed(found.index))) {
        Err(error) if !error.is(libc::ENODEV) => {
            Err(NetworkError::netlink("remove", &found.name)(error))
        }
        _ => Ok(()),
    }
}
