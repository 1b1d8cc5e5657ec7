//! The daemon's side of the shim: requests as futures, exits as a channel.
//!
//! A request that is dropped leaves nothing behind: its late answer is thrown away and the
//! descriptors with it closed. What it asked for may still have been done; asking again is safe.
//! When the shim goes away, every waiting request fails at once, and the channel ends with
//! [`ShimEvent::Disconnected`]. The connection lives as long as the last clone of the client.

mod socket;
mod start;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use self::socket::Socket;
use super::protocol::{
    Adopt, BadProcessId, EVENT_WINDOW, ExecSource, ExitRecord, FromShim, HeldProcess,
    INLINE_PLAN_MAX_BYTES, LogLoss, MESSAGE_MAX_BYTES, MessageError, ProcessId, Refusal, Reply,
    Request, ToShim, VERSION, decode, encode,
};
use crate::runtime::launch::{Identity, LAUNCH_TIMEOUT, LaunchError, PodInitPlan};
use crate::runtime::plan::ExecPlan;

/// How long a request may take, unless [`ShimClient::with_timeout`] says otherwise. Longer than a
/// launch may: the shim's word on what it hung at is worth waiting for.
pub const REQUEST_TIMEOUT: Duration = LAUNCH_TIMEOUT.saturating_add(Duration::from_secs(5));
/// Events that may wait to be handled. Wider than the shim's window: the reader never waits for
/// whoever handles events, who may himself be waiting for an answer that it has yet to read.
const EVENTS_WAITING: usize = EVENT_WINDOW * 2;
/// Requests that may wait for their answers at once.
const WAITING_MAX: usize = 4096;

/// Why the shim did not do it, or why nobody knows whether it did.
#[derive(Debug, thiserror::Error)]
pub enum ShimClientError {
    /// The runtime could not start the process; stage, errno and text as it gave them.
    #[error("{}", .0.message)]
    Launch(LaunchError),
    /// The shim would not.
    #[error(transparent)]
    Refused(Refusal),
    /// The shim went away before it answered.
    #[error("the shim went away")]
    Disconnected,
    /// No answer in time; the request may yet be done.
    #[error("the shim did not answer within {after:?}")]
    Timeout {
        /// The bound.
        after: Duration,
    },
    /// The shim speaks another version: it must be replaced by one of this version.
    #[error("the shim speaks protocol version {version}, this daemon {VERSION}")]
    Incompatible {
        /// The shim's.
        version: u32,
    },
    /// An id that cannot be one.
    #[error(transparent)]
    BadId(#[from] BadProcessId),
    /// The request, or what came back, is not a message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The answer does not fit the request.
    #[error("the shim gave an answer that does not fit")]
    Unexpected,
    /// Too many requests wait.
    #[error("{WAITING_MAX} requests wait for the shim")]
    Busy,
    /// A system call of the daemon's own side.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It could not be started.
    #[error("start shim {}: {reason}", .exe.display())]
    Start {
        /// The binary.
        exe: PathBuf,
        /// What it said.
        reason: String,
    },
}

impl ShimClientError {
    /// Whether the same request may go better once the shim is back or less busy.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Disconnected | Self::Busy | Self::Timeout { .. } | Self::Start { .. }
        )
    }
}

/// What the shim reports of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimEvent {
    /// A process has ended; sent again on every connection until it is acknowledged.
    Exited(ExitRecord),
    /// Logs lack something: see [`ShimClient::take_log_losses`].
    LogLoss,
    /// The connection is gone: the last event.
    Disconnected,
}

/// What the shim knows of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It runs, or has run; since when, nanoseconds since 1970, or 0 if that is not known.
    Held(HeldProcess, i64),
    /// Its launch is under way; asking for it again joins it.
    UnderWay,
    /// It has never heard of it, or has been told to forget it.
    Nothing,
}

/// A process that was started.
#[derive(Debug)]
pub struct Launched {
    /// In the shim's PID namespace.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// When the shim saw it run, nanoseconds since 1970, UTC: never after its exit. 0 for what a
    /// former shim started.
    pub started_at_ns: i64,
    /// Who it runs as; `None` for the init of a pod, and for what a former shim started.
    pub identity: Option<Identity>,
    /// To watch and to signal it; keep it open, it tells how the process ended should the shim die.
    pub pidfd: OwnedFd,
    /// The master side of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Where the shim reads its output. Not to be read: as long as they are open, what it wrote is
    /// there for the next shim, even if it ends while there is none.
    pub outputs: Vec<OwnedFd>,
}

/// The end of a process in a container, to be waited for. Dropping it forgets about it.
#[derive(Debug)]
pub struct ExecExit {
    inner: Arc<Inner>,
    id: ProcessId,
    record: oneshot::Receiver<ExitRecord>,
}

impl ExecExit {
    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`ShimClientError::Disconnected`] when the shim goes away first.
    pub async fn wait(&mut self) -> Result<ExitRecord, ShimClientError> {
        (&mut self.record)
            .await
            .map_err(|_| ShimClientError::Disconnected)
    }
}

impl Drop for ExecExit {
    fn drop(&mut self) {
        self.inner.shared.waiting().execs.remove(&self.id);
    }
}

/// What is needed to adopt a process.
#[derive(Debug)]
pub struct Orphan<'a> {
    /// Container, sandbox or exec.
    pub id: &'a str,
    /// What it is.
    pub kind: super::protocol::ProcessKind,
    /// The launch plan of a container.
    pub plan_path: Option<&'a Path>,
    /// As it was launched.
    pub pid: i32,
    /// As it was launched.
    pub start_time: u64,
    /// Kept since it was launched, if this daemon is the one that launched it.
    pub pidfd: Option<OwnedFd>,
    /// Kept since it was launched.
    pub terminal: Option<OwnedFd>,
    /// Log entries, and their bytes, that could not be written so far.
    pub lost_log: (u64, u64),
}

type Answered = (Result<Reply, Refusal>, Vec<OwnedFd>);

/// A connection to the node's shim.
#[derive(Debug, Clone)]
pub struct ShimClient {
    inner: Arc<Inner>,
    timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    reader: AbortHandle,
    shim_pid: i32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Between the clients and the reader.
#[derive(Debug)]
struct Shared {
    socket: Socket,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_number: u64,
    gone: bool,
    answers: HashMap<u64, oneshot::Sender<Answered>>,
    execs: HashMap<ProcessId, oneshot::Sender<ExitRecord>>,
    /// The newest of each container that nobody has taken: no more than there are containers.
    losses: HashMap<ProcessId, LogLoss>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes its request off the list, however the wait for it ends.
struct Registered<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.waiting().answers.remove(&self.number);
    }
}

impl ShimClient {
    /// Connects to the shim of `state`, or starts `exe shim --state STATE` and connects to that. Of
    /// several callers at once one starts it. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`ShimClientError::Start`] when it does not come up in time, `Incompatible`, or what a call
    /// returned.
    pub async fn connect_or_start(
        state: &Path,
        exe: &Path,
    ) -> Result<(ShimClient, mpsc::Receiver<ShimEvent>), ShimClientError> {
        let (socket, shim_pid) = start::connect_or_start(state, exe).await?;
        let shared = Arc::new(Shared {
            socket,
            waiting: Mutex::default(),
        });
        let (events, receiver) = mpsc::channel(EVENTS_WAITING);
        let reader = tokio::spawn(read(Arc::clone(&shared), events)).abort_handle();
        let inner = Arc::new(Inner {
            shared,
            reader,
            shim_pid,
        });
        Ok((
            ShimClient {
                inner,
                timeout: REQUEST_TIMEOUT,
            },
            receiver,
        ))
    }

    /// The same connection with another bound on requests.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> ShimClient {
        ShimClient {
            inner: Arc::clone(&self.inner),
            timeout,
        }
    }

    /// The shim's process, for the cgroup it should be in.
    #[must_use]
    pub fn shim_pid(&self) -> i32 {
        self.inner.shim_pid
    }

    /// Starts a container from the plan in a file. Asked again while it runs, answers the same.
    ///
    /// # Errors
    /// [`ShimClientError::Launch`] when the runtime could not, `Refused(Exited)` when it has run
    /// before, or any other.
    pub async fn launch(&self, id: &str, plan_path: &Path) -> Result<Launched, ShimClientError> {
        let container_id = ProcessId::try_from(id)?;
        let plan_path = plan_path.to_owned();
        self.start(
            Request::Launch {
                container_id,
                plan_path,
            },
            Vec::new(),
        )
        .await
    }

    /// Starts the init of a pod with a shared PID namespace. Idempotent as [`ShimClient::launch`].
    ///
    /// # Errors
    /// As [`ShimClient::launch`].
    pub async fn pod_init(&self, id: &str, plan: PodInitPlan) -> Result<Launched, ShimClientError> {
        let sandbox_id = ProcessId::try_from(id)?;
        self.start(Request::PodInit { sandbox_id, plan }, Vec::new())
            .await
    }

    /// Starts a process in a container: `streams` are its standard input, output and error; with
    /// `None` it gets a terminal, whose master side is in the answer. Its exit comes through the
    /// second part of the answer, and as an event under `exec_id` as well. Not idempotent: an id
    /// in use is refused.
    ///
    /// # Errors
    /// As [`ShimClient::launch`].
    pub async fn exec(
        &self,
        exec_id: &str,
        container_id: &str,
        plan: &ExecPlan,
        streams: Option<[OwnedFd; 3]>,
    ) -> Result<(Launched, ExecExit), ShimClientError> {
        let exec_id = ProcessId::try_from(exec_id)?;
        let container_id = ProcessId::try_from(container_id)?;
        let text = serde_json::to_vec(plan).map_err(MessageError::Malformed)?;
        let terminal = streams.is_none();
        let mut fds = Vec::new();
        let plan = if text.len() <= INLINE_PLAN_MAX_BYTES {
            ExecSource::Inline(Box::new(plan.clone()))
        } else {
            fds.push(socket::memory_file(&text).map_err(io_error("write an exec plan"))?);
            ExecSource::Attached
        };
        fds.extend(streams.into_iter().flatten());
        // Registered first: the exit of something quick overtakes nothing.
        let (sender, record) = oneshot::channel();
        self.inner
            .shared
            .waiting()
            .execs
            .insert(exec_id.clone(), sender);
        let exit = ExecExit {
            inner: Arc::clone(&self.inner),
            id: exec_id.clone(),
            record,
        };
        let request = Request::Exec {
            exec_id,
            container_id,
            plan,
            terminal,
        };
        Ok((self.start(request, fds).await?, exit))
    }

    /// The descriptors of a process that runs, for a daemon that has none because it is new.
    ///
    /// # Errors
    /// `Refused(NotFound)`, `Refused(Exited)`, or any other.
    pub async fn handles(&self, id: &str) -> Result<Launched, ShimClientError> {
        self.start(
            Request::Handles {
                id: ProcessId::try_from(id)?,
            },
            Vec::new(),
        )
        .await
    }

    /// The container's log file has been renamed: goes on in a new one.
    ///
    /// # Errors
    /// `Refused(NotFound)`, `Refused(Log)` with the old file still in use, or any other.
    pub async fn reopen_log(&self, container_id: &str) -> Result<(), ShimClientError> {
        let container_id = ProcessId::try_from(container_id)?;
        self.done(Request::ReopenLog { container_id }).await
    }

    /// Sends what a container writes from now on into these pipes as well.
    ///
    /// # Errors
    /// `Refused(NotFound)`, `Refused(Exited)`, `Refused(Crowded)`, or any other.
    pub async fn attach(
        &self,
        container_id: &str,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<(), ShimClientError> {
        let request = Request::Attach {
            container_id: ProcessId::try_from(container_id)?,
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
        };
        let pipes = stdout.into_iter().chain(stderr).collect();
        match self.request(request, pipes).await? {
            (Reply::Done, _) => Ok(()),
            _ => Err(ShimClientError::Unexpected),
        }
    }

    /// Lets a container with `stdin_once` read the end of its input.
    ///
    /// # Errors
    /// `Refused(NotFound)`, or any other.
    pub async fn close_stdin(&self, container_id: &str) -> Result<(), ShimClientError> {
        let container_id = ProcessId::try_from(container_id)?;
        self.done(Request::CloseStdin { container_id }).await
    }

    /// Everything the shim holds, in the order of ids; longer than a page, not all at one moment.
    ///
    /// # Errors
    /// Any.
    pub async fn list(&self) -> Result<Vec<HeldProcess>, ShimClientError> {
        let mut all: Vec<HeldProcess> = Vec::new();
        loop {
            let after = all.last().map(|held| held.id.clone());
            let (reply, _) = self.request(Request::List { after }, Vec::new()).await?;
            let Reply::Listed { processes, more } = reply else {
                return Err(ShimClientError::Unexpected);
            };
            let progress = !processes.is_empty();
            all.extend(processes);
            if !more || !progress {
                return Ok(all);
            }
        }
    }

    /// What has become of a launch that may have been begun before this connection.
    ///
    /// # Errors
    /// Any.
    pub async fn look(&self, id: &str) -> Result<Seen, ShimClientError> {
        let id = ProcessId::try_from(id)?;
        let (reply, _) = self.request(Request::Look { id }, Vec::new()).await?;
        match reply {
            Reply::Seen {
                held: Some(held),
                started_at_ns,
                ..
            } => Ok(Seen::Held(held, started_at_ns)),
            Reply::Seen {
                launching: true, ..
            } => Ok(Seen::UnderWay),
            Reply::Seen { .. } => Ok(Seen::Nothing),
            _ => Err(ShimClientError::Unexpected),
        }
    }

    /// The exit with this sequence number is in the database: the shim may forget the record.
    ///
    /// # Errors
    /// Any; the record is then sent again, on this connection's successor.
    pub async fn acknowledge(&self, sequence: u64) -> Result<(), ShimClientError> {
        self.done(Request::Acknowledge { sequence }).await
    }

    /// Drops what the shim holds of an exited process. One it does not hold is no error.
    ///
    /// # Errors
    /// `Refused(Running)`, or any other.
    pub async fn forget(&self, id: &str) -> Result<(), ShimClientError> {
        self.done(Request::Forget {
            id: ProcessId::try_from(id)?,
        })
        .await
    }

    /// Hands over a process that a former shim started. `true`: its exit comes as an event when it
    /// ends, or now if it has; `false`: it is gone and nobody knows how, and an event says so.
    ///
    /// # Errors
    /// `Refused(InUse)` when the id is another process's, or any other.
    pub async fn adopt(&self, orphan: Orphan<'_>) -> Result<bool, ShimClientError> {
        let Orphan {
            id,
            kind,
            plan_path,
            pid,
            start_time,
            pidfd,
            terminal,
            lost_log,
        } = orphan;
        let request = Request::Adopt(Adopt {
            id: ProcessId::try_from(id)?,
            kind,
            plan_path: plan_path.map(Path::to_owned),
            pid,
            start_time,
            pidfd_attached: pidfd.is_some(),
            terminal_attached: terminal.is_some(),
            lost_log_lines: lost_log.0,
            lost_log_bytes: lost_log.1,
        });
        match self
            .request(request, pidfd.into_iter().chain(terminal).collect())
            .await?
        {
            (Reply::Adopted { running }, _) => Ok(running),
            _ => Err(ShimClientError::Unexpected),
        }
    }

    /// What logs lack, of those of which the shim has told since the last time.
    #[must_use]
    pub fn take_log_losses(&self) -> Vec<LogLoss> {
        let losses = std::mem::take(&mut self.inner.shared.waiting().losses);
        losses.into_values().collect()
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// Any.
    pub async fn ping(&self) -> Result<(), ShimClientError> {
        self.done(Request::Ping).await
    }

    async fn done(&self, request: Request) -> Result<(), ShimClientError> {
        match self.request(request, Vec::new()).await? {
            (Reply::Done, _) => Ok(()),
            _ => Err(ShimClientError::Unexpected),
        }
    }

    async fn start(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Launched, ShimClientError> {
        let (reply, fds) = self.request(request, fds).await?;
        let Reply::Launched {
            pid,
            start_time,
            terminal: has_terminal,
            started_at_ns,
            identity,
        } = reply
        else {
            return Err(ShimClientError::Unexpected);
        };
        let mut fds = fds.into_iter();
        let pidfd = fds.next().ok_or(ShimClientError::Unexpected)?;
        let terminal = if has_terminal { fds.next() } else { None };
        if terminal.is_some() != has_terminal {
            return Err(ShimClientError::Unexpected);
        }
        Ok(Launched {
            pid,
            start_time,
            started_at_ns,
            identity,
            pidfd,
            terminal,
            outputs: fds.collect(),
        })
    }

    async fn request(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), ShimClientError> {
        let shared = &self.inner.shared;
        let (sender, answer) = oneshot::channel();
        let number = {
            let mut waiting = shared.waiting();
            if waiting.gone {
                return Err(ShimClientError::Disconnected);
            }
            if waiting.answers.len() >= WAITING_MAX {
                return Err(ShimClientError::Busy);
            }
            waiting.next_number += 1;
            let number = waiting.next_number;
            waiting.answers.insert(number, sender);
            number
        };
        let _registered = Registered { shared, number };
        let bytes = encode(&ToShim::Request { number, request })?;
        let exchange = async {
            shared
                .socket
                .send(&bytes, &fds)
                .await
                .map_err(|_| ShimClientError::Disconnected)?;
            drop(fds);
            answer.await.map_err(|_| ShimClientError::Disconnected)
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok((Ok(reply), fds))) => Ok((reply, fds)),
            Ok(Ok((Err(Refusal::Launch(error)), _))) => Err(ShimClientError::Launch(error)),
            Ok(Ok((Err(refusal), _))) => Err(ShimClientError::Refused(refusal)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ShimClientError::Timeout {
                after: self.timeout,
            }),
        }
    }
}

/// Hands out what arrives until the connection ends.
async fn read(shared: Arc<Shared>, events: mpsc::Sender<ShimEvent>) {
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    while let Ok((length, fds)) = shared.socket.receive(&mut buffer).await {
        match decode(&buffer[..length]) {
            Ok(FromShim::Answer { number, result }) => {
                let waiting = shared.waiting().answers.remove(&number);
                if let Some(sender) = waiting {
                    // Nobody waits any more: the descriptors are closed here.
                    let _ = sender.send((result, fds));
                }
            }
            Ok(FromShim::Exited(record)) => {
                let session = shared.waiting().execs.remove(&record.id);
                if let Some(sender) = session {
                    // A session that went away does not wait.
                    let _ = sender.send(record.clone());
                }
                match events.try_send(ShimEvent::Exited(record)) {
                    // Nobody listens: the record stays with the shim.
                    Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                    // More than the shim's window: it does not keep to the protocol.
                    Err(mpsc::error::TrySendError::Full(_)) => break,
                }
            }
            Ok(FromShim::LogLoss(loss)) => {
                let none_waited = {
                    let losses = &mut shared.waiting().losses;
                    let none_waited = losses.is_empty();
                    losses.insert(loss.id.clone(), loss);
                    none_waited
                };
                // One event for all that wait: exits must have room.
                if none_waited {
                    let _ = events.try_send(ShimEvent::LogLoss);
                }
            }
            Ok(FromShim::Welcome { .. } | FromShim::Incompatible { .. }) | Err(_) => break,
        }
    }
    let abandoned = {
        let mut waiting = shared.waiting();
        waiting.gone = true;
        (
            std::mem::take(&mut waiting.answers),
            std::mem::take(&mut waiting.execs),
        )
    };
    drop(abandoned);
    // Here it may wait: nothing more is read. A daemon that has stopped listening ends it.
    let _ = events.send(ShimEvent::Disconnected).await;
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> ShimClientError {
    move |source| ShimClientError::Io { doing, source }
}

#[cfg(test)]
mod tests;
