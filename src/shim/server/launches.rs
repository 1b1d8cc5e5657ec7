//! Launches under way: begun by a request, finished by the loop, answered when they have ended.
//!
//! ```text
//! begun ─► channel hangs up ─┬─ it runs ──────────────────────────────► held, answered
//!   │                        └─ it failed ─► killed ─┬─ reaped ───────► answered
//!   ├─ no end in time ─────────────────────► killed ─┴─ or too slow ──► answered
//!   └─ an exec whose requester has gone ───► killed ─► reaped
//! ```
//!
//! Whoever asks for a launch that is under way gets the same answer as whoever asked first. A child
//! may hang for as long as it is allowed to (a frozen cgroup, a hung file system): nothing here
//! waits for it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::output::Output;
use super::requests::{Answer, launched};
use super::{Shim, Watched};
use crate::runtime::error::stage;
use crate::runtime::launch::{LaunchError, Launching, Progress, Started};
use crate::shim::protocol::{FromShim, ProcessId, ProcessKind, Refusal, Reply};

/// How long a killed child may take to go before the failure is told without waiting for that.
const REAP_WAIT: Duration = Duration::from_secs(1);

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Requester {
    /// The connection's token: never used twice.
    pub(super) connection: u64,
    /// The request's number.
    pub(super) number: u64,
}

/// A launch that has not been answered.
#[derive(Debug)]
pub(super) struct Launch {
    kind: ProcessKind,
    pid: i32,
    token: u64,
    phase: Phase,
    /// When the phase is over, whatever happens.
    until: Instant,
    output: Output,
    /// The cgroup that a command has for itself.
    leaf: Option<PathBuf>,
    requesters: Vec<Requester>,
}

#[derive(Debug)]
enum Phase {
    UnderWay(Launching),
    /// Killed, and not reaped.
    Ending(LaunchError),
}

impl Launch {
    fn is_of_driver(&self) -> bool {
        matches!(&self.phase, Phase::UnderWay(launching) if launching.is_driver())
    }

    /// What its process writes, which may be before it is held.
    pub(super) fn output_mut(&mut self) -> &mut Output {
        &mut self.output
    }

    /// When the loop has to look at it.
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}

impl Shim {
    /// The launch goes on without us; its answer comes later. A command may have `leaf` for itself.
    pub(super) fn begin(
        &mut self,
        id: ProcessId,
        kind: ProcessKind,
        launching: Launching,
        output: Output,
        leaf: Option<PathBuf>,
        requester: Requester,
    ) -> Result<(), Refusal> {
        let token = self.new_token();
        let Some(pid) = launching.pid() else {
            let error = LaunchError::invalid(stage::CLONE, "the launch has no process");
            return Err(Refusal::Launch(error));
        };
        if let Err(errno) = self.watch_launch(&launching, token) {
            self.unwatch(&output);
            return Err(Refusal::Prepare(format!("watch the launch: {errno}")));
        }
        self.watched.insert(token, Watched::Launch(id.clone()));
        let launch = Launch {
            kind,
            pid,
            token,
            phase: Phase::UnderWay(launching),
            until: Instant::now() + self.launch_bound,
            output,
            leaf,
            requesters: vec![requester],
        };
        self.launches.insert(id, launch);
        Ok(())
    }

    /// A request for a launch that is under way waits for the same answer. `None`: there is none.
    pub(super) fn join_launch(
        &mut self,
        id: &ProcessId,
        kind: ProcessKind,
        requester: Requester,
    ) -> Option<Result<(), Refusal>> {
        let launch = self.launches.get_mut(id)?;
        if launch.kind != kind {
            return Some(Err(Refusal::InUse(id.clone())));
        }
        // Those of connections that are gone wait for nothing.
        let current = requester.connection;
        launch
            .requesters
            .retain(|waiting| waiting.connection == current);
        launch.requesters.push(requester);
        Some(Ok(()))
    }

    /// Told of its end only: whatever the child says before that waits in its socket.
    fn watch_launch(&self, launching: &Launching, token: u64) -> Result<(), Errno> {
        let data = EventData::new_u64(token);
        epoll::add(&self.poll, launching.channel(), data, EventFlags::empty())
    }

    /// Taken out before it is closed: a child of ours may have a duplicate for a moment.
    fn unwatch_launch(&self, launching: &Launching) {
        let _ = epoll::delete(&self.poll, launching.channel());
    }

    /// The child of this launch has said something, or is dead and not reaped.
    pub(super) fn advance_launch(&mut self, id: &ProcessId) {
        let Some(mut launch) = self.launches.remove(id) else {
            return;
        };
        let ending = Phase::Ending(ended_early());
        let launching = match std::mem::replace(&mut launch.phase, ending) {
            Phase::UnderWay(launching) => launching,
            ending @ Phase::Ending(_) => {
                launch.phase = ending;
                self.launches.insert(id.clone(), launch);
                return;
            }
        };
        self.unwatch_launch(&launching);
        let failure = match launching.advance() {
            Ok(Progress::Started(started)) => return self.launch_has_started(id, launch, started),
            Ok(Progress::Waiting(launching)) => match self.watch_launch(&launching, launch.token) {
                Ok(()) => {
                    // In a user namespace another process may have gone on.
                    launch.pid = launching.pid().unwrap_or(launch.pid);
                    launch.phase = Phase::UnderWay(launching);
                    self.launches.insert(id.clone(), launch);
                    return;
                }
                Err(errno) => LaunchError::refused(stage::CLONE, "watch the launch", errno),
            },
            Err(error) => error,
        };
        launch.phase = Phase::Ending(failure);
        launch.until = Instant::now() + REAP_WAIT;
        self.launches.insert(id.clone(), launch);
    }

    fn launch_has_started(&mut self, id: &ProcessId, launch: Launch, mut started: Started) {
        self.watched.remove(&launch.token);
        // The terminal of an exec is the daemon's alone: nothing of an exec is logged.
        let exec = launch.kind == ProcessKind::Exec;
        let mut terminal = if exec { started.terminal.take() } else { None };
        self.hold(id.clone(), launch.kind, started, launch.output, launch.leaf);
        for requester in launch.requesters {
            let Some(process) = self.processes.get(id) else {
                continue;
            };
            let answer = with_terminal(launched(process), terminal.take());
            self.tell(requester, answer);
        }
    }

    /// A child is dead, and about to be reaped: whether its launch came to something is asked now,
    /// as long as its process id is its own.
    pub(super) fn launch_may_be_over(&mut self, pid: i32) {
        if self.launch_of(pid).is_none() && !self.children.contains_key(&pid) {
            // It may be one that goes on for another, of which we have not been told yet: that is
            // said before it does anything.
            let launches = self.launches.iter();
            let under_way =
                launches.filter(|(_, launch)| matches!(launch.phase, Phase::UnderWay(_)));
            let ids: Vec<ProcessId> = under_way.map(|(id, _)| id.clone()).collect();
            for id in ids {
                self.advance_launch(&id);
            }
        }
        if let Some(id) = self.launch_of(pid) {
            return self.advance_launch(&id);
        }
        if self.children.contains_key(&pid) {
            return;
        }
        // Nobody's child: a runtime may have made it, whose driver has told so before it ended.
        let launches = self.launches.iter();
        let of_drivers = launches.filter(|(_, launch)| launch.is_of_driver());
        let ids: Vec<ProcessId> = of_drivers.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.advance_launch(&id);
        }
    }

    /// A child that is not held has been reaped. With that its launch is over.
    pub(super) fn launch_is_over(&mut self, pid: i32) {
        if let Some(id) = self.launch_of(pid) {
            self.finish_failed(&id);
        }
    }

    fn launch_of(&self, pid: i32) -> Option<ProcessId> {
        let mut launches = self.launches.iter();
        let found = launches.find(|(_, launch)| launch.pid == pid)?;
        Some(found.0.clone())
    }

    fn finish_failed(&mut self, id: &ProcessId) {
        let Some(launch) = self.launches.remove(id) else {
            return;
        };
        self.watched.remove(&launch.token);
        self.unwatch(&launch.output);
        let error = match launch.phase {
            Phase::Ending(error) => error,
            Phase::UnderWay(launching) => {
                self.unwatch_launch(&launching);
                ended_early()
            }
        };
        for requester in launch.requesters {
            self.tell(requester, Err(Refusal::Launch(error.clone())));
        }
    }

    /// Ends launches that take too long, and does not wait for those that do not end.
    pub(super) fn check_launches(&mut self) {
        let now = Instant::now();
        let late = self.launches.iter();
        let late = late.filter(|(_, launch)| launch.until <= now);
        let late: Vec<ProcessId> = late.map(|(id, _)| id.clone()).collect();
        for id in late {
            match self.launches.get(&id).map(|launch| &launch.phase) {
                Some(Phase::UnderWay(launching)) => {
                    let error = launching.timed_out();
                    self.give_up(&id, error);
                }
                _ => self.finish_failed(&id),
            }
        }
    }

    /// The daemon's connection is another, or none. What only the former daemon could have used
    /// is ended.
    pub(super) fn end_unwanted_execs(&mut self) {
        let current = self.daemon.as_ref().map(super::Connection::token);
        let unwanted = |launch: &Launch| {
            let mut requesters = launch.requesters.iter();
            launch.kind == ProcessKind::Exec
                && requesters.all(|requester| Some(requester.connection) != current)
        };
        let launches = self.launches.iter();
        let launches = launches.filter(|(_, launch)| unwanted(launch));
        let ids: Vec<ProcessId> = launches.map(|(id, _)| id.clone()).collect();
        for id in ids {
            let error = LaunchError::invalid(stage::CLONE, "nobody waits for it any more");
            self.give_up(&id, error);
        }
    }

    fn give_up(&mut self, id: &ProcessId, error: LaunchError) {
        if let Some(Phase::UnderWay(launching)) = self.launches.get(id).map(|launch| &launch.phase)
        {
            self.unwatch_launch(launching);
        }
        if let Some(launch) = self.launches.get_mut(id) {
            // With the former phase goes the child.
            launch.phase = Phase::Ending(error);
            launch.until = Instant::now() + REAP_WAIT;
        }
    }

    /// Answers one that may have gone meanwhile.
    pub(super) fn tell(&mut self, requester: Requester, answer: Answer) {
        let daemon = self.daemon.as_mut();
        let Some(daemon) = daemon.filter(|daemon| daemon.token() == requester.connection) else {
            return;
        };
        let (result, fds) = match answer {
            Ok((reply, fds)) => (Ok(reply), fds),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        let number = requester.number;
        daemon.post(&FromShim::Answer { number, result }, fds);
        // A connection that is gone is noticed when the loop looks at it.
        let _ = daemon.flush();
    }
}

fn ended_early() -> LaunchError {
    LaunchError::invalid(stage::CLONE, "the process ended before its command")
}

fn with_terminal(answer: Answer, master: Option<OwnedFd>) -> Answer {
    let (mut reply, mut fds) = answer?;
    if let (Reply::Launched { terminal, .. }, Some(master)) = (&mut reply, master) {
        *terminal = true;
        fds.push(master);
    }
    Ok((reply, fds))
}
