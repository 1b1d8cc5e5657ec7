//! Addresses and routes of an interface, as netlink messages and back (rtnetlink(7)).
//!
//! IPv6 addresses are given without duplicate address detection (`IFA_F_NODAD`, RFC 4862 §5.4):
//! each is used once by construction, and waiting for it costs a second or more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::NetworkError;
use super::netlink::{NetlinkError, Reply, Request, Socket};

/// `struct ifaddrmsg`.
const ADDRESS_HEADER_BYTES: usize = 8;
/// `struct rtmsg`.
const ROUTE_HEADER_BYTES: usize = 12;
/// `IFA_ADDRESS` is an IPv6 address; IPv4 has the interface's own in `IFA_LOCAL`.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// An address that some interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) index: u32,
    pub(super) address: IpNet,
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    match address {
        IpNet::V4(address) => {
            message.header.family = AddressFamily::Inet;
            let broadcast = AddressAttribute::Broadcast(address.broadcast());
            message.attributes.push(broadcast);
        }
        IpNet::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(flags);
        }
    }
    message
}

/// Gives an interface an address; having it already is success.
pub(super) fn assign(index: u32, address: IpNet) -> Request {
    let message = RouteNetlinkMessage::NewAddress(message(index, address));
    Request::with_flags(message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes an address from an interface.
pub(super) fn withdraw(index: u32, address: IpNet) -> Request {
    Request::new(RouteNetlinkMessage::DelAddress(message(index, address)))
}

/// The default route by way of `gateway`; an existing one is replaced.
pub(super) fn default_route(index: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    let (family, gateway) = match gateway {
        IpAddr::V4(gateway) => (AddressFamily::Inet, RouteAddress::Inet(gateway)),
        IpAddr::V6(gateway) => (AddressFamily::Inet6, RouteAddress::Inet6(gateway)),
    };
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(index)];
    Request::with_flags(
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// All addresses of the socket's namespace, but those that interfaces give themselves for their
/// own link.
pub(super) fn list(socket: &mut Socket) -> Result<Vec<Assigned>, NetworkError> {
    let message = AddressMessage::default();
    let replies = socket
        .dump(&RouteNetlinkMessage::GetAddress(message))
        .map_err(NetworkError::netlink("list", "addresses"))?;
    Ok(replies.iter().filter_map(parse_address).collect())
}

fn parse_address(reply: &Reply) -> Option<Assigned> {
    let header = AddressHeader::parse(&reply.payload).ok()?;
    let attributes = reply.payload.get(ADDRESS_HEADER_BYTES..)?;
    let address: IpAddr = match header.family {
        AddressFamily::Inet => Ipv4Addr::from(find::<4>(attributes, IFA_LOCAL)?).into(),
        AddressFamily::Inet6 if header.scope == AddressScope::Universe => {
            Ipv6Addr::from(find::<16>(attributes, IFA_ADDRESS)?).into()
        }
        _ => return None,
    };
    Some(Assigned {
        index: header.index,
        address: IpNet::new(address, header.prefix_len).ok()?,
    })
}

/// The gateways of the default routes that leave by this interface.
pub(super) fn default_gateways(
    socket: &mut Socket,
    index: u32,
) -> Result<Vec<IpAddr>, NetworkError> {
    let message = RouteMessage::default();
    let replies = socket
        .dump(&RouteNetlinkMessage::GetRoute(message))
        .map_err(NetworkError::netlink("list", "routes"))?;
    Ok(replies
        .iter()
        .filter_map(|reply| parse_default_gateway(reply, index))
        .collect())
}

fn parse_default_gateway(reply: &Reply, index: u32) -> Option<IpAddr> {
    let header = RouteHeader::parse(&reply.payload).ok()?;
    if header.destination_prefix_length != 0 || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let attributes = reply.payload.get(ROUTE_HEADER_BYTES..)?;
    let leaves_by = u32::from_ne_bytes(find(attributes, RTA_OIF)?);
    let gateway: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::from(find::<4>(attributes, RTA_GATEWAY)?).into(),
        AddressFamily::Inet6 => Ipv6Addr::from(find::<16>(attributes, RTA_GATEWAY)?).into(),
        _ => return None,
    };
    (leaves_by == index).then_some(gateway)
}

/// The first bytes of an attribute: all of an address or an index.
fn find<const N: usize>(attributes: &[u8], kind: u16) -> Option<[u8; N]> {
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == kind)
        .and_then(|attribute| attribute.value().first_chunk().copied())
}

/// Whether a refusal to withdraw only says that the address is gone.
pub(super) fn already_gone(error: &NetlinkError) -> bool {
    error.is(libc::EADDRNOTAVAIL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_listed() {
        let mut socket = Socket::open().unwrap();
        let wanted: IpNet = "127.0.0.1/8".parse().unwrap();
        assert!(
            list(&mut socket)
                .unwrap()
                .iter()
                .any(|found| found.address == wanted)
        );
    }

    #[test]
    fn torn_answers_are_no_address_and_no_route() {
        for length in 0..12 {
            let reply = Reply {
                payload: vec![0; length],
            };
            assert_eq!(parse_address(&reply), None);
            assert_eq!(parse_default_gateway(&reply, 1), None);
        }
    }
}
