//! IPv4 addresses and routes of an interface, as netlink messages and back (rtnetlink(7)).
//!
//! Addresses are given and read as `Ipv4Net`; what differs for IPv6 is in this file alone.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressMessage};
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
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// An address that some interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) index: u32,
    pub(super) address: Ipv4Net,
}

fn message(index: u32, address: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address.addr())),
        AddressAttribute::Address(IpAddr::V4(address.addr())),
        AddressAttribute::Broadcast(address.broadcast()),
    ];
    message
}

/// Gives an interface an address; having it already is success.
pub(super) fn assign(index: u32, address: Ipv4Net) -> Request {
    let message = RouteNetlinkMessage::NewAddress(message(index, address));
    Request::with_flags(message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes an address from an interface.
pub(super) fn withdraw(index: u32, address: Ipv4Net) -> Request {
    Request::new(RouteNetlinkMessage::DelAddress(message(index, address)))
}

/// The default route by way of `gateway`; an existing one is replaced.
pub(super) fn default_route(index: u32, gateway: Ipv4Addr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        RouteAttribute::Oif(index),
    ];
    Request::with_flags(
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// All IPv4 addresses of the socket's namespace.
pub(super) fn list(socket: &mut Socket) -> Result<Vec<Assigned>, NetworkError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let replies = socket
        .dump(&RouteNetlinkMessage::GetAddress(message))
        .map_err(NetworkError::netlink("list", "addresses"))?;
    Ok(replies.iter().filter_map(parse_address).collect())
}

fn parse_address(reply: &Reply) -> Option<Assigned> {
    let header = AddressHeader::parse(&reply.payload).ok()?;
    let local = find(reply.payload.get(ADDRESS_HEADER_BYTES..)?, IFA_LOCAL)?;
    let address = Ipv4Net::new(Ipv4Addr::from(local), header.prefix_len).ok()?;
    Some(Assigned {
        index: header.index,
        address,
    })
}

/// The gateway of the IPv4 default route that leaves by this interface, if there is one.
pub(super) fn default_gateway(
    socket: &mut Socket,
    index: u32,
) -> Result<Option<Ipv4Addr>, NetworkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let replies = socket
        .dump(&RouteNetlinkMessage::GetRoute(message))
        .map_err(NetworkError::netlink("list", "routes"))?;
    Ok(replies
        .iter()
        .find_map(|reply| parse_default_gateway(reply, index)))
}

fn parse_default_gateway(reply: &Reply, index: u32) -> Option<Ipv4Addr> {
    let header = RouteHeader::parse(&reply.payload).ok()?;
    if header.destination_prefix_length != 0 || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let attributes = reply.payload.get(ROUTE_HEADER_BYTES..)?;
    let leaves_by = u32::from_ne_bytes(find(attributes, RTA_OIF)?);
    let gateway = Ipv4Addr::from(find(attributes, RTA_GATEWAY)?);
    (leaves_by == index).then_some(gateway)
}

/// The first four bytes of an attribute, which is all of an IPv4 address or an index.
fn find(attributes: &[u8], kind: u16) -> Option<[u8; 4]> {
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
        let wanted: Ipv4Net = "127.0.0.1/8".parse().unwrap();
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
