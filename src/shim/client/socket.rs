//! The socket to the shim, as futures.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::{async_fd, seqpacket};

/// A connected socket; several may send and one receives.
#[derive(Debug)]
pub(super) struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    pub(super) fn connect(path: &Path) -> io::Result<Socket> {
        Ok(Socket(async_fd::register(seqpacket::connect(path)?)?))
    }

    /// Sends one message, when there is room for it.
    pub(super) async fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let send = |socket: &OwnedFd| seqpacket::send(socket.as_fd(), bytes, fds);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// The next message. The end of the connection is an error, and so is a message that was cut.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut receive = |socket: &OwnedFd| seqpacket::receive(socket.as_fd(), buffer);
        let received = self.0.async_io(Interest::READABLE, &mut receive).await?;
        if received.len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received.truncated {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((received.len, received.fds))
    }
}

/// A file in memory that nobody can change any more, at its beginning.
pub(super) fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("exec-plan", flags)?);
    file.write_all(bytes)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}
