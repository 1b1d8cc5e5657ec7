//! What there is of the rules, compared with what there should be. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::encode::{Attributes, GENERIC_HEADER_BYTES, Message, find, list};
use super::forward::PortForward;
use super::rules::{read_comment, rules};
use super::transaction::{dump, kind};
use super::{INET, Netfilter, RuleSpec, egress, failed, table};
use crate::network::NetworkError;
use crate::network::netlink::{Reply, Socket, text};
use crate::network::sysctl;

/// `NFT_MSG_GETTABLE`, `_GETRULE`, `_GETSETELEM`.
const GET_TABLE: u16 = 1;
const GET_RULE: u16 = 7;
const GET_ELEMENTS: u16 = 13;

/// What a look at the rules has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesSeen {
    /// What is not as it should be about anything but ports, in words.
    pub problems: Vec<String>,
    /// The ports that lead to pods.
    pub forwards: BTreeSet<PortForward>,
    /// The links whose pods have a policy in place, and whether it is as it should be; one that
    /// nothing is known of never is.
    pub policies: BTreeMap<String, bool>,
}

fn attributes(reply: &Reply) -> &[u8] {
    reply
        .payload
        .get(GENERIC_HEADER_BYTES..)
        .unwrap_or_default()
}

/// All tables of a family, with their comments. A kernel without nf_tables (which knows no such
/// subsystem, and says `EINVAL`) has none.
pub(super) fn tables(
    socket: &mut Socket,
    family: u8,
) -> Result<Vec<(String, Option<String>)>, NetworkError> {
    let message = Message::new(kind(GET_TABLE), 0, family, &Attributes::new());
    let replies = match dump(socket, &message) {
        Err(error) if error.is(libc::EINVAL) => Vec::new(),
        other => other.map_err(failed("list"))?,
    };
    let named = replies.iter().filter_map(|reply| {
        let name = text(find(attributes(reply), 1)?);
        Some((name, find(attributes(reply), 6).and_then(read_comment)))
    });
    Ok(named.collect())
}

/// Compares the rules with what they should be; ports and policies are the caller's to compare.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn look_at_rules(netfilter: &Netfilter, spec: &RuleSpec) -> Result<RulesSeen, NetworkError> {
    netfilter.with(|socket| look(socket, spec))
}

fn look(socket: &mut Socket, spec: &RuleSpec) -> Result<RulesSeen, NetworkError> {
    let name = table(&spec.bridge);
    let mut seen = RulesSeen::default();
    egress::look(socket, &name, spec, &mut seen)?;
    if !spec.has_addresses() {
        return Ok(seen);
    }
    match is_ours(socket, INET, &name, spec)? {
        None => {
            seen.problems.push(format!("table inet {name} is missing"));
            return Ok(seen);
        }
        Some(false) => {
            seen.problems.push(format!("table inet {name} is not ours"));
            return Ok(seen);
        }
        Some(true) => {}
    }
    compare_rules(socket, &name, spec, &mut seen)?;
    if spec.host_ports {
        for map in spec.maps() {
            let body = Attributes::new().text(1, &name).text(2, map.name);
            let message = Message::new(kind(GET_ELEMENTS), 0, INET, &body);
            match dump(socket, &message) {
                Ok(replies) => seen.forwards.extend(
                    replies
                        .iter()
                        .flat_map(|reply| PortForward::parse_all(map, attributes(reply))),
                ),
                Err(error) if error.is(libc::ENOENT) => {
                    seen.problems.push(format!("map {} is missing", map.name));
                }
                Err(error) => return Err(failed("list")(error)),
            }
        }
    }
    let ipv6 = spec.has_ipv6();
    if !sysctl::forwards_packets(ipv6) {
        seen.problems
            .push("the node does not forward packets".into());
    }
    if spec.host_ports && !sysctl::routes_loopback(&spec.bridge) {
        let why = "the bridge does not carry the node's own connections to ports of pods";
        seen.problems.push(why.into());
    }
    Ok(seen)
}

/// Whether the table of this name has our mark; `None` without such a table.
pub(super) fn is_ours(
    socket: &mut Socket,
    family: u8,
    name: &str,
    spec: &RuleSpec,
) -> Result<Option<bool>, NetworkError> {
    let all = tables(socket, family)?;
    let found = all.iter().find(|(found, _)| found == name);
    Ok(found.map(|(_, mark)| mark.as_deref() == Some(spec.alias.as_str())))
}

/// Chain and comment of every rule: rules of ours are never edited, only replaced.
pub(super) fn list_rules(
    socket: &mut Socket,
    family: u8,
    name: &str,
) -> Result<Vec<(String, String)>, NetworkError> {
    let body = Attributes::new().text(1, name);
    let message = Message::new(kind(GET_RULE), 0, family, &body);
    let replies = dump(socket, &message).map_err(failed("list"))?;
    let found = replies.iter().map(|reply| {
        let part = |number| find(attributes(reply), number);
        let comment = part(7).and_then(read_comment).unwrap_or_default();
        (part(2).map(text).unwrap_or_default(), comment)
    });
    Ok(found.collect())
}

/// The keys of a map of interfaces; none without such a map.
pub(super) fn list_interfaces(
    socket: &mut Socket,
    family: u8,
    name: &str,
    map: &str,
) -> Result<BTreeSet<String>, NetworkError> {
    let body = Attributes::new().text(1, name).text(2, map);
    let message = Message::new(kind(GET_ELEMENTS), 0, family, &body);
    let replies = match dump(socket, &message) {
        Err(error) if error.is(libc::ENOENT) => Vec::new(),
        other => other.map_err(failed("list"))?,
    };
    let mut names = BTreeSet::new();
    for reply in &replies {
        let elements = find(attributes(reply), 3).map(list).unwrap_or_default();
        let keys = elements
            .into_iter()
            .filter_map(|element| find(find(element, 1)?, 1));
        names.extend(keys.map(text));
    }
    Ok(names)
}

/// By chain and comment.
fn compare_rules(
    socket: &mut Socket,
    name: &str,
    spec: &RuleSpec,
    seen: &mut RulesSeen,
) -> Result<(), NetworkError> {
    let mut found = list_rules(socket, INET, name)?;
    for rule in rules(spec) {
        let place = found
            .iter()
            .position(|(chain, comment)| *chain == rule.chain && *comment == rule.comment);
        match place {
            Some(place) => drop(found.remove(place)),
            None => seen.problems.push(format!(
                "chain {} lacks the rule {:?}",
                rule.chain, rule.comment
            )),
        }
    }
    for (chain, comment) in found {
        seen.problems
            .push(format!("chain {chain} has a strange rule {comment:?}"));
    }
    Ok(())
}
