//! Opening, watching and letting go of what a container writes.

use std::os::fd::OwnedFd;

use super::output::Output;
use super::polled::Polled;
use super::requests::with_source;
use super::{Shim, Watched};
use crate::runtime::launch::ProcessStreams;
use crate::runtime::plan::Stdio;
use crate::shim::log::file::LogFile;
use crate::shim::log::line::StreamName;
use crate::shim::protocol::{ProcessId, Refusal};
use crate::shim::stdio::{self, ShimEnds};

impl Shim {
    /// Opens the log and, unless there is to be a terminal, both sides of the FIFOs.
    pub(super) fn open_output(
        &mut self,
        id: &ProcessId,
        plan: &Stdio,
    ) -> Result<(Output, Option<ProcessStreams>), Refusal> {
        let mut output = open_log(plan)?;
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
        let mut output = open_log(plan)?;
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

fn open_log(plan: &Stdio) -> Result<Output, Refusal> {
    let log = plan.log_path.as_deref().map(LogFile::open).transpose();
    Ok(Output::new(
        log.map_err(|error| Refusal::Log(with_source(&error)))?,
    ))
}

fn prepare(error: stdio::StdioError) -> Refusal {
    Refusal::Prepare(error.to_string())
}
