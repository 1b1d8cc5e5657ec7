//! What the daemon may ask, and how it is done. Each request leaves all or nothing behind.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::Shim;
use super::launches::Requester;
use super::orphans::leaf_of;
use super::output::Output;
use super::process::{Process, start_time};
use crate::causes::with_causes;
use crate::runtime::launch::{
    Launching, ProcessStreams, Started, Target, begin_exec, begin_launch, begin_pod_init,
};
use crate::runtime::plan::{ExecPlan, LaunchPlan};
use crate::shim::log::line::StreamName;
use crate::shim::log::timestamp::now_ns;
use crate::shim::protocol::{
    ExecSource, HeldProcess, LIST_PAGE, PLAN_MAX_BYTES, ProcessId, ProcessKind, Refusal, Reply,
    Request,
};

/// A reply with the descriptors that go beside it.
pub(super) type Answer = Result<(Reply, Vec<OwnedFd>), Refusal>;

const DONE: Answer = Ok((Reply::Done, Vec::new()));

/// What becomes of a request at once.
pub(super) enum Outcome {
    Answered(Answer),
    /// The answer comes when a launch has ended.
    Later,
}

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Outcome {
        Outcome::Answered(answer)
    }
}

impl From<Result<(), Refusal>> for Outcome {
    fn from(begun: Result<(), Refusal>) -> Outcome {
        match begun {
            Ok(()) => Outcome::Later,
            Err(refusal) => Outcome::Answered(Err(refusal)),
        }
    }
}

impl Shim {
    pub(super) fn answer(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        requester: Requester,
    ) -> Outcome {
        match request {
            Request::Launch {
                container_id,
                plan_path,
            } => self.start(
                container_id,
                ProcessKind::Container,
                requester,
                |shim, id| shim.begin_container(id, &plan_path),
            ),
            Request::PodInit { sandbox_id, plan } => {
                self.start(sandbox_id, ProcessKind::PodInit, requester, |_, _| {
                    let launching = begin_pod_init(&plan).map_err(Refusal::Launch)?;
                    Ok((launching, Output::default()))
                })
            }
            Request::Exec {
                exec_id,
                container_id,
                plan,
                terminal,
            } => exec_input(plan, terminal, fds)
                .and_then(|(plan, streams)| {
                    let launching = self.begin_exec(&exec_id, &container_id, &plan, streams)?;
                    let (kind, nothing) = (ProcessKind::Exec, Output::default());
                    self.begin(exec_id, kind, launching, nothing, leaf_of(&plan), requester)
                })
                .into(),
            Request::ReopenLog { container_id } => self.reopen_log(&container_id).into(),
            Request::Attach {
                container_id,
                stdout,
                stderr,
            } => self.attach_pipes(&container_id, stdout, stderr, fds).into(),
            Request::CloseStdin { container_id } => self.close_stdin(&container_id).into(),
            Request::Handles { id } => self.handles(id).into(),
            Request::List { after } => Ok((self.list(after.as_ref()), Vec::new())).into(),
            Request::Look { id } => Ok((self.look(&id), Vec::new())).into(),
            Request::Acknowledge { sequence } => {
                self.acknowledge(sequence);
                DONE.into()
            }
            Request::Forget { id } => self.forget(&id).into(),
            Request::Adopt(adopt) => self.adopt(adopt, fds).into(),
            Request::Ping => DONE.into(),
        }
    }

    fn begin_container(
        &mut self,
        id: &ProcessId,
        plan_path: &Path,
    ) -> Result<(Launching, Output), Refusal> {
        let plan: LaunchPlan = read_plan_file(plan_path)?;
        let (output, streams) = self.open_output(id, &plan.stdio)?;
        match begin_launch(&plan, streams) {
            Ok(launching) => {
                self.count_ooms(id, plan.cgroup.oom_counter);
                Ok((launching, output))
            }
            Err(error) => {
                self.unwatch(&output);
                Err(Refusal::Launch(error))
            }
        }
    }

    /// Where to look, when this process has ended, for what the kernel has killed beside it.
    pub(super) fn count_ooms(&mut self, id: &ProcessId, counter: Option<PathBuf>) {
        if let Some(file) = counter {
            self.oom_counters.insert(id.clone(), file);
        }
    }

    fn attach_pipes(
        &mut self,
        id: &ProcessId,
        stdout: bool,
        stderr: bool,
        fds: Vec<OwnedFd>,
    ) -> Answer {
        let names = [(StreamName::Stdout, stdout), (StreamName::Stderr, stderr)];
        let names = names.into_iter().filter(|(_, wanted)| *wanted);
        let names: Vec<StreamName> = names.map(|(name, _)| name).collect();
        if fds.len() != names.len() {
            let (got, wanted) = (fds.len(), names.len());
            let text = format!("attach came with {got} descriptors instead of {wanted}");
            return Err(Refusal::Descriptors(text));
        }
        self.attach_session(id, names.into_iter().zip(fds).collect())?;
        DONE
    }

    fn close_stdin(&mut self, id: &ProcessId) -> Answer {
        self.held_mut(id)?.output.hold_stdin(None);
        DONE
    }

    fn handles(&mut self, id: ProcessId) -> Answer {
        match self.held_mut(&id)? {
            process if process.is_running() => launched(process),
            _ => Err(Refusal::Exited(id)),
        }
    }

    pub(super) fn held_mut(&mut self, id: &ProcessId) -> Result<&mut Process, Refusal> {
        self.processes
            .get_mut(id)
            .ok_or_else(|| Refusal::NotFound(id.clone()))
    }

    fn has_room(&self) -> Result<(), Refusal> {
        if self.processes.len() + self.launches.len() < self.capacity {
            return Ok(());
        }
        Err(Refusal::Full {
            capacity: self.capacity,
        })
    }

    /// The answer for an id that is already held: the same as the first time, while it runs.
    fn already(&self, id: &ProcessId, kind: ProcessKind) -> Option<Answer> {
        let process = self.processes.get(id)?;
        Some(match process.kind == kind {
            false => Err(Refusal::InUse(id.clone())),
            true if process.is_running() => launched(process),
            true => Err(Refusal::Exited(id.clone())),
        })
    }

    /// Begins a launch, unless it has been begun already.
    fn start(
        &mut self,
        id: ProcessId,
        kind: ProcessKind,
        requester: Requester,
        begin: impl FnOnce(&mut Shim, &ProcessId) -> Result<(Launching, Output), Refusal>,
    ) -> Outcome {
        if let Some(answer) = self.already(&id, kind) {
            return answer.into();
        }
        if let Some(joined) = self.join_launch(&id, kind, requester) {
            return joined.into();
        }
        let begun = self.has_room().and_then(|()| begin(self, &id));
        begun
            .and_then(|(launching, output)| {
                self.begin(id, kind, launching, output, None, requester)
            })
            .into()
    }

    fn begin_exec(
        &mut self,
        id: &ProcessId,
        container_id: &ProcessId,
        plan: &ExecPlan,
        streams: Option<ProcessStreams>,
    ) -> Result<Launching, Refusal> {
        if self.processes.contains_key(id) || self.launches.contains_key(id) {
            return Err(Refusal::InUse(id.clone()));
        }
        self.has_room()?;
        let container = self.held_mut(container_id)?;
        if container.kind != ProcessKind::Container {
            return Err(Refusal::NotFound(container_id.clone()));
        }
        let pidfd = match &container.pidfd {
            Some(pidfd) if container.is_running() => pidfd.try_clone().map_err(descriptors)?,
            _ => return Err(Refusal::Exited(container_id.clone())),
        };
        let target = Target {
            pid: container.pid,
            pidfd,
        };
        let with_terminal = streams.is_none();
        begin_exec(&target, plan, streams, with_terminal).map_err(Refusal::Launch)
    }

    /// From here on the process is known, and nothing about it fails any more.
    pub(super) fn hold(
        &mut self,
        id: ProcessId,
        kind: ProcessKind,
        started: Started,
        mut output: Output,
        leaf: Option<PathBuf>,
    ) {
        let Started {
            pid,
            pidfd,
            terminal,
            identity,
        } = started;
        if let Some(master) = terminal {
            self.attach_terminal(&id, &mut output, master);
        }
        // It is our child and not reaped, so it is there; 0 would be without /proc.
        let start_time = start_time(pid).unwrap_or_default();
        self.children.insert(pid, id.clone());
        let pidfd = Some(pidfd);
        let process = Process {
            kind,
            pid,
            start_time,
            pidfd,
            started_at_ns: now_ns(),
            identity,
            exit: None,
            output,
            leaf,
        };
        self.processes.insert(id, process);
    }

    fn reopen_log(&mut self, id: &ProcessId) -> Answer {
        let log = self.held_mut(id)?.output.log_mut();
        let log = log.ok_or_else(|| Refusal::Log(format!("process {id} has no log")))?;
        log.reopen()
            .map_err(|error| Refusal::Log(with_causes(&error)))?;
        DONE
    }

    fn list(&self, after: Option<&ProcessId>) -> Reply {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self
            .processes
            .range::<ProcessId, _>((from, Bound::Unbounded));
        let page = rest.by_ref().take(LIST_PAGE);
        let processes: Vec<HeldProcess> = page.map(|(id, process)| process.describe(id)).collect();
        Reply::Listed {
            processes,
            more: rest.next().is_some(),
        }
    }

    fn look(&self, id: &ProcessId) -> Reply {
        let process = self.processes.get(id);
        Reply::Seen {
            launching: self.launches.contains_key(id),
            held: process.map(|process| process.describe(id)),
            started_at_ns: process.map_or(0, |process| process.started_at_ns),
        }
    }

    fn forget(&mut self, id: &ProcessId) -> Answer {
        let running = self.processes.get(id).is_some_and(Process::is_running);
        if running || self.launches.contains_key(id) {
            return Err(Refusal::Running(id.clone()));
        }
        if let Some(process) = self.processes.remove(id) {
            self.unwatch(&process.output);
        }
        // Of a launch that came to nothing.
        self.oom_counters.remove(id);
        DONE
    }
}

/// What a launch is answered with: descriptors of its own for the daemon.
pub(super) fn launched(process: &Process) -> Answer {
    let Process {
        pid,
        start_time,
        pidfd,
        output,
        ..
    } = process;
    let pidfd = pidfd.as_ref().ok_or_else(|| missing("a dead process"))?;
    let mut fds = vec![pidfd.try_clone().map_err(descriptors)?];
    for stream in output.streams() {
        fds.push(stream.try_clone().map_err(descriptors)?);
    }
    let terminal = output.has_terminal();
    Ok((
        Reply::Launched {
            pid: *pid,
            start_time: *start_time,
            terminal,
            started_at_ns: process.started_at_ns,
            identity: process.identity.clone(),
        },
        fds,
    ))
}

fn exec_input(
    source: ExecSource,
    terminal: bool,
    fds: Vec<OwnedFd>,
) -> Result<(ExecPlan, Option<ProcessStreams>), Refusal> {
    let wanted = usize::from(matches!(source, ExecSource::Attached)) + if terminal { 0 } else { 3 };
    if fds.len() != wanted {
        let text = format!(
            "exec came with {} descriptors instead of {wanted}",
            fds.len()
        );
        return Err(Refusal::Descriptors(text));
    }
    let mut fds = fds.into_iter();
    let plan = match source {
        ExecSource::Inline(plan) => *plan,
        ExecSource::Attached => {
            let file = fds
                .next()
                .map(File::from)
                .ok_or_else(|| missing("the plan"))?;
            read_plan(file).map_err(|error| Refusal::Prepare(format!("read exec plan: {error}")))?
        }
    };
    if terminal {
        return Ok((plan, None));
    }
    let mut next = |name| fds.next().ok_or_else(|| missing(name));
    let (stdin, stdout, stderr) = (next("stdin")?, next("stdout")?, next("stderr")?);
    Ok((
        plan,
        Some(ProcessStreams {
            stdin,
            stdout,
            stderr,
        }),
    ))
}

/// Reads a launch plan.
pub(super) fn read_plan_file<T: DeserializeOwned>(path: &Path) -> Result<T, Refusal> {
    // O_NONBLOCK: should it be a FIFO, opening it must not wait.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    file.and_then(read_plan)
        .map_err(|error| Refusal::Prepare(format!("read launch plan {}: {error}", path.display())))
}

fn read_plan<T: DeserializeOwned>(file: File) -> io::Result<T> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > PLAN_MAX_BYTES {
        let text = format!("not a regular file of at most {PLAN_MAX_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut text = Vec::new();
    file.take(PLAN_MAX_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

pub(super) fn descriptors(error: io::Error) -> Refusal {
    Refusal::Descriptors(format!("duplicate a descriptor: {error}"))
}

fn missing(what: &str) -> Refusal {
    Refusal::Descriptors(format!("the descriptor of {what} is missing"))
}
