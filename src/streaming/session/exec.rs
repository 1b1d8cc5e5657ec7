//! Exec: a command in a container, its streams, and its exit code over the error channel.

use std::os::fd::OwnedFd;

use tokio::sync::watch;

use super::channels::Channels;
use super::pump;
use super::{Cut, ExecAsk, Node, conclude, cut_off};
use crate::streaming::channel::{Activity, Gone};
use crate::streaming::command::{self, Running};
use crate::streaming::descriptor::Descriptor;
use crate::streaming::status::Ending;

/// Our ends of a command's streams. A terminal is both `stdin` and `stdout`.
#[derive(Default)]
struct Ends {
    stdin: Option<Descriptor>,
    stdout: Option<Descriptor>,
    stderr: Option<Descriptor>,
}

/// Runs it to its end.
pub(super) async fn run(node: &Node, ask: ExecAsk, mut channels: Channels, activity: &Activity) {
    let (mut running, mut ends) = match start(node, &ask).await {
        Ok(started) => started,
        Err(why) => return conclude(node, channels, &Ending::Failed(why), activity).await,
    };
    let line = channels.line();
    let outcome = tokio::select! {
        ended = pump_all(&mut running, &mut ends, &mut channels) => Ok(ended),
        cut = node.cut(&line, activity) => Err(cut),
    };
    // For the command its streams end here; a terminal is hung up.
    drop(ends);
    match outcome {
        Ok(Ok(ending)) => conclude(node, channels, &ending, activity).await,
        Ok(Err(Gone)) | Err(Cut::Gone) => {
            drop(channels);
            running.hang_up(Cut::Gone.grace()).await;
        }
        Err(cut) => {
            tokio::join!(cut_off(channels, cut), running.hang_up(cut.grace()));
        }
    }
}

async fn start(node: &Node, ask: &ExecAsk) -> Result<(Running, Ends), String> {
    let plan = command::plan(&node.state_dir, &ask.container, ask.command.clone()).await?;
    let broken = |error: std::io::Error| format!("cannot exec: {error}");
    let (streams, mut ends) = if ask.tty {
        (None, Ends::default())
    } else {
        let (streams, ends) = pipes(ask).map_err(broken)?;
        (Some(streams), ends)
    };
    let mut running = Running::start(&node.shim()?, &ask.container, plan, streams).await?;
    if let Some(master) = running.terminal.take() {
        let terminal = Descriptor::new(master).map_err(broken)?;
        ends.stdin = Some(terminal.try_clone().map_err(broken)?);
        ends.stdout = Some(terminal);
    }
    Ok((running, ends))
}

/// Pipes for what the client wants, `/dev/null` for the rest.
fn pipes(ask: &ExecAsk) -> std::io::Result<([OwnedFd; 3], Ends)> {
    let nothing = || -> std::io::Result<OwnedFd> {
        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        Ok(null.into())
    };
    let output = |wanted: bool| {
        if !wanted {
            return Ok((None, nothing()?));
        }
        Descriptor::from_process().map(|(ours, theirs)| (Some(ours), theirs))
    };
    let (stdin, its_stdin) = if ask.stdin {
        let (ours, theirs) = Descriptor::to_process()?;
        (Some(ours), theirs)
    } else {
        (None, nothing()?)
    };
    let (stdout, its_stdout) = output(ask.stdout)?;
    let (stderr, its_stderr) = output(ask.stderr)?;
    let ends = Ends {
        stdin,
        stdout,
        stderr,
    };
    Ok(([its_stdin, its_stdout, its_stderr], ends))
}

/// Moves everything until the command has ended and its output is with the client.
async fn pump_all(
    running: &mut Running,
    ends: &mut Ends,
    channels: &mut Channels,
) -> Result<Ending, Gone> {
    let exited = watch::Sender::new(false);
    let (stdin, resize) = (channels.stdin.take(), channels.resize.take());
    let its_stdin = ends.stdin.take();
    let ends = &*ends;
    let inputs = async {
        let input = async {
            if let (Some(from), Some(to)) = (stdin, its_stdin) {
                // With `to` goes the only writer of a pipe: the command reads its end.
                pump::input(from, &to).await;
            }
        };
        let sizes = async {
            if let (Some(from), Some(terminal)) = (resize, &ends.stdout) {
                pump::resize(from, terminal).await;
            }
        };
        tokio::join!(input, sizes);
        // The command decides when it is over.
        std::future::pending::<()>().await;
    };
    let output = async |from: &Option<Descriptor>, to: Option<&mut _>| match (from, to) {
        (Some(from), Some(to)) => pump::output(from, to, &exited).await,
        _ => Ok(()),
    };
    let exit = async {
        let record = running.wait().await;
        exited.send_replace(true);
        Ok(record)
    };
    let outputs = async {
        tokio::try_join!(
            exit,
            output(&ends.stdout, channels.stdout.as_mut()),
            output(&ends.stderr, channels.stderr.as_mut()),
        )
    };
    tokio::select! {
        ended = outputs => Ok(match ended?.0 {
            Ok(record) if record.code == 0 => Ending::Success,
            Ok(record) => Ending::ExitCode(record.code),
            Err(why) => Ending::Failed(why),
        }),
        () = inputs => Ok(Ending::Success),
    }
}
