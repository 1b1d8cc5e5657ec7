//! Expressions of nf_tables rules (`linux/netfilter/nf_tables.h`): what a rule compares and does.
//!
//! A rule is a list of them. One that compares ends the rule when it does not hold.

use std::net::IpAddr;

use ipnet::IpNet;

use super::encode::Attributes;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;

/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// The register that a verdict is put into, the first of 16 bytes, and the first of four bytes.
const VERDICT: u32 = 0;
const WORK: u32 = 1;
const WORDS: u32 = 8;
/// Where a looked-up address with its port is put: beyond the longest key.
const FOUND: u32 = WORDS + 8;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two connections never race for one port.
const RANDOM_PORTS: u32 = 1 << 4;
/// `IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`.
const DESTINATION_CHANGED: u32 = 1 << 5;
/// The bit of a packet's mark that says that a port of the node has sent it on; CNI's portmap has
/// the same one for the same.
const SENT_ON: u32 = 0x2000;
/// `RTN_LOCAL` of `linux/rtnetlink.h`.
const LOCAL: u32 = 2;
/// `IFNAMSIZ`.
const NAME_BYTES: usize = 16;

/// `ETH_P_ARP`, `ETH_P_IP`, `ETH_P_IPV6` of `linux/if_ether.h`.
const ETHER_ARP: u16 = 0x0806;
const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
/// The number of IPv6's fragment header (RFC 8200 §4.5).
const FRAGMENT: u8 = 44;
/// `SYN` among the flags of TCP (RFC 9293 §3.1), and where they are.
const SYN: u8 = 2;
const TCP_FLAGS: u32 = 13;
/// `NFT_DYNSET_OP_ADD`, `NFT_DYNSET_OP_UPDATE`.
const ADD: u32 = 0;
const UPDATE: u32 = 1;

/// How two values compare (`NFT_CMP_…`).
#[derive(Clone, Copy)]
enum Comparison {
    Equal = 0,
    Unequal = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// What is looked at of a packet (`NFT_META_…`).
#[derive(Clone, Copy)]
enum Meta {
    EtherType = 1,
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Protocol = 16,
}

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// Which way a packet goes in a conversation that somebody has begun with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the pod.
    Request,
    /// From the pod.
    Reply,
}

/// One rule's expressions, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Expressions(Attributes);

impl Expressions {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn attributes(&self) -> &Attributes {
        &self.0
    }

    fn add(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nested(2, data);
        // NFTA_LIST_ELEM
        Self(self.0.nested(1, &expression))
    }

    fn meta(self, what: Meta, register: u32) -> Self {
        let data = Attributes::new().number(1, register).number(2, what as u32);
        self.add("meta", &data)
    }

    fn compare(self, equal: bool, value: &[u8]) -> Self {
        let how = match equal {
            true => Comparison::Equal,
            false => Comparison::Unequal,
        };
        self.compares(how, value)
    }

    fn compares(self, how: Comparison, value: &[u8]) -> Self {
        let data = Attributes::new()
            .number(1, WORK)
            .number(2, how as u32)
            .nested(3, &Attributes::new().bytes(DATA_VALUE, value));
        self.add("cmp", &data)
    }

    /// Numbers are compared as a packet has them, the highest byte first.
    fn between(self, first: &[u8], last: &[u8]) -> Self {
        if first == last {
            return self.compares(Comparison::Equal, first);
        }
        self.compares(Comparison::AtLeast, first)
            .compares(Comparison::AtMost, last)
    }

    /// Loads bytes of the packet: from its network header (base 1) or its transport header (2).
    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        let data = Attributes::new()
            .number(1, register)
            .number(2, base)
            .number(3, offset)
            .number(4, length);
        self.add("payload", &data)
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.bits(mask, &vec![0; mask.len()])
    }

    /// Keeps the bits of `mask` of what is loaded, and changes those of `change`.
    fn bits(self, mask: &[u8], change: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Attributes::new()
            .number(1, WORK)
            .number(2, WORK)
            .number(3, length)
            .nested(4, &Attributes::new().bytes(DATA_VALUE, mask))
            .nested(5, &Attributes::new().bytes(DATA_VALUE, change));
        self.add("bitwise", &data)
    }

    /// Changes our bit of the packet's mark, and no other.
    fn mark(self, bit: u32) -> Self {
        // NFTA_META_KEY, NFTA_META_SREG.
        let data = Attributes::new()
            .number(2, Meta::Mark as u32)
            .number(3, WORK);
        self.meta(Meta::Mark, WORK)
            .bits(&(!SENT_ON).to_ne_bytes(), &bit.to_ne_bytes())
            .add("meta", &data)
    }

    /// Only packets of this family.
    pub(super) fn family(self, family: u8) -> Self {
        self.meta(Meta::Family, WORK).compare(true, &[family])
    }

    /// Only packets that came in by this interface.
    pub(super) fn came_by(self, interface: &str) -> Self {
        self.meta(Meta::InputName, WORK)
            .compare(true, &padded(interface))
    }

    /// Only packets that leave by this interface.
    pub(super) fn leaves_by(self, interface: &str) -> Self {
        self.meta(Meta::OutputName, WORK)
            .compare(true, &padded(interface))
    }

    /// Only packets with an end in this network.
    pub(super) fn within(self, end: End, net: IpNet) -> Self {
        let family = if net.addr().is_ipv4() { IPV4 } else { IPV6 };
        self.family(family).in_net(end, net)
    }

    /// Only frames with ARP in them.
    pub(super) fn arp(self) -> Self {
        self.meta(Meta::EtherType, WORK)
            .compare(true, &ETHER_ARP.to_be_bytes())
    }

    /// Only frames with a packet of this family in them. On a bridge, [`Self::family`] is the
    /// bridge's own.
    pub(super) fn ip(self, family: u8) -> Self {
        let ether_type = if family == IPV6 {
            ETHER_IPV6
        } else {
            ETHER_IPV4
        };
        self.meta(Meta::EtherType, WORK)
            .compare(true, &ether_type.to_be_bytes())
    }

    /// Only packets with an end in this network; their family has been looked at.
    pub(super) fn in_net(self, end: End, net: IpNet) -> Self {
        let (family, mask) = match net.netmask() {
            IpAddr::V4(mask) => (IPV4, mask.octets().to_vec()),
            IpAddr::V6(mask) => (IPV6, mask.octets().to_vec()),
        };
        let (offset, length) = place(family, end);
        self.payload(1, offset, length, WORK)
            .mask(&mask)
            .compare(true, &octets(net.network()))
    }

    /// Only packets of this transport protocol.
    pub(super) fn transport(self, protocol: u8) -> Self {
        self.meta(Meta::Protocol, WORK).compare(true, &[protocol])
    }

    /// Only packets of other transport protocols.
    pub(super) fn other_transport(self, protocol: u8) -> Self {
        self.meta(Meta::Protocol, WORK).compare(false, &[protocol])
    }

    /// Only packets with this end's port in the range. Not for later fragments, which have none.
    pub(super) fn port(self, end: End, first: u16, last: u16) -> Self {
        let offset = match end {
            End::Source => 0,
            End::Destination => 2,
        };
        self.payload(2, offset, 2, WORK)
            .between(&first.to_be_bytes(), &last.to_be_bytes())
    }

    /// Only messages of these types; their protocol has been looked at.
    pub(super) fn kind_of_icmp(self, first: u8, last: u8) -> Self {
        self.payload(2, 0, 1, WORK).between(&[first], &[last])
    }

    /// Only segments that do not begin a connection; their protocol has been looked at.
    pub(super) fn not_first_of_tcp(self) -> Self {
        self.payload(2, TCP_FLAGS, 1, WORK)
            .mask(&[SYN])
            .compare(true, &[0])
    }

    /// Only fragments but the first; their family has been looked at.
    pub(super) fn later_fragment(self, family: u8) -> Self {
        if family == IPV4 {
            // Flags and offset (RFC 791 §3.1).
            return self
                .payload(1, 6, 2, WORK)
                .mask(&[0x1f, 0xff])
                .compare(false, &[0, 0]);
        }
        // NFTA_EXTHDR_DREG, _TYPE, _OFFSET, _LEN.
        let data = Attributes::new()
            .number(1, WORK)
            .bytes(2, &[FRAGMENT])
            .number(3, 2)
            .number(4, 2);
        self.add("exthdr", &data)
            .mask(&[0xff, 0xf8])
            .compare(false, &[0, 0])
    }

    /// Loads what a conversation is known by: protocol, the pod's port, the other's address and
    /// port.
    pub(super) fn flow(self, family: u8, way: Flow) -> Self {
        let (pods_port, others_port, other) = match way {
            Flow::Request => (2, 0, End::Source),
            Flow::Reply => (0, 2, End::Destination),
        };
        let (offset, length) = place(family, other);
        self.meta(Meta::Protocol, WORDS)
            .payload(2, pods_port, 2, WORDS + 1)
            .payload(1, offset, length, WORDS + 2)
            .payload(2, others_port, 2, WORDS + 2 + length / 4)
    }

    /// Loads an address.
    pub(super) fn address(self, family: u8, end: End) -> Self {
        let (offset, length) = place(family, end);
        self.payload(1, offset, length, WORDS)
    }

    /// Only packets whose loaded part is in a set.
    pub(super) fn found_in(self, set: &str) -> Self {
        let data = Attributes::new().text(1, set).number(2, WORDS);
        self.add("lookup", &data)
    }

    /// Puts the loaded part into a set; what is there already stays as it is.
    pub(super) fn remember(self, set: &str, for_ms: u64) -> Self {
        self.put(set, ADD, for_ms)
    }

    /// Puts the loaded part into a set; what is there already begins its time anew.
    pub(super) fn refresh(self, set: &str, for_ms: u64) -> Self {
        self.put(set, UPDATE, for_ms)
    }

    fn put(self, set: &str, operation: u32, for_ms: u64) -> Self {
        // NFTA_DYNSET_SET_NAME, _OP, _SREG_KEY, _TIMEOUT.
        let data = Attributes::new()
            .text(1, set)
            .number(3, operation)
            .number(4, WORDS)
            .bytes(6, &for_ms.to_be_bytes());
        self.add("dynset", &data)
    }

    /// Goes where a map says for the interface that the packet came in by.
    pub(super) fn input_in(self, map: &str) -> Self {
        self.meta(Meta::InputName, WORDS).verdict_in(map)
    }

    /// The same for the interface that it leaves by.
    pub(super) fn output_in(self, map: &str) -> Self {
        self.meta(Meta::OutputName, WORDS).verdict_in(map)
    }

    fn verdict_in(self, map: &str) -> Self {
        let data = Attributes::new()
            .text(1, map)
            .number(2, WORDS)
            .number(3, VERDICT);
        self.add("lookup", &data)
    }

    pub(super) fn accept(self) -> Self {
        self.verdict(1, None)
    }

    /// Only packets to an address of the node.
    pub(super) fn for_the_node(self) -> Self {
        // NFTA_FIB_DREG, _RESULT (NFT_FIB_RESULT_ADDRTYPE), _FLAGS (NFTA_FIB_F_DADDR).
        let data = Attributes::new().number(1, WORK).number(2, 3).number(3, 2);
        self.add("fib", &data).compare(true, &LOCAL.to_ne_bytes())
    }

    /// Only packets of connections whose destination was changed.
    pub(super) fn redirected(self) -> Self {
        // NFTA_CT_DREG, NFTA_CT_KEY (NFT_CT_STATUS).
        let data = Attributes::new().number(1, WORK).number(2, 2);
        self.add("ct", &data)
            .mask(&DESTINATION_CHANGED.to_ne_bytes())
            .compare(false, &[0; 4])
    }

    /// Only packets that a port of the node has sent on.
    pub(super) fn sent_on(self) -> Self {
        self.meta(Meta::Mark, WORK)
            .mask(&SENT_ON.to_ne_bytes())
            .compare(false, &[0; 4])
    }

    /// Takes the mark of [`Self::sent_on`] away: it has served.
    pub(super) fn unmark(self) -> Self {
        self.mark(0)
    }

    /// Looks a port up and sends the packet where the map says, with a mark for [`Self::sent_on`];
    /// without an entry the rule ends. The key is the protocol, the destination address if
    /// `by_address`, and the port.
    pub(super) fn send_on(self, family: u8, by_address: bool, map: &str) -> Self {
        let (offset, length) = place(family, End::Destination);
        let words = length / 4;
        let mut rule = self.family(family).meta(Meta::Protocol, WORDS);
        let mut port = WORDS + 1;
        if by_address {
            rule = rule.payload(1, offset, length, port);
            port += words;
        }
        let look_up = Attributes::new()
            .text(1, map)
            .number(2, WORDS)
            .number(3, FOUND);
        // NFT_NAT_DNAT, the family, the address' register and the port's.
        let send = Attributes::new()
            .number(1, 1)
            .number(2, u32::from(family))
            .number(3, FOUND)
            .number(5, FOUND + words);
        rule.payload(2, 2, 2, port)
            .add("lookup", &look_up)
            .mark(SENT_ON)
            .add("nat", &send)
    }

    /// Gives the packet the address of the interface that it leaves by.
    pub(super) fn masquerade(self) -> Self {
        self.add("masq", &Attributes::new().number(1, RANDOM_PORTS))
    }

    pub(super) fn jump(self, chain: &str) -> Self {
        self.verdict(-3, Some(chain))
    }

    pub(super) fn leave_chain(self) -> Self {
        self.verdict(-5, None)
    }

    pub(super) fn drop_packet(self) -> Self {
        self.verdict(0, None)
    }

    /// `NF_DROP`, or one of the negative `NFT_…` verdicts.
    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        let verdict = verdict(code, chain);
        let data = Attributes::new()
            .number(1, VERDICT)
            .nested(2, &Attributes::new().nested(DATA_VERDICT, &verdict));
        self.add("immediate", &data)
    }
}

fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let verdict = Attributes::new().bytes(1, &code.to_be_bytes());
    match chain {
        Some(chain) => verdict.text(2, chain),
        None => verdict,
    }
}

/// The verdict of a map's element: on in another chain.
pub(super) fn jump_to(chain: &str) -> Attributes {
    verdict(-3, Some(chain))
}

/// Where an address is in the network header: offset and length in bytes (RFC 791, RFC 8200).
fn place(family: u8, end: End) -> (u32, u32) {
    match (family, end) {
        (IPV6, End::Source) => (8, 16),
        (IPV6, End::Destination) => (24, 16),
        (_, End::Source) => (12, 4),
        (_, End::Destination) => (16, 4),
    }
}

/// The bytes of an address, as a packet has them.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn padded(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    let length = name.len().min(NAME_BYTES - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}
