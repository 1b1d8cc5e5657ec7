//! The terminal of a runtime's process: the runtime makes it, and sends the master side through a
//! socket (`--console-socket`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::super::error::{At, LaunchError, stage};
use super::super::spawn::wait_readable;
use super::driver::as_errno;

/// Where a runtime sends the terminal of one process.
pub(super) struct Console {
    listener: UnixListener,
    /// In the working directory: a whole path is longer than a socket's may be (unix(7)).
    pub(super) name: String,
}

impl Console {
    /// Listens at `name` in the working directory.
    pub(super) fn listen(name: String) -> Result<Self, LaunchError> {
        let _ = std::fs::remove_file(&name);
        let listener = UnixListener::bind(&name).map_err(as_errno);
        let listener = listener.at(stage::TERMINAL, || "listen for the terminal")?;
        Ok(Self { listener, name })
    }

    /// Takes the terminal. Whoever sends it need not have been waited for.
    pub(super) fn receive(&self, until: Instant) -> Result<OwnedFd, LaunchError> {
        let what = || "receive the terminal from the runtime";
        let late = || {
            Err(LaunchError::refused(
                stage::TERMINAL,
                what(),
                Errno::TIMEDOUT,
            ))
        };
        if !wait_readable(self.listener.as_fd(), until) {
            return late();
        }
        let (socket, _) = self
            .listener
            .accept()
            .map_err(as_errno)
            .at(stage::TERMINAL, what)?;
        if !wait_readable(socket.as_fd(), until) {
            return late();
        }
        let mut name = [0_u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut name)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(&socket, &mut parts, &mut control, flags).at(stage::TERMINAL, what)?;
        let mut received = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let master = received
            .next()
            .and_then(|mut descriptors| descriptors.next());
        match master {
            Some(master) if rustix::termios::isatty(&master) => Ok(master),
            _ => Err(LaunchError::refused(stage::TERMINAL, what(), Errno::NOTTY)),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.name);
    }
}
