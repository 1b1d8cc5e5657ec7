//! The socket between a launching parent and its child, which closes on exec.
//!
//! The child says at most five kinds of things and the parent nothing. End of file means that exec
//! succeeded (or that the child was killed, which its exit status tells).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::error::LaunchError;
use super::user::Identity;

/// No message is longer; an error text is cut to fit.
const MESSAGE_MAX: usize = 16 * 1024;

/// What a child says.
#[derive(Debug)]
pub(super) enum Message {
    /// It cannot become what it should, and ends.
    Failed(LaunchError),
    /// The user the plan named turned out to be this.
    Identity(Identity),
    /// The master side of its terminal.
    Terminal(OwnedFd),
    /// It is the driver of a runtime, and this is the process that runs now: its id and pidfd.
    Process(i32, OwnedFd),
    /// It has no exec ahead of it (the init of a pod) and is done setting up.
    Ready,
    /// Another process, by its pidfd, goes on in its place; the child ends.
    Successor(OwnedFd),
}

const FAILED: u8 = b'E';
const IDENTITY: u8 = b'U';
const TERMINAL: u8 = b'T';
const READY: u8 = b'R';
const SUCCESSOR: u8 = b'S';
const PROCESS: u8 = b'P';

/// The parent's end and the child's end. Messages keep their boundaries; both close on exec.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Sends one message; `fd` only with [`Message::Terminal`] and [`Message::Successor`].
fn send(
    channel: BorrowedFd<'_>,
    kind: u8,
    body: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let fds = fd.map(|fd| [fd]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [
        IoSlice::new(std::slice::from_ref(&kind)),
        IoSlice::new(body),
    ];
    sendmsg(channel, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Tells why the child gives up. Best effort: there is nobody else to tell.
pub(super) fn send_failure(channel: BorrowedFd<'_>, error: &LaunchError) {
    let mut error = error.clone();
    // JSON may need six bytes for one, and the stage needs room too.
    for text in [&mut error.message, &mut error.stage] {
        text.truncate(text.floor_char_boundary(MESSAGE_MAX / 16));
    }
    let body = serde_json::to_vec(&error).unwrap_or_default();
    let _ = send(channel, FAILED, &body, None);
}

/// Tells who the process runs as.
pub(super) fn send_identity(channel: BorrowedFd<'_>, identity: &Identity) -> Result<(), Errno> {
    let numbers = [identity.uid, identity.gid];
    let numbers = numbers.iter().chain(&identity.groups);
    let body: Vec<u8> = numbers.flat_map(|number| number.to_ne_bytes()).collect();
    let longest = (MESSAGE_MAX - 1).min(body.len()) / 4 * 4;
    send(channel, IDENTITY, &body[..longest], None)
}

/// Hands over the master side of the terminal.
pub(super) fn send_terminal(channel: BorrowedFd<'_>, master: impl AsFd) -> Result<(), Errno> {
    send(channel, TERMINAL, &[], Some(master.as_fd()))
}

/// Hands over the process that a runtime has made.
pub(super) fn send_process(
    channel: BorrowedFd<'_>,
    pid: i32,
    pidfd: impl AsFd,
) -> Result<(), Errno> {
    send(channel, PROCESS, &pid.to_ne_bytes(), Some(pidfd.as_fd()))
}

/// Says that setting up is done.
pub(super) fn send_ready(channel: BorrowedFd<'_>) -> Result<(), Errno> {
    send(channel, READY, &[], None)
}

/// Names the process that goes on.
pub(super) fn send_successor(channel: BorrowedFd<'_>, pidfd: impl AsFd) -> Result<(), Errno> {
    send(channel, SUCCESSOR, &[], Some(pidfd.as_fd()))
}

/// Reads one message if there is one (`AGAIN` if there is none yet); `Ok(None)` is the end of file.
///
/// Whatever the child sends is bounded and checked: it has not run foreign code yet, but checking
/// costs nothing.
pub(super) fn receive(channel: BorrowedFd<'_>) -> Result<Option<Message>, Errno> {
    let mut buffer = vec![0_u8; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let length = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        rustix::io::retry_on_intr(|| recvmsg(channel, &mut parts, &mut control, flags))?.bytes
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let Some((&kind, body)) = buffer[..length].split_first() else {
        return Ok(None);
    };
    let message = match (kind, fds.pop()) {
        (FAILED, _) => serde_json::from_slice(body).ok().map(Message::Failed),
        (IDENTITY, _) => parse_identity(body).map(Message::Identity),
        (TERMINAL, Some(master)) => Some(Message::Terminal(master)),
        (READY, _) => Some(Message::Ready),
        (SUCCESSOR, Some(pidfd)) => Some(Message::Successor(pidfd)),
        (PROCESS, Some(pidfd)) => {
            let pid = body.try_into().ok().map(i32::from_ne_bytes);
            pid.map(|pid| Message::Process(pid, pidfd))
        }
        _ => None,
    };
    message.ok_or(Errno::PROTO).map(Some)
}

fn parse_identity(body: &[u8]) -> Option<Identity> {
    let (numbers, rest) = body.as_chunks::<4>();
    let mut numbers = numbers.iter().map(|bytes| u32::from_ne_bytes(*bytes));
    let (uid, gid) = (numbers.next()?, numbers.next()?);
    rest.is_empty().then(|| Identity {
        uid,
        gid,
        groups: numbers.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent_and_the_end_is_seen() {
        let (parent, child) = pair().expect("socketpair");
        assert_eq!(receive(parent.as_fd()).err(), Some(Errno::AGAIN));
        let identity = Identity {
            uid: 1,
            gid: 2,
            groups: vec![2, 3],
        };
        send_identity(child.as_fd(), &identity).expect("send");
        send_terminal(child.as_fd(), &parent).expect("send");
        let long = LaunchError::invalid("user", "\u{1}".repeat(100_000));
        send_failure(child.as_fd(), &long);
        drop(child);
        let Ok(Some(Message::Identity(received))) = receive(parent.as_fd()) else {
            panic!("no identity");
        };
        assert_eq!(received, identity);
        assert!(matches!(
            receive(parent.as_fd()),
            Ok(Some(Message::Terminal(_)))
        ));
        assert!(matches!(
            receive(parent.as_fd()),
            Ok(Some(Message::Failed(_)))
        ));
        assert!(matches!(receive(parent.as_fd()), Ok(None)));
    }

    #[test]
    fn a_torn_identity_is_refused() {
        assert_eq!(parse_identity(&[0; 7]), None);
        assert_eq!(parse_identity(&[0; 9]), None);
    }
}
