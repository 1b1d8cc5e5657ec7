//! ExecSync: a command in a container, its output and its exit code. A session with the shim; no
//! state changes.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front, validate};
use crate::id::ContainerId;
use crate::proto::cri as v1;
use crate::runtime::plan::ExecPlan;
use crate::streaming::{Running, exec_plan};

/// What is kept of each stream; the rest is read and thrown away, without an error (CRI, and
/// CVE-2022-1708).
const OUTPUT_MAX: usize = 16 * 1024 * 1024;
/// How much of a command an error repeats.
const COMMAND_SHOWN: usize = 200;
/// Longest wait for a killed command to be gone.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Runs a command in a running container.
pub(in crate::cri) async fn exec_sync(
    front: Front,
    request: v1::ExecSyncRequest,
    deadline: Deadline,
) -> Result<v1::ExecSyncResponse, CallError> {
    let args = validate::words("cmd", request.cmd)?;
    if args.first().is_none_or(String::is_empty) {
        return Err(CallError::invalid("cmd", "is missing"));
    }
    if request.timeout < 0 {
        return Err(CallError::invalid("timeout", "is negative"));
    }
    let to = "host of a command";
    let because = "only a running container can execute one";
    let found = front
        .running_container(request.container_id, to, because)
        .await?;
    let id = found.id;
    let command = args.join(" ").chars().take(COMMAND_SHOWN).collect();
    let plan = exec_plan(&front.info.state_dir, &id, args).await;
    let plan = plan.map_err(CallError::Failed)?;
    let patience = match u64::try_from(request.timeout) {
        Ok(0) | Err(_) => deadline.left(),
        Ok(seconds) => Duration::from_secs(seconds).min(deadline.left()),
    };
    let timed_out = CallError::ExecTimeout {
        command,
        seconds: patience.as_secs_f64(),
    };
    let until = Instant::now() + patience;
    let starting = Session::start(&front, &id, plan);
    let Ok(started) = tokio::time::timeout_at(until, starting).await else {
        return Err(timed_out);
    };
    let mut session = started?;
    match tokio::time::timeout_at(until, session.run()).await {
        Ok(result) => result,
        Err(_) => {
            session.running.end(END_PATIENCE.min(deadline.left())).await;
            Err(timed_out)
        }
    }
}

struct Session {
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    running: Running,
}

impl Session {
    async fn start(front: &Front, id: &ContainerId, plan: ExecPlan) -> Result<Self, CallError> {
        let broken = |error: std::io::Error| CallError::Failed(format!("cannot exec: {error}"));
        let nothing = std::fs::File::open("/dev/null").map_err(broken)?;
        let (stdout_end, stdout) = output_pipe().map_err(broken)?;
        let (stderr_end, stderr) = output_pipe().map_err(broken)?;
        let streams = [OwnedFd::from(nothing), stdout_end, stderr_end];
        let started = Running::start(&front.shim()?, id, plan, Some(streams)).await;
        Ok(Self {
            stdout,
            stderr,
            running: started.map_err(CallError::Failed)?,
        })
    }

    async fn run(&mut self) -> Result<v1::ExecSyncResponse, CallError> {
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let exit = {
            let reading = async {
                tokio::join!(
                    read_to_end(&mut self.stdout, &mut stdout),
                    read_to_end(&mut self.stderr, &mut stderr)
                );
            };
            tokio::pin!(reading);
            let mut read = false;
            loop {
                tokio::select! {
                    exit = self.running.wait() => break exit,
                    () = &mut reading, if !read => read = true,
                }
            }
        };
        // What it wrote is in the pipes by now; what its children still write is not its answer.
        read_ready(&self.stdout, &mut stdout);
        read_ready(&self.stderr, &mut stderr);
        let record = exit.map_err(CallError::Failed)?;
        Ok(v1::ExecSyncResponse {
            stdout,
            stderr,
            exit_code: record.code,
        })
    }
}

/// The command's end and ours.
fn output_pipe() -> std::io::Result<(OwnedFd, pipe::Receiver)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Ours alone waits in the event loop; the command's own end blocks as it expects.
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK)?;
    Ok((writer, pipe::Receiver::from_owned_fd(reader)?))
}

/// Reads to the end, keeping the first 16 MiB.
async fn read_to_end(from: &mut pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        keep(kept, &buffer[..count]);
    }
}

/// Reads what is there, without waiting. Past tokio, whose `try_read` believes that nothing is
/// there until its own loop has heard of it; the descriptor does not block.
fn read_ready(from: &pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = vec![0; 64 * 1024];
    // A pipe holds at most this much; whoever goes on writing does not hold us up.
    for _ in 0..16 {
        match rustix::io::read(from, &mut buffer) {
            Ok(count @ 1..) => keep(kept, &buffer[..count]),
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

fn keep(kept: &mut Vec<u8>, piece: &[u8]) {
    let room = OUTPUT_MAX - kept.len();
    kept.extend_from_slice(&piece[..piece.len().min(room)]);
}
