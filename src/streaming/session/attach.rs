//! Attach: the streams of a container's own process, beside its log and beside other sessions.
//!
//! What it writes comes from the shim through pipes; what the client writes goes into its FIFO or
//! its terminal. An input that is there for the first session alone ends with that.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tokio::sync::watch;

use super::channels::Channels;
use super::pump;
use super::{AttachAsk, Cut, Node, conclude, cut_off};
use crate::runtime::plan::Stdio;
use crate::shim::client::ShimClient;
use crate::streaming::channel::{Activity, Gone, Inlet, Outlet};
use crate::streaming::command;
use crate::streaming::descriptor::Descriptor;
use crate::streaming::status::Ending;
use crate::sys::async_fd;

/// What the pipes from the shim hold.
const PIPE_BYTES: usize = 256 * 1024;
/// How long a process may take to be gone after its last output.
const END_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// What a session is attached to.
struct Attached {
    shim: ShimClient,
    stdio: Stdio,
    pidfd: OwnedFd,
    terminal: Option<Descriptor>,
    stdin: Option<Descriptor>,
    stdout: Option<Descriptor>,
    stderr: Option<Descriptor>,
}

/// Runs it to its end.
pub(super) async fn run(node: &Node, ask: AttachAsk, mut channels: Channels, activity: &Activity) {
    let mut attached = match attach(node, &ask).await {
        Ok(attached) => attached,
        Err(why) => return conclude(node, channels, &Ending::Failed(why), activity).await,
    };
    let line = channels.line();
    let outcome = tokio::select! {
        ended = pump_all(&mut attached, &ask, &mut channels) => ended.map_err(|Gone| Cut::Gone),
        cut = node.cut(&line, activity) => Err(cut),
    };
    if ask.stdin && attached.stdio.stdin_once {
        close_stdin(&attached.shim, &ask).await;
    }
    drop(attached);
    match outcome {
        Ok(ending) => conclude(node, channels, &ending, activity).await,
        Err(Cut::Gone) => {}
        Err(cut) => cut_off(channels, cut).await,
    }
}

async fn attach(node: &Node, ask: &AttachAsk) -> Result<Attached, String> {
    let broken = |error: std::io::Error| format!("cannot attach: {error}");
    let id = ask.container.as_str();
    let stdio = command::launch_plan(&node.state_dir, &ask.container)
        .await?
        .stdio;
    let shim = node.shim()?;
    let handles = shim.handles(id).await.map_err(|error| error.to_string())?;
    let terminal = handles
        .terminal
        .map(Descriptor::new)
        .transpose()
        .map_err(broken)?;
    let stdin = match &terminal {
        _ if !(ask.stdin && ask.has_stdin) => None,
        Some(terminal) => Some(terminal.try_clone().map_err(broken)?),
        None => Some(open_stdin(&stdio.fifo_dir).map_err(broken)?),
    };
    let (mut stdout, mut stderr) = (None, None);
    let pipe = |wanted: bool, ours: &mut Option<Descriptor>| {
        if !wanted {
            return Ok(None);
        }
        let (reader, writer) = Descriptor::from_process()?;
        // Refused at the user's limit of pipe pages; the default size does as well, slower.
        let _ = rustix::pipe::fcntl_setpipe_size(reader.fd(), PIPE_BYTES);
        *ours = Some(reader);
        Ok(Some(writer))
    };
    let to_stdout = pipe(ask.stdout, &mut stdout).map_err(broken)?;
    let to_stderr = pipe(ask.stderr && !ask.has_tty, &mut stderr).map_err(broken)?;
    let attaching = shim.attach(id, to_stdout, to_stderr).await;
    attaching.map_err(|error| error.to_string())?;
    Ok(Attached {
        shim,
        stdio,
        pidfd: handles.pidfd,
        terminal,
        stdin,
        stdout,
        stderr,
    })
}

/// The writing end of a container's input. The container, or the shim for it, has the other end
/// open for as long as it lives; once it is closed there is no input any more.
fn open_stdin(fifo_dir: &Path) -> std::io::Result<Descriptor> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(fifo_dir.join("stdin"), flags, Mode::empty());
    Descriptor::new(fd.map_err(|errno| match errno {
        rustix::io::Errno::NXIO => std::io::Error::other("the container's input has ended"),
        errno => errno.into(),
    })?)
}

async fn close_stdin(shim: &ShimClient, ask: &AttachAsk) {
    if let Err(error) = shim.close_stdin(ask.container.as_str()).await {
        // Mostly because it has ended.
        tracing::debug!(%error, container = %ask.container, "cannot close an input");
    }
}

/// Moves everything until the process has ended and its output is with the client.
async fn pump_all(
    attached: &mut Attached,
    ask: &AttachAsk,
    channels: &mut Channels,
) -> Result<Ending, Gone> {
    let (from, resize) = (channels.stdin.take(), channels.resize.take());
    let to = attached.stdin.take();
    let attached = &*attached;
    let inputs = async {
        tokio::join!(input(attached, ask, from, to), async {
            if let (Some(from), Some(terminal)) = (resize, &attached.terminal) {
                pump::resize(from, terminal).await;
            }
        });
        // The process decides when it is over.
        std::future::pending::<()>().await;
    };
    let outputs = async {
        tokio::try_join!(
            output(attached.stdout.as_ref(), channels.stdout.as_mut()),
            output(attached.stderr.as_ref(), channels.stderr.as_mut()),
        )?;
        let some = attached.stdout.is_some() || attached.stderr.is_some();
        Ok(ending(attached, some).await)
    };
    tokio::select! {
        ended = outputs => ended,
        () = inputs => Ok(Ending::Success),
    }
}

async fn input(attached: &Attached, ask: &AttachAsk, from: Option<Inlet>, to: Option<Descriptor>) {
    let (Some(from), Some(to)) = (from, to) else {
        return;
    };
    pump::input(from, &to).await;
    drop(to);
    if attached.stdio.stdin_once {
        close_stdin(&attached.shim, ask).await;
    }
}

async fn output(from: Option<&Descriptor>, to: Option<&mut Outlet>) -> Result<(), Gone> {
    let never = watch::Sender::new(false);
    match (from, to) {
        (Some(from), Some(to)) => pump::output(from, to, &never).await,
        _ => Ok(()),
    }
}

/// How it ended, once there is no more output; without any, when the process has ended.
async fn ending(attached: &Attached, had_outputs: bool) -> Ending {
    let ended = async {
        let pidfd = attached.pidfd.as_fd().try_clone_to_owned();
        let Ok(Ok(pidfd)) = pidfd.map(async_fd::register) else {
            return;
        };
        // Readable when it has ended; an error is an end of the runtime.
        let _ = pidfd.readable().await.map(drop);
    };
    if !had_outputs {
        ended.await;
        return Ending::Success;
    }
    match tokio::time::timeout(END_PATIENCE, ended).await {
        Ok(()) => Ending::Success,
        Err(_) => Ending::Failed(
            "the output ended, but the container runs: it has closed its streams, or they were \
             read too slowly, or the node's shim was replaced; attach again"
                .into(),
        ),
    }
}
