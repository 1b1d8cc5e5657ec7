//! A descriptor that is in an epoll as long as it is held and wants to be told of something.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::epoll::{self, EventData, EventFlags};

/// Taken out of its epoll when it is dropped. Closing alone would not do that while another process
/// has a duplicate, as the daemon has of every terminal, and its events would come for ever.
#[derive(Debug)]
pub(super) struct Polled {
    fd: OwnedFd,
    poll: Rc<OwnedFd>,
    token: u64,
    /// `None` while it is not in there.
    flags: Option<EventFlags>,
}

impl Polled {
    /// Puts `fd` into `poll`, to be told under `token` when it can be read.
    pub(super) fn new(poll: &Rc<OwnedFd>, fd: OwnedFd, token: u64) -> io::Result<Polled> {
        let flags = EventFlags::IN;
        epoll::add(poll, &fd, EventData::new_u64(token), flags)?;
        Ok(Polled {
            fd,
            poll: Rc::clone(poll),
            token,
            flags: Some(flags),
        })
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    /// Changes what is told.
    pub(super) fn watch_for(&mut self, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(self.token);
        match self.flags {
            Some(now) if now == flags => {}
            Some(_) => epoll::modify(&self.poll, &self.fd, data, flags)?,
            None => epoll::add(&self.poll, &self.fd, data, flags)?,
        }
        self.flags = Some(flags);
        Ok(())
    }

    /// Leaves the epoll: nothing is told, not even an end, and nothing is paid for it.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        if self.flags.is_some() {
            epoll::delete(&self.poll, &self.fd)?;
            self.flags = None;
        }
        Ok(())
    }

    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsFd for Polled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        // Fails only when it is not in there, which is what is wanted.
        let _ = epoll::delete(&self.poll, &self.fd);
    }
}
