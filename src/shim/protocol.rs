//! What daemon and shim say to each other: one `SOCK_SEQPACKET` message each, JSON inside.
//!
//! The daemon begins with [`ToShim::Hello`]; the shim answers [`FromShim::Welcome`], or
//! [`FromShim::Incompatible`] and closes. From then on requests carry a number that their answer
//! repeats, answers may overtake each other, and events come between them. Descriptors travel
//! beside the message they belong to, in the order its documentation gives.
//!
//! Events are sent again, in order, on every new connection until they are acknowledged: whoever
//! receives them treats a record it has already seen as done.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runtime::launch::{Identity, LaunchError, PodInitPlan};
use crate::runtime::plan::ExecPlan;

/// Spoken by both sides or not at all.
pub const VERSION: u32 = 6;
/// The longest message.
pub const MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// The longest exec plan that goes inside a message; a longer one goes in a sealed memory file.
pub const INLINE_PLAN_MAX_BYTES: usize = 48 * 1024;
/// The longest plan in a file, of either sort.
pub const PLAN_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Processes in one page of a list.
pub const LIST_PAGE: usize = 64;
/// Exit records that are under way and not acknowledged; more are held back.
pub const EVENT_WINDOW: usize = 256;
/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "shim.sock";
/// The exit code of a process of which nobody knows how it ended.
pub const LOST_EXIT_CODE: i32 = 255;

/// The name of a process: a container id, a sandbox id, or an exec's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProcessId(String);

/// An id that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("process id {0:?} is not 1 to 128 characters of a-z, 0-9, '-', '_' and '.'")]
pub struct BadProcessId(String);

impl ProcessId {
    /// Longest id.
    pub const MAX_BYTES: usize = 128;

    /// The id as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ProcessId {
    type Error = BadProcessId;

    fn try_from(id: String) -> Result<ProcessId, BadProcessId> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        if (1..=Self::MAX_BYTES).contains(&id.len()) && id.bytes().all(allowed) {
            return Ok(ProcessId(id));
        }
        Err(BadProcessId(id.chars().take(Self::MAX_BYTES).collect()))
    }
}

impl TryFrom<&str> for ProcessId {
    type Error = BadProcessId;

    fn try_from(id: &str) -> Result<ProcessId, BadProcessId> {
        ProcessId::try_from(id.to_owned())
    }
}

impl From<ProcessId> for String {
    fn from(id: ProcessId) -> String {
        id.0
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a process is to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessKind {
    /// The first process of a container.
    Container,
    /// Process 1 of a pod with a shared PID namespace; its id is the sandbox's.
    PodInit,
    /// A further process in a container.
    Exec,
}

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToShim {
    /// The first message.
    Hello {
        /// [`VERSION`] of the daemon.
        version: u32,
    },
    /// Everything else.
    Request {
        /// Chosen by the daemon, repeated in the answer.
        number: u64,
        /// What to do.
        request: Request,
    },
}

/// What the daemon may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Start a container. Asked again for one that runs or is about to, the answer is the same.
    /// Answer: [`Reply::Launched`].
    Launch {
        /// The container.
        container_id: ProcessId,
        /// Its `LaunchPlan` as JSON.
        plan_path: PathBuf,
    },
    /// Start the init of a pod. Answer: [`Reply::Launched`].
    PodInit {
        /// The sandbox.
        sandbox_id: ProcessId,
        /// What it joins.
        plan: PodInitPlan,
    },
    /// Start a process in a container. It is ended if the connection closes before the answer.
    /// Descriptors: the plan when it is attached; then standard
    /// input, output and error, unless it gets a terminal. Answer: [`Reply::Launched`].
    Exec {
        /// The new process.
        exec_id: ProcessId,
        /// Whose namespaces it joins.
        container_id: ProcessId,
        /// What to run.
        plan: ExecSource,
        /// Whether it gets a terminal, whose master side goes to the daemon.
        terminal: bool,
    },
    /// The log file has been renamed: go on in a new one. Answer: [`Reply::Done`].
    ReopenLog {
        /// The container.
        container_id: ProcessId,
    },
    /// Send what a container writes from now on to a session as well, until it ends or the session
    /// closes its pipes, or takes nothing for too long. Descriptors: the writing end of a pipe for
    /// each stream. Answer: [`Reply::Done`].
    Attach {
        /// The container.
        container_id: ProcessId,
        /// Whether its standard output is wanted; with a terminal, all it shows.
        stdout: bool,
        /// Whether its standard error is wanted.
        stderr: bool,
    },
    /// Let a container with `stdin_once` read the end of its input once the last session has
    /// closed it. Answer: [`Reply::Done`].
    CloseStdin {
        /// The container.
        container_id: ProcessId,
    },
    /// The descriptors of a process that runs, for a daemon that has none because it is new.
    /// Answer: [`Reply::Launched`].
    Handles {
        /// Container, sandbox or exec.
        id: ProcessId,
    },
    /// What the shim holds, in the order of ids. Answer: [`Reply::Listed`].
    List {
        /// The last id of the page before.
        after: Option<ProcessId>,
    },
    /// What has become of a launch that the asker may have begun in a former life. Answer:
    /// [`Reply::Seen`].
    Look {
        /// Container, sandbox or exec.
        id: ProcessId,
    },
    /// The exit with this sequence number is in the database. Answer: [`Reply::Done`].
    Acknowledge {
        /// Of the exit record.
        sequence: u64,
    },
    /// Drop an exited process and close what belongs to it. Answer: [`Reply::Done`], also when it
    /// is not held.
    Forget {
        /// Container, sandbox or exec.
        id: ProcessId,
    },
    /// Take over a process that a former shim started. Descriptors: its pidfd, then its terminal,
    /// where announced. Answer: [`Reply::Adopted`].
    Adopt(Adopt),
    /// Answer: [`Reply::Done`].
    Ping,
}

/// Which process to adopt, and what the daemon still has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopt {
    /// Container, sandbox or exec.
    pub id: ProcessId,
    /// What it is.
    pub kind: ProcessKind,
    /// Its launch plan, for a container: where its output goes.
    pub plan_path: Option<PathBuf>,
    /// Its process id in the shim's PID namespace.
    pub pid: i32,
    /// When it started, as the shim said then.
    pub start_time: u64,
    /// The daemon's pidfd is attached: the only way to learn how an already dead one ended.
    pub pidfd_attached: bool,
    /// The master side of its terminal is attached.
    pub terminal_attached: bool,
    /// Log entries that former shims could not write.
    #[serde(default)]
    pub lost_log_lines: u64,
    /// Their bytes.
    #[serde(default)]
    pub lost_log_bytes: u64,
}

/// Where an exec plan is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecSource {
    /// In the message.
    Inline(Box<ExecPlan>),
    /// In the first descriptor: a regular file, read from its beginning.
    Attached,
}

/// From the shim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromShim {
    /// The hello was understood.
    Welcome {
        /// The shim's own process id.
        pid: i32,
    },
    /// The daemon speaks another version; the shim closes.
    Incompatible {
        /// [`VERSION`] of the shim.
        version: u32,
    },
    /// To a request.
    Answer {
        /// The request's number.
        number: u64,
        /// What came of it.
        result: Result<Reply, Refusal>,
    },
    /// A process has ended. Its output up to then is in its log.
    Exited(ExitRecord),
    /// Something could not be written to a log. Not acknowledged: what is said later says it all,
    /// and everything is said again on a new connection.
    LogLoss(LogLoss),
}

/// What the log of a container lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLoss {
    /// Whose.
    pub id: ProcessId,
    /// Log entries that could not be written, from the beginning.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why the last of them could not; empty when this shim has not seen it.
    pub why: String,
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// A process runs. Descriptors: its pidfd; then its terminal where announced, else what the
    /// shim reads its output from, as far as it is open.
    Launched {
        /// Its id in the shim's PID namespace.
        pid: i32,
        /// When it started, in clock ticks since boot (`proc_pid_stat(5)`, field 22).
        start_time: u64,
        /// When it was seen to run, nanoseconds since 1970, UTC: never after its exit. 0 for what a
        /// former shim started.
        #[serde(default)]
        started_at_ns: i64,
        /// A terminal's master side is attached.
        terminal: bool,
        /// Who it runs as; `None` for the init of a pod, and for what a former shim started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<Identity>,
    },
    /// One page.
    Listed {
        /// In the order of ids.
        processes: Vec<HeldProcess>,
        /// Whether another page follows.
        more: bool,
    },
    /// All that is known of one id at one moment.
    Seen {
        /// Its launch is under way; asking for it again joins it.
        launching: bool,
        /// It runs, or has run.
        held: Option<HeldProcess>,
        /// When it was seen to run, nanoseconds since 1970; 0 if that is not known.
        started_at_ns: i64,
    },
    /// The process is held from now on; when it has ended its exit event follows.
    Adopted {
        /// Whether it runs.
        running: bool,
    },
}

/// A process the shim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldProcess {
    /// Its id.
    pub id: ProcessId,
    /// What it is.
    pub kind: ProcessKind,
    /// Its id in the shim's PID namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// How it ended; `None` while it runs.
    pub exit: Option<ExitRecord>,
    /// Log entries that could not be written.
    pub lost_log_lines: u64,
    /// Their bytes.
    pub lost_log_bytes: u64,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Counts up by one from record to record, across restarts of the shim; begins anew with a
    /// fresh state directory.
    pub sequence: u64,
    /// Who.
    pub id: ProcessId,
    /// What it was.
    pub kind: ProcessKind,
    /// Exit code; 128 + signal for a killed one, as shells say it; [`LOST_EXIT_CODE`] when nobody
    /// knows.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Nobody knows how it ended: its shim died before, on a kernel that does not keep it
    /// (reason `ShimLost`).
    pub lost: bool,
    /// When it was reaped, nanoseconds since 1970, UTC.
    pub at_ns: i64,
    /// What the kernel had killed in its cgroup for want of memory, if that was counted and could
    /// still be read when it was reaped.
    #[serde(default)]
    pub oom_kills: Option<u64>,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The runtime could not start the process.
    #[error("{}", .0.message)]
    Launch(LaunchError),
    /// The log could not be opened.
    #[error("{0}")]
    Log(String),
    /// The FIFOs or the plan could not be used.
    #[error("{0}")]
    Prepare(String),
    /// No such process is held.
    #[error("the shim holds no process {0}")]
    NotFound(ProcessId),
    /// The process runs, and the request is for one that does not.
    #[error("process {0} is running")]
    Running(ProcessId),
    /// The process has ended, and the request is for one that has not.
    #[error("process {0} has exited")]
    Exited(ProcessId),
    /// The id is in use by something else.
    #[error("process id {0} is in use")]
    InUse(ProcessId),
    /// It holds as many processes as its limit of open files allows.
    #[error("the shim holds {capacity} processes, as many as its limit of open files allows")]
    Full {
        /// How many.
        capacity: usize,
    },
    /// As many sessions listen to the process as may.
    #[error("{most} streams of sessions are attached already: end one of them")]
    Crowded {
        /// How many.
        most: usize,
    },
    /// Descriptors missing, too many, or of the wrong sort.
    #[error("{0}")]
    Descriptors(String),
}

/// A message that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`MESSAGE_MAX_BYTES`].
    #[error("message of {bytes} bytes exceeds the limit of {MESSAGE_MAX_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON, or not a message of this version.
    #[error("message is malformed")]
    Malformed(#[source] serde_json::Error),
}

/// The bytes of a message.
///
/// # Errors
/// [`MessageError::TooLong`]; `Malformed` when it has no representation (a path that is not UTF-8).
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let bytes = serde_json::to_vec(message).map_err(MessageError::Malformed)?;
    if bytes.len() > MESSAGE_MAX_BYTES {
        return Err(MessageError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// The message in `bytes`.
///
/// # Errors
/// [`MessageError::Malformed`].
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, MessageError> {
    serde_json::from_slice(bytes).map_err(MessageError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_checked_where_it_comes_in() {
        assert!(ProcessId::try_from("a".repeat(64)).is_ok());
        for bad in ["", "../x", "A", "a/b", "a b", "\u{e9}", &"a".repeat(129)] {
            assert!(ProcessId::try_from(bad).is_err(), "{bad}");
            let text =
                format!(r#"{{"request":{{"number":1,"request":{{"forget":{{"id":"{bad}"}}}}}}}}"#);
            assert!(decode::<ToShim>(text.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_full_page_of_the_longest_entries_fits_into_a_message() {
        let id = ProcessId::try_from("z".repeat(ProcessId::MAX_BYTES)).unwrap();
        let exit = ExitRecord {
            sequence: u64::MAX,
            id: id.clone(),
            kind: ProcessKind::Container,
            code: i32::MIN,
            signal: Some(i32::MIN),
            lost: false,
            at_ns: i64::MIN,
            oom_kills: Some(u64::MAX),
        };
        let held = HeldProcess {
            id,
            kind: ProcessKind::Container,
            pid: i32::MIN,
            start_time: u64::MAX,
            exit: Some(exit),
            lost_log_lines: u64::MAX,
            lost_log_bytes: u64::MAX,
        };
        let reply = Reply::Listed {
            processes: vec![held; LIST_PAGE],
            more: true,
        };
        encode(&FromShim::Answer {
            number: u64::MAX,
            result: Ok(reply),
        })
        .unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = decode::<ToShim>(&bytes);
            let _ = decode::<FromShim>(&bytes);
        }
    }
}
