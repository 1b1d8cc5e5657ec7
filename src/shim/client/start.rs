//! Finding the shim, or starting it.
//!
//! ```text
//! lock ─► connect ─┬─ welcome ─────────────────────────────► done
//!                  ├─ nobody there, or it was just ending ─► start ─► "ready" ─► connect again
//!                  └─ another version ─────────────────────► error
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::socket::Socket;
use super::{ShimClientError, io_error};
use crate::shim::protocol::{
    FromShim, MESSAGE_MAX_BYTES, SOCKET_NAME, ToShim, VERSION, decode, encode,
};
use crate::shim::server::READY;

/// How long another starter may take.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// How long the shim may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A shim may end between being found and being greeted, once; twice is odd, three times wrong.
const ATTEMPTS: usize = 3;
/// What is read of its complaint.
const COMPLAINT_MAX_BYTES: u64 = 4096;

pub(super) async fn connect_or_start(
    state: &Path,
    exe: &Path,
) -> Result<(Socket, i32), ShimClientError> {
    let state = std::path::absolute(state).map_err(io_error("resolve the state directory"))?;
    let _lock = lock(&state.join("shim")).await?;
    let path = state.join(SOCKET_NAME);
    for _ in 0..ATTEMPTS {
        if let Some(greeted) = greet(&path).await? {
            return Ok(greeted);
        }
        start(&state, exe).await?;
    }
    match greet(&path).await? {
        Some(greeted) => Ok(greeted),
        None => Err(failed(exe, "it ends as soon as it has started".to_owned())),
    }
}

/// Of several starters one goes on at a time.
async fn lock(dir: &Path) -> Result<File, ShimClientError> {
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error("make the shim directory"))?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options
        .open(dir.join("start.lock"))
        .map_err(io_error("open the starters' lock"))?;
    let locked = async {
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => sleep(LOCK_RETRY).await,
                Err(errno) => return Err(io::Error::from(errno)),
            }
        }
    };
    timeout(LOCK_TIMEOUT, locked)
        .await
        .map_err(|_| ShimClientError::Timeout {
            after: LOCK_TIMEOUT,
        })?
        .map_err(io_error("take the starters' lock"))?;
    Ok(file)
}

/// `None`: there is no shim, or it has ended meanwhile.
async fn greet(path: &Path) -> Result<Option<(Socket, i32)>, ShimClientError> {
    let socket = match Socket::connect(path) {
        Ok(socket) => socket,
        Err(error) => {
            let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
            if nobody.contains(&error.kind()) {
                return Ok(None);
            }
            return Err(io_error("connect to the shim")(error));
        }
    };
    let hello = encode(&ToShim::Hello { version: VERSION })?;
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    let exchange = async {
        socket.send(&hello, &[]).await?;
        socket.receive(&mut buffer).await
    };
    let answered =
        timeout(HELLO_TIMEOUT, exchange)
            .await
            .map_err(|_| ShimClientError::Timeout {
                after: HELLO_TIMEOUT,
            })?;
    let Ok((length, _)) = answered else {
        return Ok(None);
    };
    match decode(&buffer[..length])? {
        FromShim::Welcome { pid } => Ok(Some((socket, pid))),
        FromShim::Incompatible { version } => Err(ShimClientError::Incompatible { version }),
        FromShim::Answer { .. } | FromShim::Exited(_) | FromShim::LogLoss(_) => {
            Err(ShimClientError::Unexpected)
        }
    }
}

/// Runs the binary and waits until it says that it is ready. It leaves this process's session and
/// becomes a child of init by itself; what is reaped here is its first, short-lived process.
async fn start(state: &Path, exe: &Path) -> Result<(), ShimClientError> {
    let mut command = Command::new(exe);
    command.arg("shim").arg("--state").arg(state);
    // Nothing of the daemon's environment (NOTIFY_SOCKET, LISTEN_FDS, proxies) is the shim's.
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| failed(exe, error.to_string()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut said = Vec::new();
    let mut complaint = Vec::new();
    let started = async {
        child.wait().await?;
        if let Some(stdout) = stdout {
            stdout
                .take(COMPLAINT_MAX_BYTES)
                .read_to_end(&mut said)
                .await?;
        }
        if let (Some(stderr), false) = (stderr, said.ends_with(READY)) {
            stderr
                .take(COMPLAINT_MAX_BYTES)
                .read_to_end(&mut complaint)
                .await?;
        }
        Ok::<(), io::Error>(())
    };
    match timeout(START_TIMEOUT, started).await {
        Ok(Ok(())) if said.ends_with(READY) => Ok(()),
        Ok(Ok(())) => {
            let complaint = String::from_utf8_lossy(&complaint);
            Err(failed(
                exe,
                format!("it did not say ready, but: {}", complaint.trim()),
            ))
        }
        Ok(Err(error)) => Err(failed(exe, error.to_string())),
        Err(_) => Err(failed(
            exe,
            format!("it was not ready within {START_TIMEOUT:?}"),
        )),
    }
}

fn failed(exe: &Path, reason: String) -> ShimClientError {
    ShimClientError::Start {
        exe: exe.to_owned(),
        reason,
    }
}
