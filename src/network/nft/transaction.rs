//! Transactions of nf_tables: all of it takes effect at one moment, or none.
//!
//! Messages between `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END` (`linux/netfilter/nfnetlink.h`)
//! are one transaction. Only the last one asks for an acknowledgement; errors come unasked.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLMSG_ERROR};

use super::encode::{Attributes, Message};
use crate::network::netlink::{NetlinkError, Reply, Socket, acknowledgement};

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// How often a list that changed while it was read is read again.
const DUMP_ATTEMPTS: usize = 8;

/// The kind of an nf_tables message (`NFT_MSG_…` of `linux/netfilter/nf_tables.h`).
pub(super) const fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

fn bound(kind: u16) -> Message {
    Message::with_resource(kind, 0, (0, SUBSYSTEM), &Attributes::new())
}

/// Does all of it, or nothing. The error is that of the first message that was refused.
pub(super) fn commit(socket: &mut Socket, messages: &[Message]) -> Result<(), NetlinkError> {
    let mut bytes = Vec::with_capacity(4096);
    let append = |socket: &mut Socket, bytes: &mut Vec<u8>, message: &Message, flags| {
        let header = (message.kind, message.flags | flags);
        socket.append_encoded(bytes, header, message.payload())
    };
    let begin = append(socket, &mut bytes, &bound(BATCH_BEGIN), 0);
    let Some((last, before)) = messages.split_last() else {
        return Ok(());
    };
    for message in before {
        append(socket, &mut bytes, message, 0);
    }
    let last = append(socket, &mut bytes, last, NLM_F_ACK);
    append(socket, &mut bytes, &bound(BATCH_END), 0);
    socket.send(&bytes)?;
    let (mut done, mut failure) = (false, None);
    while !done {
        socket.receive(|header, payload| {
            let position = header.sequence_number.wrapping_sub(begin);
            if header.message_type != NLMSG_ERROR || position > last.wrapping_sub(begin) {
                return Ok(());
            }
            let verdict = acknowledgement(header, payload);
            // An error about the beginning is one about the whole, and nothing may follow it.
            done |= header.sequence_number == last || (position == 0 && verdict.is_err());
            if let Err(error) = verdict {
                failure.get_or_insert(error);
            }
            Ok(())
        })?;
    }
    failure.map_or(Ok(()), Err)
}

/// Asks for all objects that a message describes.
pub(super) fn dump(socket: &mut Socket, message: &Message) -> Result<Vec<Reply>, NetlinkError> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut bytes = Vec::with_capacity(128);
        let header = (message.kind, message.flags | NLM_F_DUMP);
        let sequence = socket.append_encoded(&mut bytes, header, message.payload());
        socket.send(&bytes)?;
        if let Some(replies) = socket.collect(sequence)? {
            return Ok(replies);
        }
    }
    Err(NetlinkError::Malformed(
        "the list kept changing while it was read",
    ))
}

/// Sends one message outside a transaction and waits until it was done.
pub(super) fn one(socket: &mut Socket, message: &Message) -> Result<(), NetlinkError> {
    let mut bytes = Vec::with_capacity(128);
    let header = (message.kind, message.flags | NLM_F_ACK);
    let sequence = socket.append_encoded(&mut bytes, header, message.payload());
    socket.send(&bytes)?;
    let mut answer = None;
    while answer.is_none() {
        socket.receive(|header, payload| {
            if header.sequence_number == sequence && header.message_type == NLMSG_ERROR {
                answer = Some(acknowledgement(header, payload));
            }
            Ok(())
        })?;
    }
    answer.unwrap_or(Ok(()))
}
