//! Connections that the kernel remembers (`linux/netfilter/nfnetlink_conntrack.h`): those that
//! would go on past a change of the rules are made to be forgotten.
//!
//! Rules are asked once, for the first packet of a connection. A TCP connection ends by itself when
//! a pod does; a UDP one is "the same" for as long as somebody sends, so a client that never pauses
//! would go on sending to a pod that is gone, or past a pod that has come.

use std::collections::HashSet;
use std::net::IpAddr;

use super::encode::{Attributes, GENERIC_HEADER_BYTES, Message, find};
use super::expression::{IPV4, octets};
use super::transaction::{dump, one};
use super::{Netfilter, PortForward, failed};
use crate::network::NetworkError;
use crate::network::address;
use crate::network::netlink::Socket;

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `CTA_TUPLE_ORIG`, `_REPLY`, `CTA_ZONE`, `CTA_FILTER`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const UDP: u8 = 17;
/// What is compared (`CTA_FILTER_F_CTA_…` of `net/netfilter/nf_internals.h`).
const FROM_ADDRESS: u32 = 1;
const TO_ADDRESS: u32 = 1 << 1;
const PROTOCOL: u32 = 1 << 3;
const FROM_PORT: u32 = 1 << 4;
const TO_PORT: u32 = 1 << 5;
/// The kernel is told of no more than this many by themselves.
const TOLD_ONE_BY_ONE: usize = 32;

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

/// Connections by UDP, told by where they went and by who answers.
#[derive(Debug, Clone, Copy)]
struct Meant {
    destination: Option<IpAddr>,
    port: u16,
    answers: IpAddr,
    answering_port: Option<u16>,
}

/// After ports were closed: UDP connections that went through them are forgotten.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn forget_closed(netfilter: &Netfilter, forwards: &[PortForward]) -> Result<(), NetworkError> {
    let by_udp = forwards.iter().filter(|forward| forward.protocol == UDP);
    let meant = by_udp.map(|forward| Meant {
        destination: None,
        port: forward.port,
        answers: forward.pod.ip(),
        answering_port: Some(forward.pod.port()),
    });
    forget(netfilter, meant.collect())
}

/// After ports were opened: UDP connections to the node itself at such a port are forgotten, so
/// that their next packet finds the pod.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn forget_before(netfilter: &Netfilter, forwards: &[PortForward]) -> Result<(), NetworkError> {
    let by_udp = || forwards.iter().filter(|forward| forward.protocol == UDP);
    if by_udp().next().is_none() {
        return Ok(());
    }
    let mut route = Socket::open().map_err(failed("open a socket for"))?;
    let own: HashSet<IpAddr> = address::list(&mut route)?
        .into_iter()
        .map(|assigned| assigned.address.addr())
        .collect();
    let meant = by_udp().flat_map(|forward| {
        let own = own.iter().filter(|own| {
            own.is_ipv4() == forward.pod.is_ipv4()
                && forward.address.is_none_or(|address| address == **own)
        });
        own.map(|own| Meant {
            destination: Some(*own),
            port: forward.port,
            answers: *own,
            answering_port: None,
        })
    });
    forget(netfilter, meant.collect())
}

/// The kernel is told what to forget, or where it does not understand that (before Linux 6.10)
/// asked for all that it remembers. The latter takes it 15 ms or more, for it locks each of a
/// quarter of a million lists one after another; the former about 0.1 ms.
///
/// Of IPv6 it is always asked: it takes addresses that differ for those that are meant
/// (`ctnetlink_filter_match_tuple` of `net/netfilter/nf_conntrack_netlink.c`).
fn forget(netfilter: &Netfilter, meant: Vec<Meant>) -> Result<(), NetworkError> {
    let (mut ipv4, mut asked): (Vec<_>, Vec<_>) =
        meant.into_iter().partition(|meant| meant.answers.is_ipv4());
    if ipv4.is_empty() && asked.is_empty() {
        return Ok(());
    }
    netfilter.with(|socket| {
        if ipv4.len() > TOLD_ONE_BY_ONE || !is_told(socket, &ipv4)? {
            asked.append(&mut ipv4);
        }
        match asked.is_empty() {
            true => Ok(()),
            false => forget_one_by_one(socket, &asked),
        }
    })
}

fn is_told(socket: &mut Socket, meant: &[Meant]) -> Result<bool, NetworkError> {
    for one_of_them in meant {
        match one(socket, &one_of_them.deletion()) {
            Ok(()) => {}
            Err(error) if error.is(libc::EINVAL) || error.is(libc::EOPNOTSUPP) => {
                return Ok(false);
            }
            Err(error) => return Err(failed("forget connections for")(error)),
        }
    }
    Ok(true)
}

fn forget_one_by_one(socket: &mut Socket, meant: &[Meant]) -> Result<(), NetworkError> {
    // AF_UNSPEC is both families.
    let all = Message::new(GET, 0, 0, &Attributes::new());
    for reply in dump(socket, &all).map_err(failed("list connections for"))? {
        let Some(connection) = Connection::parse(&reply.payload) else {
            continue;
        };
        if !meant.iter().any(|meant| meant.is(&connection)) {
            continue;
        }
        match one(socket, &connection.deletion()) {
            Err(error) if !error.is(libc::ENOENT) => {
                return Err(failed("forget a connection for")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Meant {
    fn is(&self, connection: &Connection<'_>) -> bool {
        let Connection {
            original, reply, ..
        } = connection;
        original.protocol == UDP
            && original.destination_port == self.port
            && self.destination.is_none_or(|it| it == original.destination)
            && self.answers == reply.source
            && self.answering_port.is_none_or(|it| it == reply.source_port)
    }

    /// All of them at once, of IPv4. A kernel that does not know the filter finds half a connection
    /// in it, which it refuses.
    fn deletion(&self) -> Message {
        let tuple = |address: Option<(u16, IpAddr)>, port: Option<(u16, u16)>| {
            let mut tuple = Attributes::new();
            // CTA_TUPLE_IP, with an attribute for each end.
            if let Some((kind, address)) = address {
                let address = Attributes::new().bytes(kind, &octets(address));
                tuple = tuple.nested(1, &address);
            }
            // CTA_TUPLE_PROTO; CTA_PROTO_NUM, and an attribute for each end's port.
            let mut protocol = Attributes::new().bytes(1, &[UDP]);
            if let Some((kind, port)) = port {
                protocol = protocol.bytes(kind, &port.to_be_bytes());
            }
            tuple.nested(2, &protocol)
        };
        let to = self.destination.map(|address| (2, address));
        let mut compared = [PROTOCOL | TO_PORT, PROTOCOL | FROM_ADDRESS];
        compared[0] |= if to.is_some() { TO_ADDRESS } else { 0 };
        compared[1] |= self.answering_port.map_or(0, |_| FROM_PORT);
        // CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS; in the machine's order.
        let filter = Attributes::new()
            .bytes(1, &compared[0].to_ne_bytes())
            .bytes(2, &compared[1].to_ne_bytes());
        let from_port = self.answering_port.map(|port| (2, port));
        let body = Attributes::new()
            .nested(ORIGINAL, &tuple(to, Some((3, self.port))))
            .nested(REPLY, &tuple(Some((1, self.answers)), from_port))
            .nested(FILTER, &filter);
        Message::new(DELETE, 0, IPV4, &body)
    }
}

/// A connection as the kernel describes it.
struct Connection<'a> {
    family: u8,
    original: Tuple,
    reply: Tuple,
    /// Attributes by which the kernel finds it again.
    key: &'a [u8],
    zone: Option<&'a [u8]>,
}

impl<'a> Connection<'a> {
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let (header, attributes) = payload.split_at_checked(GENERIC_HEADER_BYTES)?;
        let key = find(attributes, ORIGINAL)?;
        Some(Self {
            family: *header.first()?,
            original: Tuple::parse(key).filter(|tuple| tuple.protocol == UDP)?,
            reply: Tuple::parse(find(attributes, REPLY)?)?,
            key,
            zone: find(attributes, ZONE),
        })
    }

    fn deletion(&self) -> Message {
        let mut body = Attributes::new().bytes(ORIGINAL | 1 << 15, self.key);
        if let Some(zone) = self.zone {
            body = body.bytes(ZONE, zone);
        }
        Message::new(DELETE, 0, self.family, &body)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{SocketAddr, UdpSocket};

    use super::*;
    use crate::network::nft::{RuleSpec, ensure_rules};
    use crate::network::tests::on_a_node;

    const FIRST: u16 = 1000;

    /// Sends to ports of the loopback, where nobody listens, so that the kernel remembers it.
    fn send(count: u16) {
        for from in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(from).unwrap();
            let ip = socket.local_addr().unwrap().ip();
            for port in FIRST..FIRST + count {
                // The answer to one before may be that nobody listens.
                let _ = socket.send_to(b"x", (ip, port));
                socket.send_to(b"x", (ip, port)).unwrap();
            }
        }
    }

    fn remembered(netfilter: &Netfilter) -> BTreeSet<SocketAddr> {
        let all = Message::new(GET, 0, 0, &Attributes::new());
        let found = netfilter.with(|socket| dump(socket, &all).map_err(failed("list")));
        let found = found.unwrap();
        let connections = found.iter().filter_map(|it| Connection::parse(&it.payload));
        connections
            .map(|it| SocketAddr::new(it.original.destination, it.original.destination_port))
            .collect()
    }

    fn forward(pod: SocketAddr) -> PortForward {
        PortForward {
            protocol: UDP,
            address: None,
            port: pod.port(),
            pod,
        }
    }

    /// On a node whose rules have connections remembered.
    fn on_a_node_that_remembers(test: impl FnOnce(&Netfilter) + Send) {
        on_a_node(|_| {
            let netfilter = Netfilter::default();
            let rules = RuleSpec {
                bridge: "qlt-nbr".into(),
                alias: "quilt:test".into(),
                subnets: vec!["fd00:88::/64".parse().unwrap()],
                direct: Vec::new(),
                masquerade: true,
                host_ports: false,
                forwards: Vec::new(),
                policies: Vec::new(),
            };
            ensure_rules(&netfilter, &rules).unwrap();
            test(&netfilter);
        });
    }

    type Forget = fn(&Netfilter, &[PortForward]) -> Result<(), NetworkError>;

    #[test]
    fn what_went_through_a_port_is_forgotten_and_nothing_else() {
        on_a_node_that_remembers(|netfilter| {
            send(120);
            let mut left = remembered(netfilter);
            assert_eq!(left.len(), 240, "{left:?}");
            // Few ports, then more than the kernel is told of one by one.
            for count in [3, TOLD_ONE_BY_ONE + 1] {
                for (forget, ipv6) in [
                    (forget_closed as Forget, false),
                    (forget_closed, true),
                    (forget_before, false),
                ] {
                    let candidates = left.iter().filter(|to| to.is_ipv6() == ipv6);
                    let gone: Vec<_> = candidates.step_by(2).take(count).copied().collect();
                    assert_eq!(gone.len(), count);
                    let forwards: Vec<_> = gone.iter().copied().map(forward).collect();
                    forget(netfilter, &forwards).unwrap();
                    left.retain(|to| !gone.contains(to));
                    assert_eq!(remembered(netfilter), left);
                }
            }
            // Neither those of another pod nor those to another address are meant.
            let to = *left.first().unwrap();
            let mut another = forward(to);
            another.pod.set_port(1);
            forget_closed(netfilter, &[another]).unwrap();
            another.address = Some("192.0.2.1".parse().unwrap());
            forget_before(netfilter, &[another]).unwrap();
            assert_eq!(remembered(netfilter), left);
        });
    }

    /// Both ways forget the same.
    #[test]
    fn a_kernel_that_cannot_be_told_is_asked() {
        on_a_node_that_remembers(|netfilter| {
            send(4);
            let mut left = remembered(netfilter);
            for to in left.clone().iter().take(5) {
                let meant = [Meant {
                    destination: Some(to.ip()),
                    port: to.port(),
                    answers: to.ip(),
                    answering_port: Some(to.port()),
                }];
                let forgotten = netfilter.with(|socket| forget_one_by_one(socket, &meant));
                forgotten.unwrap();
                left.remove(to);
                assert_eq!(remembered(netfilter), left);
            }
        });
    }
}
