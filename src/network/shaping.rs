//! Limits of what a pod receives and sends (tc(8)), all at the node's end of its link, where no pod
//! can undo them.
//!
//! ```text
//! to the pod:    bridge ──► [tbf] q… ──► pod
//! from the pod:  pod ──► q… ingress ──redirect──► [tbf] i… (ifb) ──► bridge
//! ```
//!
//! What comes in by an interface cannot wait there, so what a pod sends is led through an interface
//! of its own kind (ifb) and waits at its exit. Limits are token buckets (tc-tbf(8)).

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::error::NetworkError;
use super::link::{self, Link};
use super::netlink::{Outcome, Reply, Request, Socket, text};
use super::nft::find;
use super::pod::open_socket;

/// `struct tcmsg`.
const HEADER_BYTES: usize = 20;
// Attributes of `linux/rtnetlink.h` and `linux/pkt_sched.h`.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: sizes are counted as they are, without a table.
const ETHERNET: u8 = 1;
// `linux/pkt_cls.h`, `linux/tc_act/tc_mirred.h`.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: i32 = 4;
const TCA_EGRESS_REDIR: i32 = 1;
/// The handle of what comes in (`TC_H_INGRESS` is its place), and of our bucket.
const INGRESS_HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
const BUCKET_HANDLE: TcHandle = TcHandle { major: 1, minor: 0 };
/// `ETH_P_ALL`, and the filter's priority.
const ALL_PROTOCOLS: u16 = 3;
const PRIORITY: u32 = 1;

/// How long a bucket is filled up to: a pod that was quiet may send as much at once.
const BURST_MS: u64 = 20;
/// How long a packet waits at most before others are dropped.
const WAIT_MS: u64 = 100;
/// Packets that a bucket takes at least, and that may wait at least.
const BURST_PACKETS: u64 = 3;
const WAIT_PACKETS: u64 = 32;

/// A pod's limits.
#[derive(Debug, Clone, Copy)]
pub struct ShapingSpec<'a> {
    /// Name of the node's end of the pod's link.
    pub host_name: &'a str,
    /// What marks interfaces as ours.
    pub alias: &'a str,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Most of what comes to the pod, bits a second.
    pub ingress_bps: Option<u64>,
    /// Most of what the pod sends, bits a second.
    pub egress_bps: Option<u64>,
}

/// The interface that what a pod sends is led through, by the name of its link's node's end.
pub(super) fn shaper_name(host_name: &str) -> String {
    let rest: String = host_name.chars().skip(1).collect();
    format!("i{rest}")
}

/// Puts a pod's limits in place, or changes them.
///
/// # Errors
///
/// [`NetworkError::Invalid`]; [`NetworkError::NotOurs`] when the name of the interface for what the
/// pod sends is somebody else's; otherwise the step that failed, after which it can be called
/// again.
pub fn ensure_shaping(spec: &ShapingSpec<'_>) -> Result<(), NetworkError> {
    link::validate_name("host_name", spec.host_name)?;
    link::validate_alias(spec.alias)?;
    let mut socket = open_socket(spec.host_name)?;
    let host = existing(&mut socket, spec.host_name)?;
    if let Some(bps) = spec.ingress_bps {
        let limit = bucket(&host, bps, spec.mtu);
        done(socket.one(limit), "limit what comes to", spec.host_name)?;
    }
    if let Some(bps) = spec.egress_bps {
        let name = shaper_name(spec.host_name);
        ensure_shaper(&mut socket, &name, spec.alias)?;
        let shaper = existing(&mut socket, &name)?;
        let limit = bucket(&shaper, bps, spec.mtu);
        done(socket.one(limit), "limit what comes from", spec.host_name)?;
        lead_through(&mut socket, &host, &shaper)?;
    }
    Ok(())
}

/// What is not as it should be about a pod's limits, in words.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn check_shaping(spec: &ShapingSpec<'_>) -> Result<Vec<String>, NetworkError> {
    let mut problems = Vec::new();
    let mut socket = open_socket(spec.host_name)?;
    let Some(host) = link::find(&mut socket, spec.host_name)? else {
        // That is told of the link.
        return Ok(problems);
    };
    if let Some(bps) = spec.ingress_bps
        && !has_bucket(&mut socket, &host, bps)?
    {
        problems.push("what comes to the pod is not limited as it should be".to_owned());
    }
    if let Some(bps) = spec.egress_bps {
        let shaper = link::find(&mut socket, &shaper_name(spec.host_name))?;
        let limited = match &shaper {
            Some(shaper) => has_bucket(&mut socket, shaper, bps)? && shaper.up,
            None => false,
        };
        if !limited || !is_led_through(&mut socket, &host)? {
            problems.push("what the pod sends is not limited as it should be".to_owned());
        }
    }
    Ok(problems)
}

fn existing(socket: &mut Socket, name: &str) -> Result<Link, NetworkError> {
    link::find(socket, name)?.ok_or_else(|| NetworkError::Vanished {
        name: name.to_owned(),
        place: "on the node",
    })
}

fn done(outcome: Outcome, action: &'static str, name: &str) -> Result<(), NetworkError> {
    outcome
        .map(drop)
        .map_err(NetworkError::netlink(action, name))
}

/// Makes the interface, marked in the same system call, and sets it up.
fn ensure_shaper(socket: &mut Socket, name: &str, alias: &str) -> Result<(), NetworkError> {
    match link::find(socket, name)? {
        Some(found) if !found.is_kind("ifb") || found.alias.as_deref() != Some(alias) => {
            return Err(NetworkError::NotOurs {
                name: found.name.clone(),
                found: found.describe(),
            });
        }
        Some(found) if found.up => return Ok(()),
        Some(_) => {}
        None => {
            let mut new = link::named(name);
            let kind = LinkInfo::Kind(InfoKind::Ifb);
            new.attributes.push(LinkAttribute::LinkInfo(vec![kind]));
            let mut mark = link::named(name);
            mark.attributes
                .push(LinkAttribute::IfAlias(alias.to_owned()));
            if link::ipv6_exists() {
                mark.attributes.push(link::without_ipv6_addresses());
            }
            let outcomes = socket
                .batch(vec![link::create(new), link::change(mark)])
                .map_err(NetworkError::netlink("create", name))?;
            for (outcome, action) in outcomes.into_iter().zip(["create", "mark as ours"]) {
                done(outcome, action, name)?;
            }
        }
    }
    let mut up = link::named(name);
    link::set_up(&mut up);
    done(socket.one(link::change(up)), "set up", name)
}

fn message(interface: &Link, parent: TcHandle, handle: TcHandle) -> TcMessage {
    // An interface's number is positive.
    let index = i32::try_from(interface.index).unwrap_or(i32::MAX);
    let mut message = TcMessage::with_index(index);
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

fn described(mut message: TcMessage, kind: &str, options: &[DefaultNla]) -> TcMessage {
    let kind = TcAttribute::Kind(kind.to_owned());
    let options = DefaultNla::new(TCA_OPTIONS, packed(options));
    message.attributes = vec![kind, TcAttribute::Other(options)];
    message
}

/// Attributes one after another.
fn packed(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// The limit of what leaves by an interface; one that is there is replaced.
fn bucket(interface: &Link, bps: u64, mtu: u32) -> Request {
    let rate = bps.div_ceil(8);
    let packet = u64::from(mtu) + 14;
    let within = |ms: u64| rate.saturating_mul(ms) / 1000;
    let limit_u32 = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let burst = within(BURST_MS).max(BURST_PACKETS * packet);
    let waiting = within(WAIT_MS).max(WAIT_PACKETS * packet);
    // struct tc_tbf_qopt: two struct tc_ratespec, limit, buffer, mtu.
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(limit_u32(rate).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(limit_u32(waiting).to_ne_bytes());
    parameters.extend([0; 8]);
    let mut options = vec![
        DefaultNla::new(TCA_TBF_PARMS, parameters),
        DefaultNla::new(TCA_TBF_BURST, limit_u32(burst).to_ne_bytes().to_vec()),
    ];
    if u32::try_from(rate).is_err() {
        options.push(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()));
    }
    let message = described(
        message(interface, TcHandle::ROOT, BUCKET_HANDLE),
        "tbf",
        &options,
    );
    Request::with_flags(
        RouteNetlinkMessage::NewQueueDiscipline(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Leads all that comes in by `from` through `to`.
fn lead_through(socket: &mut Socket, from: &Link, to: &Link) -> Result<(), NetworkError> {
    let action = "lead what comes from";
    let entry = described(
        message(from, TcHandle::INGRESS, INGRESS_HANDLE),
        "ingress",
        &[],
    );
    let entry = Request::with_flags(
        RouteNetlinkMessage::NewQueueDiscipline(entry),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    match socket.one(entry) {
        Err(error) if !error.is(libc::EEXIST) => {
            return Err(NetworkError::netlink(action, &from.name)(error));
        }
        _ => {}
    }
    let info = PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let mut former = message(from, INGRESS_HANDLE, TcHandle::UNSPEC);
    former.header.info = info;
    let former = Request::new(RouteNetlinkMessage::DelTrafficFilter(former));
    // What is refused was not there.
    let _none = socket.one(former);
    let mut filter = described(
        message(from, INGRESS_HANDLE, TcHandle::UNSPEC),
        "u32",
        &redirect(to.index),
    );
    filter.header.info = info;
    let filter = Request::with_flags(
        RouteNetlinkMessage::NewTrafficFilter(filter),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    done(socket.one(filter), action, &from.name)
}

/// The options of a filter that takes every packet and sends it out by another interface.
fn redirect(index: u32) -> Vec<DefaultNla> {
    // struct tc_u32_sel with one struct tc_u32_key, which is all zeros and so fits everything.
    let mut selector = vec![0; 16 + 16];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1;
    // struct tc_mirred: index, capabilities, action, two counts, what to do, interface.
    let mut mirred = vec![0; 8];
    mirred.extend(TC_ACT_STOLEN.to_ne_bytes());
    mirred.extend([0; 8]);
    mirred.extend(TCA_EGRESS_REDIR.to_ne_bytes());
    mirred.extend(index.to_ne_bytes());
    let options = packed(&[DefaultNla::new(TCA_MIRRED_PARMS, mirred)]);
    let action = packed(&[
        DefaultNla::new(TCA_ACT_KIND, b"mirred\0".to_vec()),
        DefaultNla::new(TCA_ACT_OPTIONS, options),
    ]);
    // Actions are counted from one.
    let actions = packed(&[DefaultNla::new(1, action)]);
    vec![
        DefaultNla::new(TCA_U32_SEL, selector),
        DefaultNla::new(TCA_U32_ACT, actions),
    ]
}

/// All queueing disciplines of an interface, or all filters of what comes in by it: kind and
/// options.
fn list(
    socket: &mut Socket,
    message: &RouteNetlinkMessage,
    index: u32,
) -> Result<Vec<(String, Vec<u8>)>, NetworkError> {
    let replies = socket
        .dump(message)
        .map_err(NetworkError::netlink("list", "limits"))?;
    Ok(replies
        .iter()
        .filter_map(|reply| parse(reply, index))
        .collect())
}

fn parse(reply: &Reply, index: u32) -> Option<(String, Vec<u8>)> {
    // struct tcmsg: family, padding, index.
    let of: [u8; 4] = reply.payload.get(4..8)?.try_into().ok()?;
    if u32::from_ne_bytes(of) != index {
        return None;
    }
    let attributes = reply.payload.get(HEADER_BYTES..)?;
    let kind = text(find(attributes, TCA_KIND)?);
    let options = find(attributes, TCA_OPTIONS).unwrap_or_default();
    Some((kind, options.to_vec()))
}

fn has_bucket(socket: &mut Socket, interface: &Link, bps: u64) -> Result<bool, NetworkError> {
    let wanted = bps.div_ceil(8);
    let message = message(interface, TcHandle::UNSPEC, TcHandle::UNSPEC);
    let message = RouteNetlinkMessage::GetQueueDiscipline(message);
    let found = list(socket, &message, interface.index)?;
    Ok(found
        .iter()
        .any(|(kind, options)| kind == "tbf" && rate(options) == Some(wanted)))
}

/// The rate of a bucket, bytes a second.
fn rate(options: &[u8]) -> Option<u64> {
    if let Some(large) = find(options, TCA_TBF_RATE64) {
        return Some(u64::from_ne_bytes(large.try_into().ok()?));
    }
    let parameters = find(options, TCA_TBF_PARMS)?;
    let rate: [u8; 4] = parameters.get(8..12)?.try_into().ok()?;
    Some(u32::from_ne_bytes(rate).into())
}

fn is_led_through(socket: &mut Socket, interface: &Link) -> Result<bool, NetworkError> {
    let message = message(interface, INGRESS_HANDLE, TcHandle::UNSPEC);
    let message = RouteNetlinkMessage::GetTrafficFilter(message);
    let found = match list(socket, &message, interface.index) {
        // There is nothing that could have a filter.
        Err(NetworkError::Netlink { source, .. })
            if source.is(libc::EINVAL) || source.is(libc::ENOENT) =>
        {
            Vec::new()
        }
        other => other?,
    };
    Ok(found
        .iter()
        .any(|(kind, options)| kind == "u32" && find(options, TCA_U32_ACT).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_answers_are_no_limit() {
        for length in 0..24 {
            let payload = vec![0; length];
            assert_eq!(parse(&Reply { payload }, 1), None);
            assert_eq!(rate(&vec![1; length]), None);
        }
    }

    #[test]
    fn the_name_of_the_shaper_is_the_links_own_but_for_its_first_letter() {
        assert_eq!(shaper_name("q0123456789ab"), "i0123456789ab");
    }
}
