//! What an operator types; one file a command. All but `serve` and `shim` speak to the running
//! daemon over its admin socket, which they find through `engine.json` in the state directory.

mod check;
mod explain;
mod image;
mod info;
mod inventory;
mod link;
mod metrics;
mod serve;

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
    /// Say what the running daemon is.
    Info(StateDir),
    /// Count the rows of every table.
    Inventory(StateDir),
    /// Print the metrics page of the running daemon.
    Metrics(StateDir),
    /// Show what happened to a pod, container or image, and how long each stage took.
    Explain(explain::Explain),
    /// Compare what is on this node with what the database says: 0 nothing differs or all is
    /// mended, 1 something is left, 2 it could not be checked.
    Check(check::Check),
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

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(serve) => serve::run(serve),
        Command::Shim(StateDir { state }) => {
            crate::shim::server::run(&state).map_err(anyhow::Error::from)
        }
        Command::Info(StateDir { state }) => link::block_on(info::run(&state)),
        Command::Inventory(StateDir { state }) => link::block_on(inventory::run(&state)),
        Command::Metrics(StateDir { state }) => link::block_on(metrics::run(&state)),
        Command::Explain(explain) => link::block_on(explain::run(&explain)),
        Command::Check(check) => return check::run(&check),
        Command::Image(image) => link::block_on(image::run(&image)),
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
        Err(error) => {
            eprintln!("quiltd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
