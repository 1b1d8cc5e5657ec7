//! Interfaces as this driver reads and asks for them: the few attributes it works with.
//!
//! Knows netlink's link messages (rtnetlink(7)); decides nothing.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkHeader, LinkMessage,
};

use super::error::NetworkError;
use super::netlink::{NetlinkError, Reply, Request, Socket, text};

/// `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;

// Attribute numbers of `linux/if_link.h`.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
/// `IF_OPER_UP` of RFC 2863.
const OPERATIONALLY_UP: u8 = 6;

/// Longest interface name in bytes (`IFNAMSIZ` less the terminator).
pub const MAX_NAME_BYTES: usize = 15;
/// Longest alias in bytes (`IFALIASZ` less the terminator).
pub const MAX_ALIAS_BYTES: usize = 255;

/// An interface as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    /// `veth`, `bridge`; `None` for hardware.
    pub(super) kind: Option<String>,
    pub(super) mtu: u32,
    /// Administratively up.
    pub(super) up: bool,
    /// Ready to pass packets (RFC 2863).
    pub(super) operational: bool,
    /// The bridge it is a port of.
    pub(super) controller: Option<u32>,
    /// For a veth: the index of its other end, in the other end's namespace.
    pub(super) peer_index: Option<u32>,
    /// Set when the other end is in another network namespace.
    pub(super) peer_elsewhere: bool,
    pub(super) address: Vec<u8>,
}

impl Link {
    /// Reads an `RTM_NEWLINK` answer, attribute by attribute; unknown ones are passed over.
    fn parse(reply: &Reply) -> Result<Self, NetlinkError> {
        const MALFORMED: NetlinkError = NetlinkError::Malformed("a link message is torn");
        let header = LinkHeader::parse(&reply.payload).map_err(|_| MALFORMED)?;
        let mut link = Self {
            index: header.index,
            up: header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        let attributes = reply.payload.get(HEADER_BYTES..).ok_or(MALFORMED)?;
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.map_err(|_| MALFORMED)?;
            let value = attribute.value();
            match attribute.kind() {
                IFLA_ADDRESS => link.address = value.to_vec(),
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = number(value).ok_or(MALFORMED)?,
                IFLA_LINK => link.peer_index = number(value),
                IFLA_MASTER => link.controller = number(value),
                IFLA_OPERSTATE => link.operational = value.first() == Some(&OPERATIONALLY_UP),
                IFLA_LINKINFO => link.kind = info_kind(value),
                IFLA_IFALIAS => link.alias = Some(text(value)),
                IFLA_LINK_NETNSID => link.peer_elsewhere = true,
                _ => {}
            }
        }
        Ok(link)
    }

    pub(super) fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    /// In words, for an error about an interface that is not ours.
    pub(super) fn describe(&self) -> String {
        let kind = self.kind.as_deref().unwrap_or("hardware");
        match &self.alias {
            Some(alias) => format!("kind {kind}, alias {alias:?}"),
            None => format!("kind {kind}, no alias"),
        }
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn info_kind(value: &[u8]) -> Option<String> {
    NlasIterator::new(value)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == IFLA_INFO_KIND)
        .map(|attribute| text(attribute.value()))
}

/// A message about the interface of this name.
pub(super) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// A message about the interface of this index.
pub(super) fn indexed(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Adds "set it up" to a message.
pub(super) fn set_up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

/// Turns automatic IPv6 addresses off: the node's end of a pod's link carries frames and needs no
/// address, and generating one costs duplicate address detection for each pod. To be asked for
/// only where IPv6 exists, see [`ipv6_exists`].
pub(super) fn without_ipv6_addresses() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

/// Whether this kernel has IPv6.
pub(super) fn ipv6_exists() -> bool {
    static EXISTS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *EXISTS.get_or_init(|| std::path::Path::new("/proc/sys/net/ipv6").exists())
}

pub(super) fn create(message: LinkMessage) -> Request {
    Request::with_flags(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

pub(super) fn change(message: LinkMessage) -> Request {
    Request::new(RouteNetlinkMessage::SetLink(message))
}

/// Changes what an interface is as a port; only this kind of message can.
pub(super) fn change_port(message: LinkMessage) -> Request {
    Request::new(RouteNetlinkMessage::NewLink(message))
}

pub(super) fn delete(message: LinkMessage) -> Request {
    Request::new(RouteNetlinkMessage::DelLink(message))
}

pub(super) fn get(name: &str) -> Request {
    let mut message = named(name);
    // Counters are most of the answer and of no use here.
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    Request::new(RouteNetlinkMessage::GetLink(message))
}

/// Reads the outcome of [`get`]: `None` when there is no such interface.
pub(super) fn read(
    outcome: Result<Option<Reply>, NetlinkError>,
    name: &str,
) -> Result<Option<Link>, NetworkError> {
    let failed = NetworkError::netlink("read interface", name);
    match outcome {
        Ok(Some(reply)) => Link::parse(&reply).map(Some).map_err(failed),
        Ok(None) => Err(failed(NetlinkError::Malformed("no link in the answer"))),
        Err(error) if error.is(libc::ENODEV) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Looks one interface up by name.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetworkError> {
    let outcome = socket.one(get(name));
    read(outcome, name)
}

/// All interfaces of the socket's namespace.
pub(super) fn list(socket: &mut Socket) -> Result<Vec<Link>, NetworkError> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let replies = socket
        .dump(&RouteNetlinkMessage::GetLink(message))
        .map_err(NetworkError::netlink("list", "interfaces"))?;
    let parsed: Result<Vec<_>, _> = replies.iter().map(Link::parse).collect();
    parsed.map_err(NetworkError::netlink("list", "interfaces"))
}

/// Checks an interface name by the kernel's own rules.
pub(super) fn validate_name(field: &'static str, name: &str) -> Result<(), NetworkError> {
    let reason = if name.is_empty() {
        "an interface name must not be empty"
    } else if name.len() > MAX_NAME_BYTES {
        "an interface name has at most 15 bytes"
    } else if name == "." || name == ".." {
        "not an interface name"
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte))
    {
        "an interface name is printable ASCII without '/', ':', '%' and spaces"
    } else {
        return Ok(());
    };
    Err(NetworkError::Invalid {
        field,
        value: name.to_owned(),
        reason,
    })
}

/// Checks the mark by which an interface is known as ours.
pub(super) fn validate_alias(alias: &str) -> Result<(), NetworkError> {
    let ok = (1..=MAX_ALIAS_BYTES).contains(&alias.len())
        && alias.bytes().all(|byte| byte.is_ascii_graphic());
    let reason = "an alias is 1 to 255 printable ASCII characters";
    ok.then_some(()).ok_or(NetworkError::Invalid {
        field: "alias",
        value: alias.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_read() {
        let mut socket = Socket::open().unwrap();
        let link = find(&mut socket, "lo").unwrap().unwrap();
        assert_eq!((link.index, link.name.as_str(), link.kind), (1, "lo", None));
        assert!(find(&mut socket, "qlt-none").unwrap().is_none());
        assert!(
            list(&mut socket)
                .unwrap()
                .iter()
                .any(|link| link.name == "lo")
        );
    }

    #[test]
    fn names_the_kernel_would_refuse_are_refused_before_asking_it() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "eth%d",
            "sixteen-bytes-xx",
            "ä",
        ] {
            assert!(validate_name("bridge", name).is_err(), "{name:?}");
        }
        for name in ["quilt0", "q0123456789abcd", "eth0.100"] {
            assert!(validate_name("bridge", name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn torn_links_are_refused() {
        let reply = Reply {
            payload: vec![0; 8],
        };
        assert!(Link::parse(&reply).is_err());
        let mut payload = vec![0; HEADER_BYTES];
        payload.extend([200, 0, 3, 0]);
        assert!(Link::parse(&Reply { payload }).is_err());
    }
}
