//! The table as messages: chains, maps, rules and elements.
//!
//! Every rule carries a comment, by which `nft list ruleset` explains it and by which it is known
//! again.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use super::expression::{End, Expressions, IPV4, IPV6};
use super::forward::{self, Map};
use super::{Attributes, INET, Message, RuleSpec, kind};
use crate::network::sysctl;

/// `NFT_MSG_DELTABLE`.
pub(super) const DELETE_TABLE: u16 = 2;
/// `NFT_MSG_NEWTABLE`, `_NEWCHAIN`, `_NEWRULE`, `_NEWSET`.
pub(super) const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
/// Kinds of user data (libnftnl's `udata.h`): the comment of a table, of a rule.
const TABLE_COMMENT: u8 = 0;
const RULE_COMMENT: u8 = 0;
/// `NFT_SET_MAP`.
const IS_MAP: u32 = 1 << 3;
/// `NFT_SET_TIMEOUT`, `NFT_SET_EVAL`: rules put elements in, which leave by themselves.
const REMEMBERS: u32 = 1 << 4 | 1 << 5;
/// `NFT_DATA_VERDICT`.
const VERDICTS: u32 = 0xffff_ff00;
/// The number of the data type of interfaces' names.
const INTERFACE: u32 = 41;

/// A rule, where it is, and what it is for.
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) comment: String,
    expressions: Expressions,
}

/// A chain that the kernel calls: its name, type, hook (`NF_INET_…`) and priority.
pub(super) type Hooked = (&'static str, &'static str, u32, i32);

const GUARD: Hooked = ("guard", "filter", 0, -300);
const PREROUTING: Hooked = ("prerouting", "nat", 0, -100);
const OUTPUT: Hooked = ("output", "nat", 3, -100);
const POSTROUTING: Hooked = ("postrouting", "nat", 4, 100);

/// Text as user data: kind, length, text with a final zero.
fn comment(kind: u8, text: &str) -> Vec<u8> {
    // 255 bytes are an alias' length, and no comment of ours is longer.
    let mut text = text.as_bytes()[..text.len().min(254)].to_vec();
    text.push(0);
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![kind, length];
    bytes.extend(text);
    bytes
}

/// Reads a comment out of user data.
pub(super) fn read_comment(data: &[u8]) -> Option<String> {
    let length = usize::from(*data.get(1)?);
    let text = data.get(2..2 + length)?;
    Some(crate::network::netlink::text(text))
}

/// A message about a table.
pub(super) fn table_message(
    message: u16,
    flags: u16,
    (family, name): (u8, &str),
    mark: Option<&str>,
) -> Message {
    let mut body = Attributes::new().text(1, name);
    if let Some(mark) = mark {
        body = body.bytes(6, &comment(TABLE_COMMENT, mark));
    }
    Message::new(kind(message), flags, family, &body)
}

pub(super) fn chain_message(
    family: u8,
    table: &str,
    name: &str,
    hooked: Option<Hooked>,
) -> Message {
    let mut body = Attributes::new().text(1, table).text(3, name);
    if let Some((_, kind, hook, priority)) = hooked {
        let place = Attributes::new()
            .number(1, hook)
            .bytes(2, &priority.to_be_bytes());
        body = body.nested(4, &place).text(7, kind);
    }
    Message::new(kind(NEW_CHAIN), NLM_F_CREATE, family, &body)
}

/// Numbers of data types, by which `nft` knows how to show keys (its `datatype.h`).
pub(super) fn type_of(parts: &[u32]) -> u32 {
    parts.iter().fold(0, |all, part| (all << 6) | part)
}

fn map_message(table: &str, map: Map, id: u32) -> Message {
    const PROTOCOL: u32 = 12;
    const PORT: u32 = 13;
    let address = if map.ipv6 { 8 } else { 7 };
    let bytes = u32::try_from(map.address_bytes()).unwrap_or(0);
    let (key, key_bytes) = if map.by_address {
        (type_of(&[PROTOCOL, address, PORT]), bytes + 8)
    } else {
        (type_of(&[PROTOCOL, PORT]), 8)
    };
    let body = Attributes::new()
        .text(1, table)
        .text(2, map.name)
        .number(3, IS_MAP)
        .number(4, key)
        .number(5, key_bytes)
        .number(6, type_of(&[address, PORT]))
        .number(7, bytes + 4)
        .number(10, id);
    Message::new(kind(NEW_SET), NLM_F_CREATE, INET, &body)
}

/// A map from interfaces to where their packets go on.
pub(super) fn verdict_map_message(family: u8, table: &str, name: &str, id: u32) -> Message {
    let body = Attributes::new()
        .text(1, table)
        .text(2, name)
        .number(3, IS_MAP)
        .number(4, INTERFACE)
        .number(5, 16)
        .number(6, VERDICTS)
        .number(10, id);
    Message::new(kind(NEW_SET), NLM_F_CREATE, family, &body)
}

/// A set that rules put elements into, for a while.
pub(super) struct SetSpec {
    pub(super) name: String,
    /// What it is a set of, as [`type_of`] has it.
    pub(super) key: u32,
    pub(super) key_bytes: u32,
    /// Elements at most.
    pub(super) size: u32,
}

impl SetSpec {
    pub(super) fn message(&self, family: u8, table: &str, id: u32) -> Message {
        // NFTA_SET_DESC with NFTA_SET_DESC_SIZE.
        let size = Attributes::new().number(1, self.size);
        let body = Attributes::new()
            .text(1, table)
            .text(2, &self.name)
            .number(3, REMEMBERS)
            .number(4, self.key)
            .number(5, self.key_bytes)
            .nested(9, &size)
            .number(10, id);
        Message::new(kind(NEW_SET), NLM_F_CREATE, family, &body)
    }
}

impl Rule {
    pub(super) fn message(&self, family: u8, table: &str) -> Message {
        let body = Attributes::new()
            .text(1, table)
            .text(2, &self.chain)
            .nested(4, self.expressions.attributes())
            .bytes(7, &comment(RULE_COMMENT, &self.comment));
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        Message::new(kind(NEW_RULE), flags, family, &body)
    }
}

/// The whole table, for a transaction in which there is none of its name.
pub(super) fn build(table: &str, spec: &RuleSpec) -> Vec<Message> {
    let mark = Some(spec.alias.as_str());
    let mut messages = vec![table_message(NEW_TABLE, NLM_F_CREATE, (INET, table), mark)];
    let mut chains = vec![("leaving", None), ("postrouting", Some(POSTROUTING))];
    if spec.host_ports {
        messages.extend(
            (1..)
                .zip(spec.maps())
                .map(|(id, map)| map_message(table, map, id)),
        );
        chains.extend([
            ("guard", Some(GUARD)),
            ("hostports", None),
            ("prerouting", Some(PREROUTING)),
            ("output", Some(OUTPUT)),
        ]);
    }
    messages.extend(
        chains
            .into_iter()
            .map(|(name, hooked)| chain_message(INET, table, name, hooked)),
    );
    messages.extend(rules(spec).iter().map(|rule| rule.message(INET, table)));
    if spec.host_ports {
        messages.extend(forward::add_all(table, &spec.forwards));
    }
    messages
}

/// All rules, in order.
pub(super) fn rules(spec: &RuleSpec) -> Vec<Rule> {
    let mut rules = Vec::new();
    if spec.host_ports {
        host_ports(spec, &mut rules);
    }
    if spec.masquerade {
        masquerade(spec, &mut rules);
    }
    rules
}

pub(super) fn rule(
    chain: impl Into<String>,
    comment: impl Into<String>,
    expressions: Expressions,
) -> Rule {
    Rule {
        chain: chain.into(),
        comment: comment.into(),
        expressions,
    }
}

fn net(text: &'static str) -> Option<IpNet> {
    text.parse().ok()
}

fn host_ports(spec: &RuleSpec, rules: &mut Vec<Rule>) {
    let new = Expressions::new;
    let loopback = net("127.0.0.0/8");
    if let Some(loopback) = loopback {
        // Without this, route_localnet on the bridge would open the node's loopback to pods
        // (CVE-2020-8558).
        rules.push(rule(
            "guard",
            "no pod reaches the node's loopback",
            new()
                .came_by(&spec.bridge)
                .within(End::Destination, loopback)
                .drop_packet(),
        ));
    }
    if let Some(loopback) = net("::1/128").filter(|_| spec.has_ipv6()) {
        // The kernel sends nothing out from ::1, so this can only work without us.
        rules.push(rule(
            "output",
            "the IPv6 loopback stays the node's",
            new().within(End::Destination, loopback).leave_chain(),
        ));
    }
    for chain in ["prerouting", "output"] {
        rules.push(rule(
            chain,
            "to the node: perhaps a port of a pod",
            new().for_the_node().jump("hostports"),
        ));
    }
    for map in spec.maps() {
        let family = if map.ipv6 { IPV6 } else { IPV4 };
        rules.push(rule(
            "hostports",
            format!("ports in {}", map.name),
            new().send_on(family, map.by_address, map.name),
        ));
    }
    // The answer must come back by way of the node, which alone knows what was asked. Where our
    // rules see what is bridged, it does if somebody else's have sent the packet on, such as
    // kube-proxy's, and the pod may be asked under the other pod's own address.
    let sources = loopback.into_iter().chain(spec.subnets.iter().copied());
    for source in sources {
        let leaving = new().leaves_by(&spec.bridge);
        let (how, sent_on) = if source.addr().is_loopback() || !sysctl::sees_bridged(source) {
            ("another address", leaving.redirected())
        } else {
            ("a port of the node", leaving.sent_on())
        };
        rules.push(rule(
            "postrouting",
            format!("from {source} by {how}"),
            sent_on.within(End::Source, source).unmark().masquerade(),
        ));
    }
}

fn masquerade(spec: &RuleSpec, rules: &mut Vec<Rule>) {
    let new = Expressions::new;
    for subnet in &spec.subnets {
        rules.push(rule(
            "postrouting",
            format!("from pods of {subnet}"),
            new().within(End::Source, *subnet).jump("leaving"),
        ));
    }
    rules.push(rule(
        "leaving",
        "on the bridge: as it is",
        new().leaves_by(&spec.bridge).leave_chain(),
    ));
    let multicast = [
        net("224.0.0.0/4"),
        net("ff00::/8").filter(|_| spec.has_ipv6()),
    ];
    let direct = spec.subnets.iter().chain(&spec.direct).copied();
    for kept in direct.chain(multicast.into_iter().flatten()) {
        rules.push(rule(
            "leaving",
            format!("to {kept}: as it is"),
            new().within(End::Destination, kept).leave_chain(),
        ));
    }
    rules.push(rule(
        "leaving",
        "anywhere else: under the node's address",
        new().masquerade(),
    ));
}
