//! A port of the node that leads to a pod, as an element of one of four maps.
//!
//! | map | key | value |
//! |---|---|---|
//! | `ports4`, `ports6` | protocol . address . port | the pod's address . port |
//! | `anyports4`, `anyports6` | protocol . port | the pod's address . port |
//!
//! Parts of a key or value lie in registers of four bytes, filled up with zeros.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::NLM_F_CREATE;

use super::encode::{find, list};
use super::expression::octets;
use super::{Attributes, INET, Message, kind};

/// `NFT_MSG_NEWSETELEM` with its flag, and `NFT_MSG_DELSETELEM`.
pub(super) const ADD: (u16, u16) = (12, NLM_F_CREATE);
pub(super) const DELETE: (u16, u16) = (14, 0);

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortForward {
    /// The transport protocol by its number (`IPPROTO_TCP`, `IPPROTO_UDP`, `IPPROTO_SCTP`).
    pub protocol: u8,
    /// The node's address; `None` is all of the pod address' family.
    pub address: Option<IpAddr>,
    /// The node's port.
    pub port: u16,
    /// Where it leads.
    pub pod: SocketAddr,
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            6 => "tcp",
            17 => "udp",
            132 => "sctp",
            _ => "?",
        };
        match self.address {
            Some(address) => {
                write!(
                    f,
                    "{protocol} {} to {}",
                    SocketAddr::new(address, self.port),
                    self.pod
                )
            }
            None => write!(f, "{protocol} {} to {}", self.port, self.pod),
        }
    }
}

/// One of the four maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) name: &'static str,
    pub(super) ipv6: bool,
    pub(super) by_address: bool,
}

/// All four, IPv4 first.
pub(super) const MAPS: [Map; 4] = [
    map("ports4", false, true),
    map("anyports4", false, false),
    map("ports6", true, true),
    map("anyports6", true, false),
];

const fn map(name: &'static str, ipv6: bool, by_address: bool) -> Map {
    Map {
        name,
        ipv6,
        by_address,
    }
}

impl Map {
    pub(super) fn address_bytes(self) -> usize {
        if self.ipv6 { 16 } else { 4 }
    }
}

/// Elements in one message: an attribute has at most 65535 bytes, and one takes 92 at most.
const ELEMENTS_MAX: usize = 500;

impl PortForward {
    fn map(&self) -> Map {
        let (ipv6, by_address) = (self.pod.is_ipv6(), self.address.is_some());
        let found = MAPS
            .into_iter()
            .find(|map| map.ipv6 == ipv6 && map.by_address == by_address);
        found.unwrap_or(MAPS[0])
    }

    fn key(&self) -> Vec<u8> {
        let mut key = vec![self.protocol, 0, 0, 0];
        if let Some(address) = self.address {
            key.extend(octets(address));
        }
        push_port(&mut key, self.port);
        key
    }

    fn element(&self) -> Attributes {
        let mut value = octets(self.pod.ip());
        push_port(&mut value, self.pod.port());
        // NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA; NFTA_DATA_VALUE.
        Attributes::new()
            .nested(1, &Attributes::new().bytes(1, &self.key()))
            .nested(2, &Attributes::new().bytes(1, &value))
    }

    pub(super) fn message(&self, table: &str, what: (u16, u16)) -> Message {
        elements_message(table, self.map(), what, &[*self])
    }

    /// Reads the elements of an answer to `NFT_MSG_GETSETELEM`.
    pub(super) fn parse_all(map: Map, attributes: &[u8]) -> Vec<Self> {
        let Some(elements) = find(attributes, 3) else {
            return Vec::new();
        };
        let elements = list(elements);
        elements
            .into_iter()
            .filter_map(|element| Self::parse(map, element))
            .collect()
    }

    fn parse(map: Map, element: &[u8]) -> Option<Self> {
        let key = find(find(element, 1)?, 1)?;
        let value = find(find(element, 2)?, 1)?;
        let length = map.address_bytes();
        let (address, rest) = if map.by_address {
            (Some(address_of(key.get(4..4 + length)?)?), 4 + length)
        } else {
            (None, 4)
        };
        let pod = address_of(value.get(..length)?)?;
        Some(Self {
            protocol: *key.first()?,
            address,
            port: port(key.get(rest..)?)?,
            pod: SocketAddr::new(pod, port(value.get(length..)?)?),
        })
    }
}

fn push_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    let bytes = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(bytes).into())
}

fn elements_message(
    table: &str,
    map: Map,
    (message, flags): (u16, u16),
    forwards: &[PortForward],
) -> Message {
    let elements = forwards
        .iter()
        .fold(Attributes::new(), |all, one| all.nested(1, &one.element()));
    // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS.
    let body = Attributes::new()
        .text(1, table)
        .text(2, map.name)
        .nested(3, &elements);
    Message::new(kind(message), flags, INET, &body)
}

/// Messages that add all elements.
pub(super) fn add_all(table: &str, forwards: &[PortForward]) -> Vec<Message> {
    let mut messages = Vec::new();
    for map in MAPS {
        let of_map: Vec<_> = forwards
            .iter()
            .filter(|forward| forward.map() == map)
            .copied()
            .collect();
        for part in of_map.chunks(ELEMENTS_MAX) {
            messages.push(elements_message(table, map, ADD, part));
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::nft::encode::GENERIC_HEADER_BYTES;

    #[test]
    fn every_kind_of_forward_is_read_as_it_was_written() {
        for (address, pod) in [
            (None, "10.1.2.3:80"),
            (Some("192.0.2.7"), "10.1.2.3:80"),
            (None, "[fd00::5]:8080"),
            (Some("2001:db8::1"), "[fd00::5]:8080"),
        ] {
            let forward = PortForward {
                protocol: 17,
                address: address.map(|text: &str| text.parse().unwrap()),
                port: 53,
                pod: pod.parse().unwrap(),
            };
            let message = forward.message("t", ADD);
            let body = &message.payload()[GENERIC_HEADER_BYTES..];
            assert_eq!(PortForward::parse_all(forward.map(), body), [forward]);
        }
    }

    #[test]
    fn torn_elements_are_none() {
        for length in 0..11 {
            let element = Attributes::new()
                .nested(1, &Attributes::new().bytes(1, &vec![0; length]))
                .nested(2, &Attributes::new().bytes(1, &vec![0; length / 2]));
            let body = Attributes::new().nested(3, &Attributes::new().nested(1, &element));
            let message = Message::new(0, 0, 0, &body);
            let body = &message.payload()[GENERIC_HEADER_BYTES..];
            assert!(PortForward::parse_all(MAPS[0], body).is_empty());
        }
    }
}
