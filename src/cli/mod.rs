//! What an operator types; one file a command. `info` and `image import` ask the running daemon on
//! its admin socket, `image pull` and `image remove` on that of CRI; they find both through
//! `engine.json` in the state directory. What only reads
//! opens the database itself, read-only, whether a daemon runs or not.

mod check;
mod db;
mod doctor;
mod events;
mod explain;
mod find;
mod image;
mod images;
mod info;
mod inspect;
mod inventory;
mod jobs;
mod link;
mod logs;
mod metrics;
mod output;
mod place;
mod pods;
mod ps;
mod pulls;
mod serve;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Where the state directory is when nobody says otherwise.
const DEFAULT_STATE: &str = "/run/quilt";

#[derive(Parser)]
#[command(
    name = "quiltd",
    version,
    about = "A Kubernetes node runtime",
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon: answer CRI on a socket, run pods.
    Serve(serve::Serve),
    /// The node's one shim; the daemon starts it.
    #[command(hide = true)]
    Shim(StateDir),
    /// A process in a cgroup of systemd's until a container's is; the daemon starts it.
    #[command(hide = true)]
    Hold,
    /// Say what the running daemon is.
    Info(Asking),
    /// Print the metrics page of the running daemon.
    Metrics(StateDir),
    /// List containers.
    Ps(ps::Ps),
    /// List pods.
    Pods(output::Reading),
    /// List images.
    Images(output::Reading),
    /// List pulls of the last hour: how far each has come, and how fast.
    Pulls(pulls::Pulls),
    /// List what happened, in order.
    Events(events::Events),
    /// List what is queued, running, or waiting to be tried again.
    Jobs(output::Reading),
    /// Print what a container was started from, as an OCI runtime spec.
    Inspect(inspect::Inspect),
    /// Tell the life of a pod, container or image: each stage, each failure, and how it ended.
    Explain(explain::Explain),
    /// Show what a container has written, also before its log was rotated.
    Logs(logs::Logs),
    /// Compare what is on this node with what the database says: 0 nothing differs or all is
    /// mended, 1 something is left, 2 it could not be checked.
    Check(check::Check),
    /// Say what this node offers and what is missing, what that costs and how it is mended: 0
    /// nothing is missing, 1 a feature is, 2 no pod runs.
    Doctor(doctor::Doctor),
    /// Count the rows of every table.
    Inventory(output::Reading),
    /// Work with the database: dump, query, check, backup, restore, reset.
    #[command(subcommand)]
    Db(db::Db),
    /// Work with images.
    #[command(subcommand)]
    Image(image::Image),
    /// List the points at which a step can be made to fail (QUILT_FAULTS).
    #[cfg(feature = "fault-points")]
    #[command(hide = true)]
    FaultPoints,
}

/// Which daemon is meant.
#[derive(clap::Args)]
struct StateDir {
    /// State directory of the daemon.
    #[arg(long, default_value = DEFAULT_STATE)]
    state: PathBuf,
}

/// What the running daemon is asked.
#[derive(clap::Args)]
struct Asking {
    #[command(flatten)]
    daemon: StateDir,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    crate::daemon::end_on_panic();
    let result = match Arguments::parse().command {
        Command::Serve(serve) => serve::run(serve),
        Command::Shim(StateDir { state }) => {
            crate::shim::server::run(&state).map_err(anyhow::Error::from)
        }
        Command::Hold => {
            crate::cgroup::hold();
            Ok(())
        }
        Command::Info(asking) => link::block_on(info::run(&asking)),
        Command::Metrics(StateDir { state }) => link::block_on(metrics::run(&state)),
        Command::Ps(ps) => link::block_on(ps::run(&ps)),
        Command::Pods(reading) => link::block_on(pods::run(&reading)),
        Command::Images(reading) => link::block_on(images::run(&reading)),
        Command::Pulls(pulls) => link::block_on(pulls::run(&pulls)),
        Command::Events(events) => link::block_on(events::run(&events)),
        Command::Jobs(reading) => link::block_on(jobs::run(&reading)),
        Command::Inventory(reading) => link::block_on(inventory::run(&reading)),
        Command::Db(db) => db::run(&db),
        Command::Inspect(inspect) => link::block_on(inspect::run(&inspect)),
        Command::Explain(explain) => link::block_on(explain::run(&explain)),
        Command::Logs(logs) => link::block_on(logs::run(&logs)),
        Command::Check(check) => return check::run(&check),
        Command::Doctor(doctor) => return doctor::run(&doctor),
        Command::Image(image) => match image::run(&image) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        #[cfg(feature = "fault-points")]
        Command::FaultPoints => {
            for point in crate::fault::POINTS {
                println!("{point}");
            }
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the answer has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quiltd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
