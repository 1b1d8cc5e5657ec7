//! Hearing when somebody takes something out of our table.

use std::os::fd::{AsFd, BorrowedFd};

use super::encode::{GENERIC_HEADER_BYTES, find};
use super::{failed, kind, table};
use crate::network::NetworkError;
use crate::network::netlink::{NetlinkError, Socket, text};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFT_MSG_DELTABLE`, `_DELCHAIN`, `_DELRULE`, `_DELSET`, `_DELSETELEM`.
const DELETIONS: [u16; 5] = [2, 5, 8, 11, 14];

/// A socket that becomes readable when rules change.
pub struct RuleWatch {
    socket: Socket,
    table: String,
}

impl RuleWatch {
    /// Begins to listen, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn begin(bridge: &str) -> Result<Self, NetworkError> {
        let mut socket = Socket::open_netfilter().map_err(failed("open a socket for"))?;
        socket
            .listen(GROUP)
            .map_err(failed("listen for changes of"))?;
        Ok(Self {
            socket,
            table: table(bridge),
        })
    }

    /// Reads what has come, without waiting: whether something was taken out of our table, by us or
    /// by others. Messages that were lost count as that.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn something_went(&mut self) -> Result<bool, NetworkError> {
        let mut went = false;
        loop {
            let table = &self.table;
            let received = self.socket.receive(|header, payload| {
                let of_ours = payload
                    .get(GENERIC_HEADER_BYTES..)
                    .and_then(|attributes| find(attributes, 1))
                    .is_some_and(|name| text(name) == *table);
                let deleted = DELETIONS
                    .iter()
                    .any(|one| kind(*one) == header.message_type);
                went |= of_ours && deleted;
                Ok(())
            });
            match received {
                Ok(()) => {}
                Err(NetlinkError::Socket(error)) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(went),
                    Some(libc::ENOBUFS) => went = true,
                    _ => return Err(failed("hear of changes of")(NetlinkError::Socket(error))),
                },
                // Longer than there is room for: many things at once.
                Err(_) => went = true,
            }
        }
    }
}

impl AsFd for RuleWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
