//! Unix sockets of type `SOCK_SEQPACKET`: whole messages, with descriptors beside them.
//!
//! Nothing here blocks and nothing waits: every socket is non-blocking and close-on-exec, and so is
//! every descriptor that arrives. What a message means is not known here.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Descriptors that one message may carry.
pub const FDS_MAX: usize = 4;

/// One message as it arrived.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the caller's buffer that were filled; 0 means that the peer has closed.
    pub len: usize,
    /// Descriptors that came with it, in the order they were sent.
    pub fds: Vec<OwnedFd>,
    /// The message, or its descriptors, did not fit and were cut.
    pub truncated: bool,
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Makes a listening socket at `path`, which must not exist, for its owner alone.
///
/// # Errors
/// What socket(2), bind(2), chmod(2) or listen(2) returned.
pub fn listen(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Before listen(2), so nobody can have connected under the wider mode.
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600))?;
    net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Takes the next connection; `None` when nobody waits.
///
/// # Errors
/// What accept4(2) returned.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        // ECONNABORTED: it went away while it waited, which is the same as never having come.
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Connects to the listening socket at `path`.
///
/// # Errors
/// What socket(2) or connect(2) returned; `WouldBlock` when its queue is full.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The user id and process id of the peer when it connected or began to listen (`SO_PEERCRED`).
///
/// # Errors
/// What getsockopt(2) returned.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<(u32, i32)> {
    let credentials = net::sockopt::socket_peercred(socket)?;
    Ok((
        credentials.uid.as_raw(),
        credentials.pid.as_raw_nonzero().get(),
    ))
}

/// Sends one whole message with its descriptors, or nothing.
///
/// # Errors
/// What sendmsg(2) returned; `WouldBlock` when the peer reads too slowly; `InvalidInput` for more
/// than [`FDS_MAX`] descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    if fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let mut borrowed = [socket; FDS_MAX];
    for (slot, fd) in borrowed.iter_mut().zip(fds) {
        *slot = fd.as_fd();
    }
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed[..fds.len()]));
    }
    net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message into `buffer`.
///
/// # Errors
/// What recvmsg(2) returned; `WouldBlock` when there is none.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(buffer)];
    let message = net::recvmsg(socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    let truncated = message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received {
        len: message.bytes,
        fds,
        truncated,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen(&path, 4).unwrap();
        let client = connect(&path).unwrap();
        let server = accept(listener.as_fd()).unwrap().unwrap();
        assert!(accept(listener.as_fd()).unwrap().is_none());
        assert_eq!(peer(server.as_fd()).unwrap().1, std::process::id() as i32);

        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(client.as_fd(), b"first", &[reader, writer]).unwrap();
        send(client.as_fd(), b"second", &[]).unwrap();
        let mut buffer = [0; 16];
        let mut first = receive(server.as_fd(), &mut buffer).unwrap();
        assert_eq!(
            (&buffer[..first.len], first.fds.len()),
            (b"first".as_slice(), 2)
        );
        File::from(first.fds.remove(1)).write_all(b"x").unwrap();
        let mut text = String::new();
        File::from(first.fds.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "x");
        assert_eq!(receive(server.as_fd(), &mut buffer).unwrap().len, 6);
        let nothing = receive(server.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_message_that_does_not_fit_is_marked_as_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen(&path, 4).unwrap();
        let client = connect(&path).unwrap();
        let server = accept(listener.as_fd()).unwrap().unwrap();
        send(client.as_fd(), &[7; 32], &[]).unwrap();
        assert!(receive(server.as_fd(), &mut [0; 16]).unwrap().truncated);
        drop(client);
        assert_eq!(receive(server.as_fd(), &mut [0; 16]).unwrap().len, 0);
    }
}
