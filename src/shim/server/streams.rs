//! Opening, watching, pumping and letting go of what containers write.
//!
//! Streams are read when epoll tells of them or, while they yield something again and again, by the
//! clock (`pace`). A round gives some of them a turn each, and then lets everything else go first.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::launches::Launch;
use super::output::Output;
use super::polled::Polled;
use super::{Shim, ShimError, Watched, attachers, wait_on};
use crate::causes::with_causes;
use crate::runtime::launch::ProcessStreams;
use crate::runtime::plan::Stdio;
use crate::shim::log::file::{LogError, LogFile, Rotation};
use crate::shim::log::line::StreamName;
use crate::shim::log::rate::Rate;
use crate::shim::protocol::{ProcessId, ProcessKind, Refusal};
use crate::shim::stdio::{self, ShimEnds};

/// Streams that have a turn in a round, and after how many bytes no other begins one: about what is
/// read, cut and written in half a millisecond.
const OUTPUTS_PER_ROUND: usize = 16;
const ROUND_BYTES: usize = 512 * 1024;

impl Shim {
    /// Gives some of the streams that have something a turn each; `told` says that epoll knows of
    /// some.
    pub(super) fn pump_outputs(&mut self, told: bool) -> Result<(), ShimError> {
        let mut events = Vec::with_capacity(OUTPUTS_PER_ROUND);
        if told {
            wait_on(&self.outputs_poll, &mut events, Some(Duration::ZERO))?;
        }
        let mut left = ROUND_BYTES;
        // Those that are not reached are told of again.
        for event in events {
            if left == 0 {
                return Ok(());
            }
            left = left.saturating_sub(self.pump(event.data.u64()));
        }
        let now = Instant::now();
        for _ in 0..OUTPUTS_PER_ROUND {
            let first = self.resting.first().copied();
            let Some(due) = first.filter(|(at, _)| left > 0 && *at <= now) else {
                break;
            };
            self.resting.remove(&due);
            left = left.saturating_sub(self.pump(due.1));
        }
        Ok(())
    }

    /// When the next stream is to be read by the clock.
    pub(super) fn outputs_due(&self) -> Option<Instant> {
        self.resting.first().map(|(at, _)| *at)
    }

    /// Gives one stream its turn; how many bytes that has moved.
    fn pump(&mut self, token: u64) -> usize {
        if let Some(Watched::Attacher(id)) = self.watched.get(&token) {
            let id = id.clone();
            if let Some(process) = self.processes.get_mut(&id) {
                process.output.attacher_is_ready(token);
            }
            self.look_after(&id);
            return 0;
        }
        let Some(Watched::Output(id, name)) = self.watched.get(&token) else {
            return 0;
        };
        let id = id.clone();
        // A driver's process writes before it is held.
        let output = match self.processes.get_mut(&id) {
            Some(process) => Some(&mut process.output),
            None => self.launches.get_mut(&id).map(Launch::output_mut),
        };
        let turn = output.map(|output| output.pump(*name, &mut self.scratch));
        if turn.is_none_or(|turn| turn.ended) {
            self.watched.remove(&token);
        }
        if let Some(again) = turn.and_then(|turn| turn.again) {
            self.resting.insert((again, token));
        }
        self.look_after(&id);
        turn.map_or(0, |turn| turn.moved)
    }

    /// Sends what a process writes to a session as well, through the given pipes.
    pub(super) fn attach_session(
        &mut self,
        id: &ProcessId,
        pipes: Vec<(StreamName, OwnedFd)>,
    ) -> Result<(), Refusal> {
        let process = self.held_mut(id)?;
        if process.kind != ProcessKind::Container {
            return Err(Refusal::NotFound(id.clone()));
        }
        if !process.is_running() {
            return Err(Refusal::Exited(id.clone()));
        }
        let attached = process.output.attachers_mut().len();
        if attached + pipes.len() > attachers::PIPES_MAX {
            let most = attachers::PIPES_MAX;
            return Err(Refusal::Crowded { most });
        }
        for (name, pipe) in pipes {
            let token = self.new_token();
            let ready = attachers::prepare(&pipe).map_err(std::io::Error::from);
            let polled = ready.and_then(|()| Polled::new(&self.outputs_poll, pipe, token));
            let attachers = self.held_mut(id)?.output.attachers_mut();
            // The session hears of a failure, and closes its ends of all pipes.
            polled
                .and_then(|pipe| attachers.add(name, pipe))
                .map_err(|error| Refusal::Prepare(format!("watch a session of {id}: {error}")))?;
            self.watched.insert(token, Watched::Attacher(id.clone()));
        }
        Ok(())
    }

    /// Lets sessions go that take nothing, and ends the rests of processes that wrote too fast.
    pub(super) fn check_held(&mut self) {
        let now = Instant::now();
        let late = self.held.iter().filter(|(_, until)| **until <= now);
        let late: Vec<ProcessId> = late.map(|(id, _)| id.clone()).collect();
        for id in late {
            self.look_after(&id);
        }
    }

    /// Forgets the pipes that are gone; remembers whether the process is held back, by a session
    /// or by its rate, and whether the daemon is to be told of a loss.
    pub(super) fn look_after(&mut self, id: &ProcessId) {
        let process = self.processes.get_mut(id);
        let Some(output) = process.map(|process| &mut process.output) else {
            self.held.remove(id);
            return;
        };
        let until = output.look_again(Instant::now());
        if output.has_untold_loss() {
            self.losses.insert(id.clone());
        }
        for token in output.attachers_mut().take_gone() {
            self.watched.remove(&token);
        }
        match until {
            Some(until) => drop(self.held.insert(id.clone(), until)),
            None => drop(self.held.remove(id)),
        }
    }

    /// Opens the log and, unless there is to be a terminal, both sides of the FIFOs.
    pub(super) fn open_output(
        &mut self,
        id: &ProcessId,
        plan: &Stdio,
    ) -> Result<(Output, Option<ProcessStreams>), Refusal> {
        let mut output = output_of(plan, LogFile::open)?;
        if plan.terminal {
            return Ok((output, None));
        }
        let (ends, streams) = stdio::prepare(plan).map_err(prepare)?;
        self.attach(id, &mut output, ends)?;
        Ok((output, Some(streams)))
    }

    /// Opens the log and the shim's ends of what a former shim made.
    pub(super) fn reopen_output(
        &mut self,
        id: &ProcessId,
        plan: &Stdio,
        terminal: Option<OwnedFd>,
    ) -> Result<Output, Refusal> {
        let mut output = output_of(plan, LogFile::take_over)?;
        match (plan.terminal, terminal) {
            (true, Some(master)) => self.attach_terminal(id, &mut output, master),
            // Both its keepers are dead: what it shows now, nobody sees.
            (true, None) => {}
            (false, _) => {
                let ends = stdio::reopen(plan).map_err(prepare)?;
                self.attach(id, &mut output, ends)?;
            }
        }
        Ok(output)
    }

    fn attach(
        &mut self,
        id: &ProcessId,
        output: &mut Output,
        ends: ShimEnds,
    ) -> Result<(), Refusal> {
        let ShimEnds {
            stdout,
            stderr,
            stdin_keeper,
        } = ends;
        output.hold_stdin(stdin_keeper);
        for (name, fd) in [(StreamName::Stdout, stdout), (StreamName::Stderr, stderr)] {
            let polled = self.watch_output(id, name, fd);
            match polled {
                Ok(polled) => output.attach(name, polled),
                Err(error) => {
                    self.unwatch(output);
                    return Err(Refusal::Prepare(format!("watch a FIFO of {id}: {error}")));
                }
            }
        }
        Ok(())
    }

    /// Without it the container would still run; its output would be lost, and is said to be.
    pub(super) fn attach_terminal(&mut self, id: &ProcessId, output: &mut Output, master: OwnedFd) {
        let nonblocking = rustix::io::ioctl_fionbio(&master, true).map_err(std::io::Error::from);
        let polled = nonblocking.and_then(|()| self.watch_output(id, StreamName::Stdout, master));
        match polled {
            Ok(polled) => output.attach_terminal(polled),
            Err(error) => self.note(&format!("watch the terminal of {id}: {error}")),
        }
    }

    fn watch_output(
        &mut self,
        id: &ProcessId,
        name: StreamName,
        fd: OwnedFd,
    ) -> std::io::Result<Polled> {
        let token = self.new_token();
        let polled = Polled::new(&self.outputs_poll, fd, token)?;
        self.watched
            .insert(token, Watched::Output(id.clone(), name));
        Ok(polled)
    }

    /// Streams that are still open are closed with `output`; their names must go as well.
    pub(super) fn unwatch(&mut self, output: &Output) {
        for token in output.tokens() {
            self.watched.remove(&token);
        }
    }
}

fn output_of(
    plan: &Stdio,
    open: fn(&Path, Option<Rotation>) -> Result<LogFile, LogError>,
) -> Result<Output, Refusal> {
    let limits = plan.log_limits;
    let rotation = (limits.file_bytes > 0).then(|| Rotation {
        max_bytes: limits.file_bytes,
        files: usize::try_from(limits.files).unwrap_or(usize::MAX),
    });
    let log = plan.log_path.as_deref().map(|path| open(path, rotation));
    let log = log.transpose();
    let log = log.map_err(|error| Refusal::Log(with_causes(&error)))?;
    let rate = limits.bytes_per_s;
    let rate = (rate > 0).then(|| Rate::new(rate, Instant::now()));
    Ok(Output::new(log, rate))
}

fn prepare(error: stdio::StdioError) -> Refusal {
    Refusal::Prepare(error.to_string())
}
