//! Connections that the kernel remembers (`linux/netfilter/nfnetlink_conntrack.h`): those that
//! would go on past a change of the rules are made to be forgotten.
//!
//! Rules are asked once, for the first packet of a connection. A TCP connection ends by itself when
//! a pod does; a UDP one is "the same" for as long as somebody sends, so a client that never pauses
//! would go on sending to a pod that is gone, or past a pod that has come.

use std::collections::HashSet;
use std::net::IpAddr;

use super::encode::{Attributes, GENERIC_HEADER_BYTES, Message, find};
use super::transaction::{dump, one};
use super::{PortForward, failed, open};
use crate::network::NetworkError;
use crate::network::address;
use crate::network::netlink::Socket;

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `CTA_TUPLE_ORIG`, `_REPLY`, `CTA_ZONE`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;
const UDP: u8 = 17;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    protocol: u8,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
}

impl Tuple {
    fn parse(tuple: &[u8]) -> Option<Self> {
        let (addresses, protocol) = (find(tuple, 1)?, find(tuple, 2)?);
        let address = |ipv4, ipv6| {
            let ipv4 = find(addresses, ipv4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            let ipv6 = find(addresses, ipv6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            ipv4.map(IpAddr::from).or(ipv6.map(IpAddr::from))
        };
        let port = |kind| {
            let bytes = find(protocol, kind)?.first_chunk()?;
            Some(u16::from_be_bytes(*bytes))
        };
        Some(Self {
            protocol: *find(protocol, 1)?.first()?,
            source: address(1, 3)?,
            source_port: port(2)?,
            destination: address(2, 4)?,
            destination_port: port(3)?,
        })
    }
}

/// After ports were closed: UDP connections that went through them are forgotten.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn forget_closed(forwards: &[PortForward]) -> Result<(), NetworkError> {
    forget(forwards, |forward, original, reply| {
        original.destination_port == forward.port
            && reply.source == forward.pod.ip()
            && reply.source_port == forward.pod.port()
    })
}

/// After ports were opened: UDP connections to the node itself at such a port are forgotten, so
/// that their next packet finds the pod.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn forget_before(forwards: &[PortForward]) -> Result<(), NetworkError> {
    if forwards.iter().all(|forward| forward.protocol != UDP) {
        return Ok(());
    }
    let mut route = Socket::open().map_err(failed("open a socket for"))?;
    let own: HashSet<IpAddr> = address::list(&mut route)?
        .into_iter()
        .map(|assigned| assigned.address.addr())
        .collect();
    forget(forwards, |forward, original, reply| {
        original.destination_port == forward.port
            && forward
                .address
                .is_none_or(|address| address == original.destination)
            && original.destination.is_ipv4() == forward.pod.is_ipv4()
            && own.contains(&original.destination)
            && reply.source == original.destination
    })
}

fn forget(
    forwards: &[PortForward],
    is_meant: impl Fn(&PortForward, &Tuple, &Tuple) -> bool,
) -> Result<(), NetworkError> {
    let forwards: Vec<_> = forwards
        .iter()
        .filter(|forward| forward.protocol == UDP)
        .collect();
    if forwards.is_empty() {
        return Ok(());
    }
    let mut socket = open()?;
    // AF_UNSPEC is both families.
    let all = Message::new(GET, 0, 0, &Attributes::new());
    let found = dump(&mut socket, &all).map_err(failed("list connections for"))?;
    for connection in &found {
        let Some((family, attributes)) = connection
            .payload
            .split_at_checked(GENERIC_HEADER_BYTES)
            .and_then(|(header, rest)| Some((*header.first()?, rest)))
        else {
            continue;
        };
        let (Some(raw), Some(reply)) = (find(attributes, ORIGINAL), find(attributes, REPLY)) else {
            continue;
        };
        let (Some(original), Some(reply)) = (Tuple::parse(raw), Tuple::parse(reply)) else {
            continue;
        };
        let meant = original.protocol == UDP
            && forwards
                .iter()
                .any(|forward| is_meant(forward, &original, &reply));
        if !meant {
            continue;
        }
        let mut body = Attributes::new().bytes(ORIGINAL | 1 << 15, raw);
        if let Some(zone) = find(attributes, ZONE) {
            body = body.bytes(ZONE, zone);
        }
        match one(&mut socket, &Message::new(DELETE, 0, family, &body)) {
            Err(error) if !error.is(libc::ENOENT) => {
                return Err(failed("forget a connection for")(error));
            }
            _ => {}
        }
    }
    Ok(())
}
