//! The shim's own side: one thread, one loop, no waiting but in epoll.
//!
//! Two epolls, one inside the other: the outer one has what must be prompt (signals, the daemon,
//! ends of adopted processes), the inner one every container's output. A round serves all of the
//! outer one and a bounded piece of the inner one, so no container can delay an exit or a request
//! by more than a millisecond or two. Nor can a launch: its child sets itself up while the loop
//! goes on, however long that takes.
//!
//! ```text
//!              ┌────────────── a daemon is connected ◄──────┐
//! started ─────┤                    │ it goes away          │ another comes
//!              │                    ▼                       │
//!              └─► nobody connected, something held ────────┘
//!                       │ nothing runs, every exit acknowledged
//!                       ▼
//!                     ends, and removes its socket
//! ```
//!
//! A malformed message closes its connection. Nothing that a peer or a container does ends the
//! shim.

mod adopt;
mod attachers;
mod connection;
mod exits;
mod launches;
mod losses;
mod orphans;
mod output;
mod pace;
mod polled;
mod process;
mod requests;
mod setup;
mod streams;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use self::connection::Connection;
use self::launches::{Launch, Requester};
use self::output::Scratch;
use self::polled::Polled;
use self::process::Process;
use self::requests::Outcome;
pub use self::setup::READY;
use crate::runtime::launch::LAUNCH_TIMEOUT;
use crate::runtime::protect::reexec_read_only;
use crate::shim::journal::{Journal, JournalError};
use crate::shim::log::line::StreamName;
use crate::shim::protocol::{
    EVENT_WINDOW, FromShim, MESSAGE_MAX_BYTES, ProcessId, ToShim, VERSION, decode,
};
use crate::sys::seqpacket;

/// A shim to which no daemon comes ends after this.
const FIRST_DAEMON_WAIT: Duration = Duration::from_secs(30);
/// How often a reaped-by-others process is asked again how it ended.
const END_POLL: Duration = Duration::from_millis(10);
const EVENTS_PER_ROUND: usize = 32;
const REQUESTS_PER_ROUND: usize = 16;
/// All that a shim ever writes to its own log.
const NOTES_MAX: u32 = 4096;

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const OUTPUTS: u64 = 2;
const FIRST_TOKEN: u64 = 16;

/// Why there is no shim.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// A step of becoming one failed.
    #[error("{doing} {path}")]
    Call {
        /// The step.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The exit journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The loop cannot go on.
    #[error("wait for events")]
    Poll(#[source] io::Error),
}

/// Becomes the node's shim and returns when it is no longer needed. The process that calls this
/// forks and exits: it must have no other threads.
///
/// # Errors
/// [`ShimError`]: it could not become one, another one lives, or epoll failed.
pub fn run(state_dir: &Path) -> Result<(), ShimError> {
    run_with(state_dir, LAUNCH_TIMEOUT)
}

/// [`run`] with another bound on launches.
fn run_with(state_dir: &Path, launch_bound: Duration) -> Result<(), ShimError> {
    // Returns only in a process that runs from a file nobody can write, or where that cannot be.
    let read_only = reexec_read_only();
    let ready = setup::become_shim(state_dir)?;
    let socket_path = ready.socket_path;
    let _held_until_the_end = ready.lock;
    let mut shim = Shim::new(ready.listener, ready.signals, ready.journal, ready.capacity)?;
    shim.launch_bound = launch_bound;
    if let Err(errno) = read_only {
        shim.note(&format!("run from a read-only file: {errno}"));
    }
    shim.serve()?;
    // A daemon that connects between the last look and this finds its connection closed, and starts
    // another shim.
    let _ = std::fs::remove_file(&socket_path);
    Ok(())
}

/// Whose event it is.
#[derive(Debug)]
enum Watched {
    /// The end of a process that is not our child.
    AdoptedEnd(ProcessId),
    /// A launch that is under way.
    Launch(ProcessId),
    /// Output of a process.
    Output(ProcessId, StreamName),
    /// The pipe of a session that listens to a process.
    Attacher(ProcessId),
}

/// Everything the shim knows.
#[derive(Debug)]
struct Shim {
    poll: Rc<OwnedFd>,
    outputs_poll: Rc<OwnedFd>,
    listener: OwnedFd,
    signals: SignalFd,
    journal: Journal,
    /// Processes that may be held at once, for each takes descriptors.
    capacity: usize,
    next_token: u64,
    watched: HashMap<u64, Watched>,
    processes: BTreeMap<ProcessId, Process>,
    /// On their way to being held.
    launches: BTreeMap<ProcessId, Launch>,
    launch_bound: Duration,
    /// Our children that have not been reaped.
    children: HashMap<i32, ProcessId>,
    /// Adopted processes that are dead and not reaped by their parent, with the time to give up.
    awaited_ends: Vec<(ProcessId, Instant)>,
    /// More children may be dead than one round reaps.
    reap_again: bool,
    daemon: Option<Connection>,
    /// Connected, and has not said hello.
    newcomer: Option<Connection>,
    /// Until when the first daemon may come; `None` once one has, or the time is over.
    first_daemon_by: Option<Instant>,
    asked_to_end: bool,
    /// Streams that are read by the clock, and when.
    resting: BTreeSet<(Instant, u64)>,
    /// Processes that are held back, by a session that has yet to take something or by their rate,
    /// and until when.
    held: HashMap<ProcessId, Instant>,
    /// Processes that have lost log lines of which the daemon is to be told, and until when it is
    /// told of none that run.
    losses: BTreeSet<ProcessId>,
    losses_rest_until: Instant,
    /// Commands whose daemon is gone, and when they are killed.
    orphans: HashMap<ProcessId, Instant>,
    /// Where the kernel counts what it kills beside a process that runs, by process.
    oom_counters: HashMap<ProcessId, PathBuf>,
    scratch: Scratch,
    message: Box<[u8]>,
    notes: u32,
}

impl Shim {
    fn new(
        listener: OwnedFd,
        signals: SignalFd,
        journal: Journal,
        capacity: usize,
    ) -> Result<Shim, ShimError> {
        let create = || {
            epoll::create(CreateFlags::CLOEXEC)
                .map(Rc::new)
                .map_err(poll_error)
        };
        let (poll, outputs_poll) = (create()?, create()?);
        let watch = |fd: &dyn AsFd, token| {
            epoll::add(&poll, fd.as_fd(), EventData::new_u64(token), EventFlags::IN)
                .map_err(poll_error)
        };
        watch(&listener, LISTENER)?;
        watch(&signals, SIGNALS)?;
        watch(&outputs_poll, OUTPUTS)?;
        Ok(Shim {
            poll,
            outputs_poll,
            listener,
            signals,
            journal,
            capacity,
            next_token: FIRST_TOKEN,
            watched: HashMap::new(),
            processes: BTreeMap::new(),
            launches: BTreeMap::new(),
            launch_bound: LAUNCH_TIMEOUT,
            children: HashMap::new(),
            awaited_ends: Vec::new(),
            reap_again: false,
            daemon: None,
            newcomer: None,
            first_daemon_by: Some(Instant::now() + FIRST_DAEMON_WAIT),
            asked_to_end: false,
            resting: BTreeSet::new(),
            held: HashMap::new(),
            losses: BTreeSet::new(),
            losses_rest_until: Instant::now(),
            orphans: HashMap::new(),
            oom_counters: HashMap::new(),
            scratch: Scratch::default(),
            message: vec![0; MESSAGE_MAX_BYTES].into_boxed_slice(),
            notes: 0,
        })
    }

    fn serve(&mut self) -> Result<(), ShimError> {
        let mut events = Vec::with_capacity(EVENTS_PER_ROUND);
        loop {
            self.wait(&mut events)?;
            let mut outputs = false;
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    SIGNALS => self.take_signals(),
                    OUTPUTS => outputs = true,
                    token => self.control_event(token),
                }
            }
            if self.reap_again {
                self.reap_children();
            }
            self.check_awaited_ends();
            self.check_launches();
            self.check_held();
            self.check_orphans();
            let due = self.outputs_due().is_some_and(|at| at <= Instant::now());
            if outputs || due {
                self.pump_outputs(outputs)?;
            }
            self.tell_daemon();
            if self.is_done() {
                return Ok(());
            }
        }
    }

    fn wait(&mut self, events: &mut Vec<Event>) -> Result<(), ShimError> {
        let now = Instant::now();
        let poll_ends = (!self.awaited_ends.is_empty()).then(|| now + END_POLL);
        let at = [
            self.outputs_due(),
            poll_ends,
            self.launches.values().map(Launch::until).min(),
            self.held.values().min().copied(),
            self.first_daemon_by,
            self.untold_losses_until(),
            self.orphans_until(),
            self.reap_again.then_some(now),
        ];
        let timeout = at
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now));
        wait_on(&self.poll, events, timeout)
    }

    fn is_done(&mut self) -> bool {
        if self.daemon.is_some() && !self.asked_to_end {
            return false;
        }
        // Passed, it must not wake the loop again: whatever is still held may be held for days.
        self.first_daemon_by = self.first_daemon_by.filter(|by| Instant::now() < *by);
        let holds = self.processes.values().any(Process::is_running);
        let early = self.first_daemon_by.is_some();
        if holds || (!self.asked_to_end && (early || !self.journal.is_settled())) {
            return false;
        }
        self.accept();
        self.newcomer.is_none() || self.asked_to_end
    }

    fn runs_something(&self) -> bool {
        !self.launches.is_empty() || self.processes.values().any(Process::is_running)
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match i32::try_from(signal.ssi_signo) {
                Ok(libc::SIGCHLD) => self.reap_children(),
                // Whoever manages services may ask; with live containers the answer is no.
                Ok(libc::SIGTERM | libc::SIGINT | libc::SIGQUIT) => {
                    self.asked_to_end = !self.runs_something();
                }
                _ => {}
            }
        }
    }

    fn accept(&mut self) {
        let accepted = match seqpacket::accept(self.listener.as_fd()) {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => return self.note(&format!("accept a connection: {error}")),
        };
        match seqpacket::peer(accepted.as_fd()) {
            Ok((0, _)) => {}
            Ok((uid, pid)) => return self.note(&format!("refuse process {pid} of user {uid}")),
            Err(error) => return self.note(&format!("ask who connected: {error}")),
        }
        let token = self.new_token();
        match Polled::new(&self.poll, accepted, token) {
            Ok(socket) => self.newcomer = Some(Connection::new(socket)),
            Err(error) => self.note(&format!("watch a connection: {error}")),
        }
    }

    fn control_event(&mut self, token: u64) {
        if self
            .daemon
            .as_ref()
            .is_some_and(|daemon| daemon.token() == token)
        {
            if self.serve_daemon().is_err() {
                self.change_daemon(None);
            }
        } else if self
            .newcomer
            .as_ref()
            .is_some_and(|newcomer| newcomer.token() == token)
        {
            if let Some(newcomer) = self.newcomer.take() {
                self.greet(newcomer);
            }
        } else {
            match self.watched.get(&token) {
                Some(Watched::AdoptedEnd(id)) => {
                    let id = id.clone();
                    self.watched.remove(&token);
                    self.adopted_has_ended(id);
                }
                Some(Watched::Launch(id)) => {
                    let id = id.clone();
                    self.advance_launch(&id);
                }
                Some(Watched::Output(..) | Watched::Attacher(_)) | None => {}
            }
        }
    }

    fn change_daemon(&mut self, daemon: Option<Connection>) {
        self.daemon = daemon;
        self.hang_up_commands();
        self.end_unwanted_execs();
    }

    /// Reads the hello. From here on nothing that the daemon before may still have asked is done.
    fn greet(&mut self, mut newcomer: Connection) {
        let hello = match newcomer.receive(&mut self.message) {
            Ok(received) if !received.truncated => decode(&self.message[..received.len]),
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.newcomer = Some(newcomer);
                return;
            }
            Err(_) => return,
        };
        match hello {
            Ok(ToShim::Hello { version: VERSION }) => {
                let pid = rustix::process::getpid().as_raw_nonzero().get();
                newcomer.post(&FromShim::Welcome { pid }, Vec::new());
                self.change_daemon(Some(newcomer));
                self.tell_losses_again();
                self.first_daemon_by = None;
            }
            Ok(ToShim::Hello { .. }) => {
                newcomer.post(&FromShim::Incompatible { version: VERSION }, Vec::new());
                // It goes into an empty socket buffer, or the peer is gone.
                let _ = newcomer.flush();
            }
            Ok(ToShim::Request { .. }) => self.note("a connection did not begin with a hello"),
            Err(error) => self.note(&format!("hello: {error}")),
        }
    }

    fn serve_daemon(&mut self) -> Result<(), ()> {
        for _ in 0..REQUESTS_PER_ROUND {
            let Some(daemon) = self.daemon.as_mut().filter(|daemon| daemon.has_room()) else {
                break;
            };
            let received = match daemon.receive(&mut self.message) {
                Ok(received) if received.len == 0 => return Err(()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(()),
            };
            let message = match decode(&self.message[..received.len]) {
                Ok(ToShim::Request { number, request }) if !received.truncated => (number, request),
                Ok(_) => {
                    self.note("close a connection: a message out of place");
                    return Err(());
                }
                Err(error) => {
                    self.note(&format!("close a connection: {error}"));
                    return Err(());
                }
            };
            let (number, request) = message;
            let Some(connection) = self.daemon.as_ref().map(Connection::token) else {
                break;
            };
            let requester = Requester { connection, number };
            if let Outcome::Answered(answer) = self.answer(request, received.fds, requester) {
                self.tell(requester, answer);
            }
        }
        Ok(())
    }

    /// Sends answers that waited, then losses, then exits that wait, as far as socket and window
    /// allow.
    fn tell_daemon(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // What waited goes first, or a loss would wait and its exit not. That the daemon is
            // gone is noticed below.
            let _ = daemon.flush();
        }
        self.tell_losses();
        let Some(daemon) = &mut self.daemon else {
            return;
        };
        let mut sent = daemon.flush();
        while sent.is_ok() && !daemon.is_clogged() {
            let Some(record) = self.journal.waiting_from(daemon.next_event).next() else {
                break;
            };
            if self.journal.waiting_before(daemon.next_event) >= EVENT_WINDOW {
                break;
            }
            daemon.next_event = record.sequence + 1;
            daemon.post(&FromShim::Exited(record.clone()), Vec::new());
            sent = daemon.flush();
        }
        if sent.and_then(|()| daemon.watch()).is_err() {
            self.change_daemon(None);
        }
    }

    fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// A line in the shim's own log, as long as there are few.
    fn note(&mut self, text: &str) {
        if self.notes < NOTES_MAX {
            self.notes += 1;
            eprintln!("{text}");
        }
    }
}

fn wait_on(
    poll: &OwnedFd,
    events: &mut Vec<Event>,
    timeout: Option<Duration>,
) -> Result<(), ShimError> {
    let timeout = timeout.map(|wait| rustix::event::Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    });
    match epoll::wait(
        poll,
        rustix::buffer::spare_capacity(events),
        timeout.as_ref(),
    ) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(poll_error(errno)),
    }
}

fn poll_error(errno: rustix::io::Errno) -> ShimError {
    ShimError::Poll(errno.into())
}

#[cfg(test)]
mod tests;
