//! A small synchronous netlink socket (netlink(7)): requests in batches, answers in order.
//!
//! Route netlink (rtnetlink(7)) is spoken here; what netfilter's subsystems say is built in `nft`
//! on the same socket.
//!
//! The kernel works through a whole batch inside one `sendmsg`, so a batch costs one system call
//! and is not torn apart when this process is killed. Requests are built with
//! `netlink-packet-route`; answers are handed out as bytes, because whoever reads them wants three
//! attributes of sixty, and an attribute that a newer kernel adds must not make the rest
//! unreadable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::fault::{self, Fault};

/// Longest wait for an answer. The kernel answers before `sendmsg` returns, except for dumps, so
/// this only bounds what should not happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The kernel never builds a larger answer than it saw room for, and never more than this.
const RECEIVE_BUFFER_BYTES: usize = 32 * 1024;

/// Room for the largest message that is sent: rules with some ten thousand ports.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// `NLMSGERR_ATTR_MSG` of `linux/netlink.h`: the kernel's own words about an error.
const ERROR_ATTRIBUTE_MESSAGE: u16 = 1;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("speak to the kernel over netlink")]
    Socket(#[source] io::Error),
    /// The kernel refused the request; it may say why.
    #[error("the kernel refused{}", explain(.message))]
    Refused {
        /// The kernel's words, where it has any (extended acknowledgement).
        message: Option<String>,
        /// The error number it gave.
        #[source]
        source: io::Error,
    },
    /// The answer does not have netlink's form.
    #[error("the kernel's answer is not understood: {0}")]
    Malformed(&'static str),
    /// A point made the request fail (`crate::fault`).
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl NetlinkError {
    /// Whether the kernel refused with this error number (`libc::E…`).
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(errno))
    }
}

fn explain(message: &Option<String>) -> String {
    message
        .as_ref()
        .map(|text| format!(" ({text})"))
        .unwrap_or_default()
}

/// One answer message: what follows the header.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
}

/// A request and its flags beside `NLM_F_REQUEST` and `NLM_F_ACK`.
pub(super) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    pub(super) fn new(message: RouteNetlinkMessage) -> Self {
        Self { message, flags: 0 }
    }

    pub(super) fn with_flags(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags }
    }
}

/// What became of one request: the message it asked for, or nothing when it only changed something.
pub(super) type Outcome = Result<Option<Reply>, NetlinkError>;

/// A socket in the network namespace of the thread that opened it, for as long as it lives.
pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Self::of(NETLINK_ROUTE)
    }

    /// The same for netfilter's subsystems.
    pub(super) fn open_netfilter() -> Result<Self, NetlinkError> {
        Self::of(NETLINK_NETFILTER)
    }

    fn of(protocol: isize) -> Result<Self, NetlinkError> {
        let inner = netlink_sys::Socket::new(protocol).map_err(NetlinkError::Socket)?;
        set_socket_timeout(&inner, Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|errno| NetlinkError::Socket(errno.into()))?;
        // The rules of a node with many ports are one message. Without the privilege for more room
        // than the system's limit, what fits in that works.
        let _refused = setsockopt(&inner, sockopt::SndBufForce, &SEND_BUFFER_BYTES);
        // Errors come with words, and without a copy of the request.
        inner.set_ext_ack(true).map_err(NetlinkError::Socket)?;
        inner.set_cap_ack(true).map_err(NetlinkError::Socket)?;
        Ok(Self {
            inner,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER_BYTES),
        })
    }

    /// Begins to hear what a group of the protocol tells everybody; from now on, receiving does not
    /// wait.
    pub(super) fn listen(&mut self, group: u32) -> Result<(), NetlinkError> {
        // A socket without an address of its own is left out.
        self.inner.bind_auto().map_err(NetlinkError::Socket)?;
        let heard = self.inner.add_membership(group);
        heard.map_err(NetlinkError::Socket)?;
        let set = self.inner.set_non_blocking(true);
        set.map_err(NetlinkError::Socket)
    }

    /// Sends all requests in one system call. The kernel goes on after a refused one, so requests
    /// that follow must do no harm then. The answer has one outcome for each request, in order.
    pub(super) fn batch(&mut self, requests: Vec<Request>) -> Result<Vec<Outcome>, NetlinkError> {
        let count = requests.len();
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(512 * count);
        for request in requests {
            self.append(&mut bytes, request, NLM_F_ACK);
        }
        self.send(&bytes)?;
        let mut outcomes: Vec<Option<Outcome>> = (0..count).map(|_| None).collect();
        let mut replies: Vec<Option<Reply>> = (0..count).map(|_| None).collect();
        while outcomes.iter().any(Option::is_none) {
            self.receive(|header, payload| {
                let position = header.sequence_number.wrapping_sub(first) as usize;
                // Anything else answers an earlier request that was given up.
                if position < count {
                    match header.message_type {
                        NLMSG_ERROR => {
                            let verdict = acknowledgement(header, payload);
                            outcomes[position] = Some(verdict.map(|()| replies[position].take()));
                        }
                        NLMSG_NOOP => {}
                        _ => {
                            replies[position] = Some(Reply {
                                payload: payload.into(),
                            })
                        }
                    }
                }
                Ok(())
            })?;
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Sends one request that answers with at most one message.
    pub(super) fn one(&mut self, request: Request) -> Outcome {
        self.batch(vec![request])?
            .pop()
            .unwrap_or(Err(NetlinkError::Malformed("no outcome for a request")))
    }

    /// Asks for all objects of a kind. An answer that the kernel marks as inconsistent
    /// (`NLM_F_DUMP_INTR`) is asked for again, a bounded number of times.
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<Reply>, NetlinkError> {
        const ATTEMPTS: usize = 8;
        for _ in 0..ATTEMPTS {
            if let Some(replies) = self.dump_once(message.clone())? {
                return Ok(replies);
            }
        }
        Err(NetlinkError::Malformed(
            "the list kept changing while it was read",
        ))
    }

    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<Reply>>, NetlinkError> {
        let mut bytes = Vec::with_capacity(128);
        self.append(&mut bytes, Request::with_flags(message, NLM_F_DUMP), 0);
        self.send(&bytes)?;
        self.collect(self.sequence)
    }

    /// Receives the answer to a dump: all its messages, or `None` when the list changed meanwhile.
    pub(super) fn collect(&mut self, sequence: u32) -> Result<Option<Vec<Reply>>, NetlinkError> {
        let (mut replies, mut done, mut torn) = (Vec::new(), false, false);
        while !done {
            self.receive(|header, payload| {
                if header.sequence_number != sequence {
                    return Ok(());
                }
                torn |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.message_type {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        acknowledgement(header, payload)?;
                        done = true;
                    }
                    NLMSG_NOOP => {}
                    _ => replies.push(Reply {
                        payload: payload.into(),
                    }),
                }
                Ok(())
            })?;
        }
        Ok((!torn).then_some(replies))
    }

    fn append(&mut self, bytes: &mut Vec<u8>, request: Request, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags | request.flags;
        header.sequence_number = self.sequence;
        let payload = NetlinkPayload::from(request.message);
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    /// Appends a message that is encoded already, and returns its sequence number.
    pub(super) fn append_encoded(
        &mut self,
        bytes: &mut Vec<u8>,
        (kind, flags): (u16, u16),
        payload: &[u8],
    ) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.sequence
    }

    /// Sends what has been appended, in one system call.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = netlink_sys::SocketAddr::new(0, 0);
        self.inner
            .send_to(bytes, &kernel, 0)
            .map_err(NetlinkError::Socket)?;
        // The kernel has done all of it by now, whether or not we live to hear of it.
        Ok(fault::blocking_point("netlink.sent")?)
    }

    /// Receives one datagram and hands out the messages in it.
    pub(super) fn receive(
        &mut self,
        mut take: impl FnMut(&Header, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        self.buffer.clear();
        let (length, sender) = loop {
            match self.inner.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(NetlinkError::Socket)?,
            }
        };
        if length > self.buffer.len() {
            return Err(NetlinkError::Malformed("longer than the receive buffer"));
        }
        // Any process may send to a netlink socket's port; only port 0 is the kernel.
        if sender.port_number() != 0 {
            return Ok(());
        }
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let header = Header::parse(rest)?;
            take(&header, &rest[HEADER_BYTES..header.length])?;
            rest = rest
                .get(header.length.next_multiple_of(4)..)
                .unwrap_or_default();
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// The parts of `struct nlmsghdr` that matter here.
pub(super) struct Header {
    length: usize,
    pub(super) message_type: u16,
    flags: u16,
    pub(super) sequence_number: u32,
}

impl Header {
    /// Reads a header and checks that the message lies within `bytes`.
    fn parse(bytes: &[u8]) -> Result<Self, NetlinkError> {
        const SHORT: NetlinkError = NetlinkError::Malformed("shorter than its own length");
        let raw: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(SHORT)?;
        let length = u32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            return Err(SHORT);
        }
        Ok(Self {
            length,
            message_type: u16::from_ne_bytes([raw[4], raw[5]]),
            flags: u16::from_ne_bytes([raw[6], raw[7]]),
            sequence_number: u32::from_ne_bytes([raw[8], raw[9], raw[10], raw[11]]),
        })
    }
}

/// Reads `struct nlmsgerr`: zero is success, anything else a negative error number.
pub(super) fn acknowledgement(header: &Header, payload: &[u8]) -> Result<(), NetlinkError> {
    let code: &[u8; 4] = payload
        .first_chunk()
        .ok_or(NetlinkError::Malformed("an error without a number"))?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(NetlinkError::Refused {
            message: error_message(header, &payload[4..]),
            source: io::Error::from_raw_os_error(code.saturating_neg()),
        }),
    }
}

/// What the kernel says about an error, which follows the (capped) copy of the request.
fn error_message(header: &Header, echo: &[u8]) -> Option<String> {
    if header.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let skip = if header.flags & NLM_F_CAPPED != 0 {
        HEADER_BYTES
    } else {
        let raw: &[u8; 4] = echo.first_chunk()?;
        (u32::from_ne_bytes(*raw) as usize).next_multiple_of(4)
    };
    NlasIterator::new(echo.get(skip..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == ERROR_ATTRIBUTE_MESSAGE)
        .map(|attribute| text(attribute.value()))
}

/// A C string, or what can be read of it.
pub(super) fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    fn get(name: &str) -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        RouteNetlinkMessage::GetLink(message)
    }

    #[test]
    fn outcomes_come_in_the_order_of_requests() {
        let mut socket = Socket::open().unwrap();
        let requests = ["lo", "qlt-none", "lo"].map(|name| Request::new(get(name)));
        let outcomes = socket.batch(requests.into()).unwrap();
        assert_eq!(outcomes.len(), 3);
        assert!(outcomes[0].as_ref().unwrap().is_some());
        assert!(outcomes[1].as_ref().unwrap_err().is(libc::ENODEV));
        assert!(outcomes[2].as_ref().unwrap().is_some());
    }

    #[test]
    fn a_dump_lists_the_loopback_interface() {
        let mut socket = Socket::open().unwrap();
        let replies = socket
            .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .unwrap();
        assert!(!replies.is_empty());
    }

    #[test]
    fn torn_messages_are_refused_not_read_past() {
        assert!(Header::parse(&[0; 8]).is_err());
        let mut bytes = [0u8; 16];
        bytes[0] = 17;
        assert!(Header::parse(&bytes).is_err());
        bytes[0] = 4;
        assert!(Header::parse(&bytes).is_err());
        let header = Header {
            length: 20,
            message_type: 2,
            flags: 0x300,
            sequence_number: 1,
        };
        assert!(acknowledgement(&header, &[1, 2]).is_err());
        assert_eq!(error_message(&header, &[0; 3]), None);
    }
}
