//! One connection to a daemon: messages in, answers and events out, never waiting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::net::Shutdown;

use super::polled::Polled;
use crate::shim::protocol::{FromShim, Refusal, encode};
use crate::sys::seqpacket::{self, Received};

/// With this many answers unsent no further request is read.
const OUTBOX_MAX: usize = 64;

/// A connection, and what could not be sent at once.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Polled,
    /// The first exit record that has not been sent on it.
    pub(super) next_event: u64,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Connection {
    pub(super) fn new(socket: Polled) -> Connection {
        Connection {
            socket,
            next_event: 0,
            outbox: VecDeque::new(),
        }
    }

    /// What epoll says of it.
    pub(super) fn token(&self) -> u64 {
        self.socket.token()
    }

    /// Asks epoll for what can be done now: reading while there is room for answers, writing while
    /// answers wait.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::OUT, self.is_clogged());
        flags.set(EventFlags::IN, self.has_room());
        self.socket.watch_for(flags)
    }

    /// Whether requests may be read: there is room for their answers.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_MAX
    }

    /// Whether answers wait for the daemon to read.
    pub(super) fn is_clogged(&self) -> bool {
        !self.outbox.is_empty()
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        seqpacket::receive(self.socket.as_fd(), buffer)
    }

    /// Puts a message into the outbox.
    pub(super) fn post(&mut self, message: &FromShim, fds: Vec<OwnedFd>) {
        let bytes = match (encode(message), message) {
            (Ok(bytes), _) => Ok(bytes),
            (Err(error), FromShim::Answer { number, .. }) => {
                let result = Err(Refusal::Prepare(error.to_string()));
                encode(&FromShim::Answer {
                    number: *number,
                    result,
                })
            }
            (Err(error), _) => Err(error),
        };
        // The fallback is short and the rest has fixed bounds: nothing else can fail to encode.
        if let Ok(bytes) = bytes {
            self.outbox.push_back((bytes, fds));
        }
    }

    /// Sends what it can; an error means that the daemon is gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, fds)) = self.outbox.front() {
            match seqpacket::send(self.socket.as_fd(), bytes, fds) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// For the peer it ends here, even while a child that is just being made has a duplicate.
impl Drop for Connection {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}
