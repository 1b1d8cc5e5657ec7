//! What pods with a policy may send: a second table of ours, of the family `bridge`, because pods
//! meet on the bridge and the node's IP layer never sees them do so.
//!
//! ```text
//! prerouting   frames from a pod, by its link in map `senders`   ──► from-LINK
//! postrouting  frames to a pod, by its link in map `receivers`   ──► to-LINK
//! from-LINK    neighbour discovery; what is allowed; replies     ──► on; else dropped
//! to-LINK      remembers who speaks to the pod, so that it may answer
//! ```
//!
//! Who has begun a conversation is remembered in sets of the pod's own: connection tracking on
//! bridges (`nf_conntrack_bridge`) is a module that many kernels lack, and would track every pod. A
//! conversation is forgotten a minute after its last packet to the pod unless the pod answers; then
//! a day (TCP) or three minutes after the pod's last packet. What is remembered would go with the
//! table, so a table that is as it should be is not replaced.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::expression::{End, Expressions, Flow, IPV4, IPV6};
use super::inspect::{RulesSeen, is_ours, list_interfaces, list_rules};
use super::rules::{self, Hooked, Rule, SetSpec, rule};
use super::transaction::{commit, one};
use super::{
    Attributes, BRIDGE, EgressPolicy, EgressRule, Message, Netfilter, RuleSpec, failed, kind, table,
};
use crate::network::NetworkError;
use crate::network::link;
use crate::network::netlink::{NetlinkError, Socket};

const FROM_PODS: Hooked = ("prerouting", "filter", 0, -200);
const TO_PODS: Hooked = ("postrouting", "filter", 4, 0);
/// The maps from a link to its chain.
const SENDERS: &str = "senders";
const RECEIVERS: &str = "receivers";
/// Conversations, and hosts, that are remembered of one pod and family.
const REMEMBERED_MAX: u32 = 65_535;
/// How long, in milliseconds: one that nobody has answered; one by TCP, and one by another protocol
/// that the pod has answered.
const NEW_MS: u64 = 60_000;
const TCP_MS: u64 = 86_400_000;
const OTHER_MS: u64 = 180_000;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Numbers of the maps and sets in a transaction; nothing refers to them.
const FIRST_SET: u32 = 3;
/// `NFT_MSG_GETSETELEM`.
const GET_ELEMENTS: u16 = 13;
/// `NFT_MSG_DELCHAIN`, `_DELRULE`, `_DELSET`, `_NEWSETELEM`, `_DELSETELEM`.
const DELETE_CHAIN: u16 = 5;
const DELETE_RULE: u16 = 8;
const DELETE_SET: u16 = 11;
const ADD_ELEMENT: (u16, u16) = (12, NLM_F_CREATE);
const DELETE_ELEMENT: (u16, u16) = (14, 0);

impl EgressPolicy {
    fn from(&self) -> String {
        format!("from-{}", self.link)
    }

    fn to(&self) -> String {
        format!("to-{}", self.link)
    }

    fn flows(&self, family: u8) -> String {
        format!("flows{}-{}", if family == IPV6 { 6 } else { 4 }, self.link)
    }

    fn peers(&self, family: u8) -> String {
        format!("peers{}-{}", if family == IPV6 { 6 } else { 4 }, self.link)
    }

    /// What remembers who speaks to the pod.
    fn sets(&self) -> Vec<SetSpec> {
        let mut sets = Vec::new();
        for (family, address, bytes) in [(IPV4, 7, 4), (IPV6, 8, 16)] {
            let flow = rules::type_of(&[12, 13, address, 13]);
            for (name, key, key_bytes) in [
                (self.flows(family), flow, bytes + 12),
                (self.peers(family), address, bytes),
            ] {
                sets.push(SetSpec {
                    name,
                    key,
                    key_bytes,
                    size: REMEMBERED_MAX,
                });
            }
        }
        sets
    }

    /// All rules, in order.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let mut rules = self.sent_rules();
        rules.extend(self.received_rules());
        rules
    }

    fn sent_rules(&self) -> Vec<Rule> {
        let new = Expressions::new;
        let mut rules = Vec::new();
        let mut add = |comment: String, expressions| {
            rules.push(rule(self.from(), comment, expressions));
        };
        add("ARP".into(), new().arp().accept());
        // Router solicitation, neighbour solicitation and advertisement, multicast listeners.
        for (first, last) in [(131, 133), (135, 136), (143, 143)] {
            let neighbours = new().ip(IPV6).transport(ICMP6).kind_of_icmp(first, last);
            let comment = format!("ICMPv6 {first} to {last}: neighbours");
            add(comment, neighbours.accept());
        }
        for allowed in &self.rules {
            add(
                format!("to {allowed}"),
                allowed.matches(End::Destination).accept(),
            );
            if allowed.ports.is_some() {
                let rest = allowed
                    .in_its_net(End::Destination)
                    .later_fragment(allowed.family());
                add(format!("to {allowed}: later fragments"), rest.accept());
            }
        }
        for family in [IPV4, IPV6] {
            let (flows, peers) = (self.flows(family), self.peers(family));
            let known = || new().ip(family).flow(family, Flow::Reply).found_in(&flows);
            let refreshed = known().transport(TCP).not_first_of_tcp();
            add(
                format!("replies in {flows}: TCP"),
                // The registers of the key are the comparisons' too.
                refreshed.flow(family, Flow::Reply).refresh(&flows, TCP_MS),
            );
            let refreshed = known().other_transport(TCP);
            add(
                format!("replies in {flows}: other protocols"),
                refreshed
                    .flow(family, Flow::Reply)
                    .refresh(&flows, OTHER_MS),
            );
            add(format!("replies in {flows}"), known().accept());
            let to_peer = || {
                new()
                    .ip(family)
                    .address(family, End::Destination)
                    .found_in(&peers)
            };
            add(
                format!("later fragments to {peers}"),
                to_peer().later_fragment(family).accept(),
            );
            // Echo replies and errors.
            let (protocol, kinds) = match family {
                IPV4 => (ICMP, &[(0, 0), (3, 3), (11, 12)][..]),
                _ => (ICMP6, &[(129, 129), (1, 4)][..]),
            };
            for &(first, last) in kinds {
                let answer = to_peer().transport(protocol).kind_of_icmp(first, last);
                let comment = format!("ICMP {first} to {last} to {peers}");
                add(comment, answer.accept());
            }
        }
        add("anything else".into(), new().drop_packet());
        rules
    }

    fn received_rules(&self) -> Vec<Rule> {
        let new = Expressions::new;
        let mut rules = Vec::new();
        let mut add = |comment: String, expressions| {
            rules.push(rule(self.to(), comment, expressions));
        };
        for allowed in &self.rules {
            // Where the pod may speak by itself, nothing need be remembered.
            let comment = format!("from {allowed}: allowed anyway");
            add(comment, allowed.matches(End::Source).accept());
        }
        for family in [IPV4, IPV6] {
            let (flows, peers) = (self.flows(family), self.peers(family));
            let host = new().ip(family).address(family, End::Source);
            add(format!("remember in {peers}"), host.refresh(&peers, NEW_MS));
            let flow = new().ip(family).flow(family, Flow::Request);
            add(
                format!("remember in {flows}"),
                flow.remember(&flows, NEW_MS),
            );
        }
        rules
    }

    /// Everything of one pod, for a table that has nothing of it.
    pub(super) fn add(&self, table: &str) -> Vec<Message> {
        let sets = self.sets();
        let sets = (FIRST_SET..).zip(&sets);
        let mut messages: Vec<_> = sets
            .map(|(id, set)| set.message(BRIDGE, table, id))
            .collect();
        for chain in [self.from(), self.to()] {
            messages.push(rules::chain_message(BRIDGE, table, &chain, None));
        }
        let rules = self.rules();
        messages.extend(rules.iter().map(|rule| rule.message(BRIDGE, table)));
        for (map, chain) in [(SENDERS, self.from()), (RECEIVERS, self.to())] {
            messages.push(self.element(table, map, ADD_ELEMENT, &chain));
        }
        messages
    }

    /// Takes everything of one pod away. All of it must be there.
    pub(super) fn remove(&self, table: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        for (map, chain) in [(SENDERS, self.from()), (RECEIVERS, self.to())] {
            messages.push(self.element(table, map, DELETE_ELEMENT, &chain));
        }
        for chain in [self.from(), self.to()] {
            let all = Attributes::new().text(1, table).text(2, &chain);
            messages.push(Message::new(kind(DELETE_RULE), 0, BRIDGE, &all));
            let name = Attributes::new().text(1, table).text(3, &chain);
            messages.push(Message::new(kind(DELETE_CHAIN), 0, BRIDGE, &name));
        }
        for set in self.sets() {
            let name = Attributes::new().text(1, table).text(2, &set.name);
            messages.push(Message::new(kind(DELETE_SET), 0, BRIDGE, &name));
        }
        messages
    }

    fn element(
        &self,
        table: &str,
        map: &str,
        (message, flags): (u16, u16),
        chain: &str,
    ) -> Message {
        // NFTA_SET_ELEM_DATA; NFTA_DATA_VERDICT.
        let verdict = super::expression::jump_to(chain);
        let element = self.key().nested(2, &Attributes::new().nested(2, &verdict));
        let body = in_map(table, map, &element);
        Message::new(kind(message), flags, BRIDGE, &body)
    }

    /// Its link, as the key of an element.
    fn key(&self) -> Attributes {
        // NFTA_SET_ELEM_KEY; NFTA_DATA_VALUE.
        let key = Attributes::new().bytes(1, &super::expression::padded(&self.link));
        Attributes::new().nested(1, &key)
    }

    /// Whether the pod has a policy in place. Asked because a transaction that is refused takes the
    /// kernel ten milliseconds (an RCU grace period), in which nobody else can change a rule.
    fn is_in_place(&self, socket: &mut Socket, table: &str) -> Result<bool, NetlinkError> {
        let body = in_map(table, SENDERS, &self.key());
        match one(socket, &Message::new(kind(GET_ELEMENTS), 0, BRIDGE, &body)) {
            Ok(()) => Ok(true),
            // No element, no map, no table; and no nf_tables at all.
            Err(error) if error.is(libc::ENOENT) || error.is(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// An element of a map.
fn in_map(table: &str, map: &str, element: &Attributes) -> Attributes {
    // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS; NFTA_LIST_ELEM.
    Attributes::new()
        .text(1, table)
        .text(2, map)
        .nested(3, &Attributes::new().nested(1, element))
}

impl EgressRule {
    fn family(&self) -> u8 {
        match self.net {
            IpNet::V4(_) => IPV4,
            IpNet::V6(_) => IPV6,
        }
    }

    /// Packets with this end in the network.
    fn in_its_net(&self, end: End) -> Expressions {
        let family = self.family();
        let rule = Expressions::new().ip(family).in_net(end, self.net);
        match self.protocol {
            Some(protocol) => rule.transport(protocol),
            None => rule,
        }
    }

    fn matches(&self, end: End) -> Expressions {
        let rule = self.in_its_net(end);
        match self.ports {
            Some((first, last)) => rule.port(end, first, last),
            None => rule,
        }
    }
}

/// The table without any policy; refused where there is one of its name.
fn build(table: &str, alias: &str) -> Vec<Message> {
    let mut messages = vec![rules::table_message(
        rules::NEW_TABLE,
        NLM_F_CREATE | NLM_F_EXCL,
        (BRIDGE, table),
        Some(alias),
    )];
    for (id, map) in (1..).zip([SENDERS, RECEIVERS]) {
        messages.push(rules::verdict_map_message(BRIDGE, table, map, id));
    }
    for hooked in [FROM_PODS, TO_PODS] {
        let chain = rules::chain_message(BRIDGE, table, hooked.0, Some(hooked));
        messages.push(chain);
    }
    messages.extend(base_rules().iter().map(|rule| rule.message(BRIDGE, table)));
    messages
}

fn base_rules() -> [Rule; 2] {
    let new = Expressions::new;
    [
        rule(
            FROM_PODS.0,
            "from pods with a policy",
            new().input_in(SENDERS),
        ),
        rule(
            TO_PODS.0,
            "to pods with a policy",
            new().output_in(RECEIVERS),
        ),
    ]
}

/// Looks which policies are in place. What is wrong with the table as a whole is a problem. Returns
/// whether there is a table of that name.
pub(super) fn look(
    socket: &mut Socket,
    table: &str,
    spec: &RuleSpec,
    seen: &mut RulesSeen,
) -> Result<bool, NetworkError> {
    match is_ours(socket, BRIDGE, table, spec)? {
        None if spec.policies.is_empty() => return Ok(false),
        None => {
            let problem = format!("table bridge {table} is missing");
            seen.problems.push(problem);
            return Ok(false);
        }
        Some(false) => {
            let problem = format!("table bridge {table} is not ours");
            seen.problems.push(problem);
            return Ok(true);
        }
        Some(true) => {}
    }
    let mut by_chain: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (chain, comment) in list_rules(socket, BRIDGE, table)? {
        by_chain.entry(chain).or_default().push(comment);
    }
    let mut take = |rules: Vec<Rule>| {
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for rule in rules {
            wanted.entry(rule.chain).or_default().push(rule.comment);
        }
        let (mut whole, mut any) = (true, false);
        for (chain, comments) in wanted {
            let found = by_chain.remove(&chain);
            any |= found.is_some();
            whole &= found.as_ref() == Some(&comments);
        }
        any.then_some(whole)
    };
    if take(base_rules().into()) != Some(true) {
        let problem = format!("table bridge {table} is not as it should be");
        seen.problems.push(problem);
    }
    let senders = list_interfaces(socket, BRIDGE, table, SENDERS)?;
    let receivers = list_interfaces(socket, BRIDGE, table, RECEIVERS)?;
    for policy in &spec.policies {
        let led = [&senders, &receivers].map(|map| map.contains(&policy.link));
        match take(policy.rules()) {
            None if led == [false; 2] => {}
            whole => {
                let whole = whole == Some(true) && led == [true; 2];
                seen.policies.insert(policy.link.clone(), whole);
            }
        }
    }
    let of_chains = by_chain.keys().filter_map(|chain| {
        let link = chain.strip_prefix("from-").or(chain.strip_prefix("to-"));
        link.map(str::to_owned)
    });
    for link in of_chains.chain(senders).chain(receivers) {
        seen.policies.entry(link).or_insert(false);
    }
    Ok(true)
}

/// What makes the policies as they should be, in a transaction. One that is of no pod goes only
/// when its link is gone: the pod may be newer than what the caller has read.
pub(super) fn put_right(
    socket: &mut Socket,
    table: &str,
    spec: &RuleSpec,
) -> Result<Vec<Message>, NetworkError> {
    let mut seen = RulesSeen::default();
    let there = look(socket, table, spec, &mut seen)?;
    if !there && spec.policies.is_empty() {
        return Ok(Vec::new());
    }
    let mut right = there && seen.problems.is_empty();
    let mut route = Socket::open().map_err(failed("open a socket for"))?;
    for (link, whole) in &seen.policies {
        // Half a policy cannot be taken away piece by piece: nobody knows which half.
        right &= match spec.policies.iter().any(|policy| policy.link == *link) {
            true => *whole,
            false => link::find(&mut route, link)?.is_some(),
        };
    }
    if right {
        let missing = spec.policies.iter();
        let missing = missing.filter(|policy| !seen.policies.contains_key(&policy.link));
        return Ok(missing.flat_map(|policy| policy.add(table)).collect());
    }
    let mut messages = Vec::new();
    if there {
        let table = (BRIDGE, table);
        messages.push(rules::table_message(rules::DELETE_TABLE, 0, table, None));
    }
    messages.extend(build(table, &spec.alias));
    messages.extend(spec.policies.iter().flat_map(|policy| policy.add(table)));
    Ok(messages)
}

/// Puts a pod's policy in place, in one transaction, with the table if there is none yet. The pod's
/// link is there, and nothing has run in the pod.
///
/// # Errors
///
/// What the kernel refused.
pub fn open_policy(
    netfilter: &Netfilter,
    bridge: &str,
    alias: &str,
    policy: &EgressPolicy,
) -> Result<(), NetworkError> {
    link::validate_name("link", &policy.link)?;
    link::validate_alias(alias)?;
    let name = table(bridge);
    let mut with_table = build(&name, alias);
    with_table.extend(policy.add(&name));
    // The last one is for who was outrun by somebody else's first policy.
    let mut tries = vec![policy.add(&name), with_table, policy.add(&name)];
    let doing = || failed("put a policy in place in");
    netfilter.with(|socket| {
        if policy.is_in_place(socket, &name).map_err(doing())? {
            // An earlier attempt has got as far.
            let mut replaced = policy.remove(&name);
            replaced.extend(policy.add(&name));
            tries.insert(0, replaced);
        }
        let mut outcome = Ok(());
        for messages in &tries {
            outcome = commit(socket, messages);
            match &outcome {
                Err(error) if error.is(libc::ENOENT) || error.is(libc::EEXIST) => {}
                _ => break,
            }
        }
        outcome.map_err(doing())
    })
}

/// Takes a pod's policy away; nothing runs in the pod any more. Absence is success.
///
/// # Errors
///
/// What the kernel refused.
pub fn close_policy(
    netfilter: &Netfilter,
    bridge: &str,
    policy: &EgressPolicy,
) -> Result<(), NetworkError> {
    let name = table(bridge);
    let doing = || failed("take a policy out of");
    netfilter.with(|socket| {
        if !policy.is_in_place(socket, &name).map_err(doing())? {
            return Ok(());
        }
        match commit(socket, &policy.remove(&name)) {
            Err(error) if !error.is(libc::ENOENT) => Err(doing()(error)),
            _ => Ok(()),
        }
    })
}
