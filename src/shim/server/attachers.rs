//! Sessions that listen to what a process writes, beside its log.
//!
//! The log comes first and never waits. A session gets the same bytes through a pipe; while that is
//! full, the process's stream is not read, so that the process waits as it would for a slow reader
//! of its own, and no byte is lost. A session that takes nothing for [`STALL`] is let go: it
//! must not hold a process for ever.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::polled::Polled;
use crate::shim::log::line::StreamName;

/// How long a session may take nothing.
const STALL: Duration = Duration::from_secs(10);
/// Pipes to sessions of one process.
pub(super) const PIPES_MAX: usize = 32;

/// One stream on its way to one session.
#[derive(Debug)]
struct Attacher {
    stream: StreamName,
    pipe: Polled,
    /// What did not fit into the pipe: a read's worth, or what a process left when it died.
    backlog: Vec<u8>,
    /// When the session last took something.
    moved_at: Instant,
    /// Nothing follows the backlog.
    last: bool,
}

/// The sessions of a process.
#[derive(Debug, Default)]
pub(super) struct Attachers {
    all: Vec<Attacher>,
    /// Tokens of those that are gone.
    gone: Vec<u64>,
}

impl Attachers {
    /// Sends `stream` into `pipe` as well, from now on.
    pub(super) fn add(&mut self, stream: StreamName, mut pipe: Polled) -> std::io::Result<()> {
        // Told of its end only, as long as everything fits.
        pipe.watch_for(EventFlags::empty())?;
        self.all.push(Attacher {
            stream,
            pipe,
            backlog: Vec::new(),
            moved_at: Instant::now(),
            last: false,
        });
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = u64> {
        let open = self.all.iter().map(|attacher| attacher.pipe.token());
        open.chain(self.gone.iter().copied())
    }

    /// Hands `bytes` to everybody who listens to the stream.
    pub(super) fn offer(&mut self, stream: StreamName, bytes: &[u8], now: Instant) {
        if self.all.is_empty() {
            return;
        }
        for attacher in &mut self.all {
            if attacher.stream != stream || attacher.last {
                continue;
            }
            if attacher.backlog.is_empty() {
                attacher.moved_at = now;
            }
            attacher.backlog.extend_from_slice(bytes);
        }
        self.settle(now);
    }

    /// Whether somebody has yet to take what was read of this stream.
    pub(super) fn holds(&self, stream: StreamName) -> bool {
        let mut all = self.all.iter();
        all.any(|attacher| attacher.stream == stream && !attacher.backlog.is_empty())
    }

    /// Something is new about the pipe with this token: there is room in it, or nobody reads it.
    pub(super) fn pipe_is_ready(&mut self, token: u64, now: Instant) {
        let closed =
            |attacher: &Attacher| attacher.pipe.token() == token && attacher.backlog.is_empty();
        self.remove(closed);
        self.settle(now);
    }

    /// Nothing follows on this stream.
    pub(super) fn end(&mut self, stream: StreamName, now: Instant) {
        for attacher in &mut self.all {
            attacher.last |= attacher.stream == stream;
        }
        self.settle(now);
    }

    /// Lets those go that have taken nothing for too long; says when to look again.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        self.remove(|attacher| {
            !attacher.backlog.is_empty() && now.duration_since(attacher.moved_at) >= STALL
        });
        let waiting = self.all.iter().filter(|it| !it.backlog.is_empty());
        waiting.map(|attacher| attacher.moved_at + STALL).min()
    }

    /// The tokens of those that are gone since.
    pub(super) fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }

    /// Writes what fits, and drops who is done or has gone.
    fn settle(&mut self, now: Instant) {
        for attacher in &mut self.all {
            if attacher.flush(now).is_err() {
                attacher.last = true;
                attacher.backlog.clear();
            }
        }
        self.remove(|attacher| attacher.last && attacher.backlog.is_empty());
    }

    fn remove(&mut self, is_over: impl Fn(&Attacher) -> bool) {
        let gone = &mut self.gone;
        self.all.retain(|attacher| {
            let over = is_over(attacher);
            if over {
                gone.push(attacher.pipe.token());
            }
            !over
        });
    }
}

impl Attacher {
    fn flush(&mut self, now: Instant) -> Result<(), Errno> {
        let mut done = 0;
        while done < self.backlog.len() {
            match rustix::io::write(&self.pipe, &self.backlog[done..]) {
                Ok(length) => {
                    done += length;
                    self.moved_at = now;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        self.backlog.drain(..done);
        let wanted = if self.backlog.is_empty() {
            // A session that listens to a silent process takes no memory.
            self.backlog = Vec::new();
            EventFlags::empty()
        } else {
            EventFlags::OUT
        };
        self.pipe.watch_for(wanted).map_err(|error| {
            let raw = error.raw_os_error();
            raw.map_or(Errno::IO, Errno::from_raw_os_error)
        })
    }
}

/// Makes a session's pipe ready to be written by a loop that never waits.
pub(super) fn prepare(pipe: &OwnedFd) -> Result<(), Errno> {
    rustix::io::ioctl_fionbio(pipe, true)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use rustix::event::epoll;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::shim::stdio::pipe_capacity;

    fn attached(attachers: &mut Attachers, token: u64) -> OwnedFd {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        prepare(&writer).unwrap();
        let poll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let writer = Polled::new(&poll, writer, token).unwrap();
        attachers.add(StreamName::Stdout, writer).unwrap();
        reader
    }

    fn read(pipe: &OwnedFd, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        let length = rustix::io::read(pipe, &mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    #[test]
    fn everybody_gets_every_byte_and_the_slowest_sets_the_pace() {
        let mut attachers = Attachers::default();
        let (quick, slow) = (attached(&mut attachers, 1), attached(&mut attachers, 2));
        let now = Instant::now();
        let capacity = pipe_capacity(&slow);
        let first = vec![b'a'; capacity];
        attachers.offer(StreamName::Stdout, &first, now);
        assert!(!attachers.holds(StreamName::Stdout));
        assert_eq!(read(&quick, capacity), first);
        attachers.offer(StreamName::Stdout, b"more", now);
        attachers.offer(StreamName::Stderr, b"another stream", now);
        assert!(attachers.holds(StreamName::Stdout) && !attachers.holds(StreamName::Stderr));
        assert_eq!(read(&quick, 64), b"more");
        assert_eq!(read(&slow, capacity), first);
        attachers.pipe_is_ready(2, now);
        assert!(!attachers.holds(StreamName::Stdout));
        assert_eq!(read(&slow, 64), b"more");
    }

    #[test]
    fn whoever_takes_nothing_for_too_long_is_let_go() {
        let mut attachers = Attachers::default();
        let slow = attached(&mut attachers, 1);
        let begin = Instant::now();
        let much = vec![b'a'; 2 * pipe_capacity(&slow)];
        attachers.offer(StreamName::Stdout, &much, begin);
        assert_eq!(attachers.expire(begin), Some(begin + STALL));
        let just_before = begin + STALL - Duration::from_millis(1);
        assert!(attachers.expire(just_before).is_some());
        assert_eq!(attachers.expire(begin + STALL), None);
        assert!(!attachers.holds(StreamName::Stdout));
        assert_eq!(attachers.take_gone(), [1]);
    }

    #[test]
    fn the_end_comes_after_the_last_byte() {
        let mut attachers = Attachers::default();
        let pipe = attached(&mut attachers, 1);
        let now = Instant::now();
        let capacity = pipe_capacity(&pipe);
        attachers.offer(StreamName::Stdout, &vec![b'a'; capacity], now);
        attachers.offer(StreamName::Stdout, b"last", now);
        attachers.end(StreamName::Stdout, now);
        assert_eq!(attachers.len(), 1);
        assert_eq!(read(&pipe, capacity).len(), capacity);
        attachers.pipe_is_ready(1, now);
        assert_eq!(attachers.len(), 0);
        assert_eq!(read(&pipe, 64), b"last");
        assert_eq!(read(&pipe, 64), b"");
    }

    #[test]
    fn a_session_that_has_gone_holds_nobody() {
        let mut attachers = Attachers::default();
        drop(attached(&mut attachers, 1));
        attachers.offer(StreamName::Stdout, b"to nobody", Instant::now());
        assert_eq!((attachers.len(), attachers.take_gone()), (0, vec![1]));
        drop(attached(&mut attachers, 2));
        // Its pipe is ready although there is nothing for it: nobody reads it.
        attachers.pipe_is_ready(2, Instant::now());
        assert_eq!(attachers.len(), 0);
    }
}
