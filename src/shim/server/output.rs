//! What one process writes, on its way from a FIFO or terminal into its log.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::attachers::Attachers;
use super::pace::{Next, Pace, REST};
use super::polled::Polled;
use crate::shim::log::file::{LogFile, Loss};
use crate::shim::log::line::{BATCH_MAX_BYTES, LineCutter, Prefix, StreamName};
use crate::shim::log::rate::Rate;
use crate::shim::log::timestamp::{LogClock, now_ns};
use crate::shim::stdio::pipe_capacity;

/// One read takes no more than this.
const READ_BYTES: usize = 128 * 1024;
/// One stream is read no further than this before the others have their turn.
const TURN_BYTES: usize = 128 * 1024;
/// What a terminal can hold back; the kernel does not say.
const TERMINAL_BYTES: usize = 128 * 1024;

/// The buffers that all streams share: one is pumped at a time.
#[derive(Debug)]
pub(super) struct Scratch {
    input: Box<[u8]>,
    entries: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        let input = vec![0; READ_BYTES].into_boxed_slice();
        Scratch {
            input,
            entries: Vec::with_capacity(BATCH_MAX_BYTES),
        }
    }
}

/// One stream that is being read.
#[derive(Debug)]
struct Source {
    fd: Polled,
    cutter: LineCutter,
    pace: Pace,
}

/// The streams of one process and the log they go to.
#[derive(Debug, Default)]
pub(super) struct Output {
    log: Option<LogFile>,
    clock: LogClock,
    stdout: Option<Source>,
    stderr: Option<Source>,
    /// Whether `stdout` is a terminal's master side.
    terminal: bool,
    stdin_keeper: Option<OwnedFd>,
    attachers: Attachers,
    /// How fast it may write, if that is bounded, and until when it rests for it.
    rate: Option<Rate>,
    rests_until: Option<Instant>,
    /// The loss that the daemon has been told of.
    told: Loss,
    /// Of streams that are or were attached.
    tokens: Vec<u64>,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Bytes read.
    pub(super) moved: usize,
    /// The stream has ended and been closed; otherwise it may have more, now or later.
    pub(super) ended: bool,
    /// When it is to have its next turn, unless epoll tells.
    pub(super) again: Option<Instant>,
}

/// How far a read has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// There may be more.
    Limit,
    /// There is nothing more now, or nothing that may be read now.
    Last,
    End,
}

impl Output {
    /// Nothing open yet, going to `log`; without one, what is read is thrown away.
    pub(super) fn new(log: Option<LogFile>, rate: Option<Rate>) -> Output {
        let last = log.as_ref().map_or(0, LogFile::last_entry_ns);
        Output {
            log,
            clock: LogClock::not_before(last),
            rate,
            ..Output::default()
        }
    }

    /// Reads this stream from now on; `fd` is non-blocking.
    pub(super) fn attach(&mut self, name: StreamName, fd: Polled) {
        let capacity = pipe_capacity(&fd);
        self.attach_with(name, fd, capacity);
    }

    fn attach_with(&mut self, name: StreamName, fd: Polled, capacity: usize) {
        self.tokens.push(fd.token());
        let pace = Pace::new(capacity);
        *self.slot(name) = Some(Source {
            fd,
            cutter: LineCutter::default(),
            pace,
        });
    }

    /// Reads a terminal from now on; `master` is non-blocking.
    pub(super) fn attach_terminal(&mut self, master: Polled) {
        self.attach_with(StreamName::Stdout, master, TERMINAL_BYTES);
        self.terminal = true;
    }

    pub(super) fn hold_stdin(&mut self, keeper: Option<OwnedFd>) {
        self.stdin_keeper = keeper;
    }

    /// What is open: a terminal's master side, or the reading ends of FIFOs.
    pub(super) fn streams(&self) -> impl Iterator<Item = &Polled> {
        [&self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .map(|source| &source.fd)
    }

    /// Whether its one stream is a terminal, and open.
    pub(super) fn has_terminal(&self) -> bool {
        self.terminal && self.stdout.is_some()
    }

    /// The tokens of all streams, of closed ones as well.
    pub(super) fn tokens(&self) -> Vec<u64> {
        let own = self.tokens.iter().copied();
        own.chain(self.attachers.tokens()).collect()
    }

    /// Sessions that listen.
    pub(super) fn attachers_mut(&mut self) -> &mut Attachers {
        &mut self.attachers
    }

    /// Something is new about a session's pipe.
    pub(super) fn attacher_is_ready(&mut self, token: u64) {
        self.attachers.pipe_is_ready(token, Instant::now());
        self.resume();
    }

    /// Lets sessions go that take nothing, and ends a rest that is over; says when to look again.
    pub(super) fn look_again(&mut self, now: Instant) -> Option<Instant> {
        let expires = self.attachers.expire(now);
        self.rests_until = self.rests_until.filter(|until| *until > now);
        self.resume();
        expires.into_iter().chain(self.rests_until).min()
    }

    /// Reads on what no session holds any more, unless it rests.
    fn resume(&mut self) {
        if self.rests_until.is_some() {
            return;
        }
        for name in [StreamName::Stdout, StreamName::Stderr] {
            let held = self.attachers.holds(name);
            if let (false, Some(source)) = (held, self.slot(name))
                && !source.pace.rests()
            {
                // Fails only where the kernel lacks memory; it is tried again with the next look.
                let _ = source.fd.watch_for(EventFlags::IN);
            }
        }
    }

    pub(super) fn log_mut(&mut self) -> Option<&mut LogFile> {
        self.log.as_mut()
    }

    pub(super) fn loss(&self) -> Loss {
        self.log.as_ref().map(LogFile::loss).unwrap_or_default()
    }

    /// Whether something has been lost of which the daemon has not been told.
    pub(super) fn has_untold_loss(&self) -> bool {
        self.loss() != self.told
    }

    /// The daemon is another one, and has been told nothing.
    pub(super) fn forget_what_was_told(&mut self) {
        self.told = Loss::default();
    }

    /// What the daemon is told now.
    pub(super) fn tell_loss(&mut self) -> (Loss, String) {
        self.told = self.loss();
        let failure = self.log.as_ref().and_then(LogFile::failure);
        (
            self.told,
            failure.map(ToString::to_string).unwrap_or_default(),
        )
    }

    fn slot(&mut self, name: StreamName) -> &mut Option<Source> {
        match name {
            StreamName::Stdout => &mut self.stdout,
            StreamName::Stderr => &mut self.stderr,
        }
    }

    /// Moves at most one turn's bytes from the stream to the log, and to sessions; none while a
    /// session has yet to take the last ones, or the process has written too fast.
    pub(super) fn pump(&mut self, name: StreamName, scratch: &mut Scratch) -> Turn {
        let room = match &mut self.rate {
            Some(rate) => rate.room(Instant::now()),
            None => Ok(u64::MAX),
        };
        self.rests_until = room.err();
        let room = room.map_or(0, |room| usize::try_from(room).unwrap_or(usize::MAX));
        if room == 0 || self.attachers.holds(name) {
            if let Some(source) = self.slot(name) {
                // Once, not for ever: an end would be told again and again.
                let _ = source.fd.watch_for(EventFlags::ONESHOT);
                source.pace.is_told_again();
            }
            return Turn {
                moved: 0,
                ended: false,
                again: None,
            };
        }
        let (moved, end) = self.transfer(name, scratch, TURN_BYTES.min(room), true);
        if let Some(rate) = &mut self.rate {
            rate.take(moved);
        }
        Turn {
            moved,
            ended: end == Reached::End,
            again: self.next_turn(name, moved, end),
        }
    }

    /// When a stream that was read is to be read again, unless epoll tells.
    fn next_turn(&mut self, name: StreamName, moved: usize, end: Reached) -> Option<Instant> {
        let source = self.slot(name).as_mut()?;
        let drained = end != Reached::Limit;
        match source.pace.after(Instant::now(), moved, drained) {
            Next::At(at) => {
                // Where it fails, it is told as well, which costs time and nothing else.
                let _ = source.fd.leave();
                Some(at)
            }
            Next::WhenTold => match source.fd.watch_for(EventFlags::IN) {
                Ok(()) => None,
                // The kernel lacks memory for it.
                Err(_) => Some(Instant::now() + REST),
            },
        }
    }

    /// The process is dead: moves what it can have left behind, and writes the unterminated rest.
    /// What others that still hold the stream write goes on being pumped as before.
    pub(super) fn drain(&mut self, scratch: &mut Scratch) {
        for name in [StreamName::Stdout, StreamName::Stderr] {
            let terminal = self.terminal;
            let Some(source) = self.slot(name) else {
                continue;
            };
            let limit = if terminal {
                TERMINAL_BYTES
            } else {
                pipe_capacity(&source.fd)
            };
            if self.transfer(name, scratch, limit, false).1 != Reached::End {
                self.finish(name, scratch);
            }
            // What others write from now on is logged, and is not the process's own.
            self.attachers.end(name, Instant::now());
            self.resume();
        }
    }

    /// Reads until `limit`, the end, or nothing more; with `once`, also no further than a read that
    /// did not fill the buffer, which saves the one that would find nothing.
    fn transfer(
        &mut self,
        name: StreamName,
        scratch: &mut Scratch,
        limit: usize,
        once: bool,
    ) -> (usize, Reached) {
        let mut moved = 0;
        while moved < limit {
            let Some(source) = self.slot(name) else {
                return (moved, Reached::End);
            };
            let wanted = scratch.input.len().min(limit - moved);
            match rustix::io::read(&source.fd, &mut scratch.input[..wanted]) {
                // EIO: nobody has the terminal open any more.
                Ok(0) | Err(Errno::IO) => {
                    self.finish(name, scratch);
                    self.attachers.end(name, Instant::now());
                    *self.slot(name) = None;
                    return (moved, Reached::End);
                }
                Ok(length) => {
                    moved += length;
                    self.write(name, scratch, length);
                    self.attachers
                        .offer(name, &scratch.input[..length], Instant::now());
                    let held = self.attachers.holds(name);
                    // A terminal never fills the buffer.
                    let short = length < wanted && !self.terminal;
                    if once && (held || short) {
                        return (moved, Reached::Last);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return (moved, Reached::Last),
            }
        }
        (moved, Reached::Limit)
    }

    fn write(&mut self, name: StreamName, scratch: &mut Scratch, length: usize) {
        let prefix = Prefix::new(self.clock.stamp(now_ns()), name);
        let source = match name {
            StreamName::Stdout => &mut self.stdout,
            StreamName::Stderr => &mut self.stderr,
        };
        let (Some(log), Some(source)) = (&mut self.log, source) else {
            return;
        };
        let mut done = 0;
        while done < length {
            let rest = &scratch.input[done..length];
            done += source.cutter.cut(rest, &prefix, &mut scratch.entries);
            log.append(&scratch.entries);
            scratch.entries.clear();
        }
    }

    fn finish(&mut self, name: StreamName, scratch: &mut Scratch) {
        let prefix = Prefix::new(self.clock.stamp(now_ns()), name);
        if let Some(source) = self.slot(name) {
            source.cutter.finish(&prefix, &mut scratch.entries);
        }
        if let Some(log) = &mut self.log {
            log.append(&scratch.entries);
        }
        scratch.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::epoll;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::fs;
    use std::rc::Rc;

    use super::*;

    fn output(log: Option<&std::path::Path>) -> (Output, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let poll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let reader = Polled::new(&poll, reader, 1).unwrap();
        let mut output = Output::new(log.map(|path| LogFile::open(path, None).unwrap()), None);
        output.attach(StreamName::Stdout, reader);
        (output, writer)
    }

    #[test]
    fn a_drain_ends_although_somebody_goes_on_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut output, writer) = output(Some(&path));
        let mut scratch = Scratch::default();
        rustix::io::write(&writer, b"half").unwrap();
        output.drain(&mut scratch);
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .ends_with(" stdout P half\n")
        );
        rustix::io::write(&writer, b" line\n").unwrap();
        let turn = output.pump(StreamName::Stdout, &mut scratch);
        assert_eq!((turn.moved, turn.ended), (6, false));
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .ends_with(" stdout F  line\n")
        );
        drop(writer);
        assert!(output.pump(StreamName::Stdout, &mut scratch).ended);
        assert_eq!(output.streams().count(), 0);
    }

    #[test]
    fn one_turn_is_bounded() {
        let (mut output, writer) = output(None);
        rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
        let written = rustix::io::write(&writer, &vec![b'x'; 1 << 20]).unwrap();
        assert!(written > 2 * TURN_BYTES);
        let turn = output.pump(StreamName::Stdout, &mut Scratch::default());
        assert_eq!((turn.moved, turn.ended), (TURN_BYTES, false));
        assert!(turn.again.is_some(), "it has more, and is not told of");
        let mut left = vec![0; 1 << 20];
        let left = rustix::io::read(output.streams().next().unwrap(), &mut left).unwrap();
        assert_eq!(left, written - TURN_BYTES);
    }

    #[test]
    fn who_writes_too_fast_waits_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut output, writer) = output(Some(&path));
        let mut scratch = Scratch::default();
        output.rate = Some(Rate::new(8192, Instant::now()));
        rustix::io::write(&writer, &[b'x'; 20_000]).unwrap();
        let turn = output.pump(StreamName::Stdout, &mut scratch);
        assert_eq!(turn.moved, 8192);
        let turn = output.pump(StreamName::Stdout, &mut scratch);
        assert_eq!((turn.moved, turn.ended), (0, false));
        let until = output.look_again(Instant::now()).unwrap();
        assert!(until > Instant::now());
        assert_eq!(output.look_again(until), None);
        // Its end is not waited for: what it has left is read at once.
        drop(writer);
        output.drain(&mut scratch);
        let log = fs::read_to_string(&path).unwrap();
        assert_eq!(log.matches('x').count(), 20_000);
    }

    #[test]
    fn a_terminal_ends_when_nobody_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let pty = nix::pty::openpty(None, None).unwrap();
        rustix::io::ioctl_fionbio(&pty.master, true).unwrap();
        let poll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let daemons = pty.master.try_clone().unwrap();
        let mut output = Output::new(Some(LogFile::open(&path, None).unwrap()), None);
        output.attach_terminal(Polled::new(&poll, pty.master, 1).unwrap());
        rustix::io::write(&pty.slave, b"prompt\nhalf").unwrap();
        let mut scratch = Scratch::default();
        assert!(output.has_terminal() && !output.pump(StreamName::Stdout, &mut scratch).ended);
        drop(pty.slave);
        assert!(output.pump(StreamName::Stdout, &mut scratch).ended && !output.has_terminal());
        let log = fs::read_to_string(&path).unwrap();
        assert!(log.contains(" stdout F prompt\r\n") && log.ends_with(" stdout P half\n"));
        // The daemon still has the terminal: it is out of our epoll all the same.
        let mut events = Vec::with_capacity(1);
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        assert_eq!(epoll::wait(&poll, buffer, Some(&now)).unwrap(), 0);
        drop(daemons);
    }
}
