//! A pipe, a FIFO or a terminal of a process in a container, read and written without blocking a
//! thread.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::async_fd;

/// One descriptor, non-blocking.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Registers `fd` with the runtime and makes it non-blocking, which everybody sees who has a
    /// duplicate of it.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        async_fd::register(fd).map(Self)
    }

    /// What reads what a process writes, and the end for that process, which blocks as it expects.
    pub(crate) fn from_process() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Self::new(reader)?, writer))
    }

    /// What writes what a process reads, and the end for that process.
    pub(crate) fn to_process() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Self::new(writer)?, reader))
    }

    /// The same descriptor once more.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Self::new(self.fd().try_clone()?)
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Reads what is there, and waits for it; 0 is the end. A terminal that nobody has open any
    /// more is at its end.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &OwnedFd| rustix::io::read(fd, &mut *buffer).map_err(io::Error::from);
        let mut read = read;
        end_of_terminal(self.0.async_io(Interest::READABLE, &mut read).await)
    }

    /// Reads what is there without waiting; `None`: nothing is, for now. Past tokio, which believes
    /// that nothing is there until its own loop has heard of it.
    pub(crate) fn read_ready(&self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        loop {
            match rustix::io::read(self.fd(), &mut *buffer) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                read => return Some(end_of_terminal(read.map_err(io::Error::from))),
            }
        }
    }

    /// Writes all of it, and waits for room.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| rustix::io::write(fd, bytes).map_err(io::Error::from);
            let written = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Bytes that are there to be read.
    pub(crate) fn waiting(&self) -> usize {
        let waiting = rustix::io::ioctl_fionread(self.fd()).unwrap_or(0);
        usize::try_from(waiting).unwrap_or(usize::MAX)
    }
}

fn end_of_terminal(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_carries_bytes_and_their_end() {
        let (reader, writer) = Descriptor::from_process().unwrap();
        let writer = Descriptor::new(writer).unwrap();
        let bytes = vec![7; 1 << 20];
        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        assert!(reader.read_ready(&mut buffer).is_none());
        let write = async {
            writer.write_all(&bytes).await.unwrap();
            drop(writer);
        };
        let all = async {
            loop {
                match reader.read(&mut buffer).await.unwrap() {
                    0 => return,
                    length => read.extend_from_slice(&buffer[..length]),
                }
            }
        };
        tokio::join!(write, all);
        assert_eq!(read, bytes);
    }

    #[tokio::test]
    async fn a_terminal_that_nobody_has_open_is_at_its_end() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let master = Descriptor::new(pty.master).unwrap();
        rustix::io::write(&pty.slave, b"bye").unwrap();
        drop(pty.slave);
        let mut buffer = [0; 16];
        assert_eq!(master.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(master.read(&mut buffer).await.unwrap(), 0);
    }
}
