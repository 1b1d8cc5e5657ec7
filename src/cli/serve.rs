//! `quiltd serve`

use std::path::PathBuf;

use anyhow::Context;

use crate::config::{Config, DEFAULT_PATH};
use crate::daemon;
use crate::sys::scheduling;

/// Threads that run tasks, at least.
const THREADS_MIN: usize = 4;

#[derive(clap::Args)]
pub(super) struct Serve {
    /// Configuration file (TOML). At the default place it may be missing.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// What outlives a reboot: database, images, writable layers.
    #[arg(long, default_value = super::place::DEFAULT_ROOT)]
    root: PathBuf,
    /// What does not: sockets, namespaces, FIFOs.
    #[arg(long, default_value = super::DEFAULT_STATE)]
    state: PathBuf,
    /// Where CRI is answered.
    #[arg(long, default_value = super::place::DEFAULT_LISTEN)]
    listen: String,
}

pub(super) fn run(serve: Serve) -> anyhow::Result<()> {
    crate::fault::check().map_err(anyhow::Error::msg)?;
    let config = Config::load(&serve.config)?;
    config
        .log
        .start()
        .map_err(anyhow::Error::msg)
        .context("cannot start logging")?;
    let options = daemon::Options {
        config,
        root: serve.root,
        state: serve.state,
        listen: serve.listen.parse()?,
    };
    // A status call must not wait for a CPU until a container's slice is over. The shim, which
    // starts containers, goes back to the kernel's choice.
    if let Err(error) = scheduling::set_slice(Some(scheduling::SHORTEST_SLICE)) {
        tracing::warn!(%error, "calls may wait for a CPU longer than they need");
    }
    // Few calls make a thread busy, but on a small node one that does must not hold up the rest.
    let threads = std::thread::available_parallelism().map_or(THREADS_MIN, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(THREADS_MIN))
        .enable_all()
        .max_blocking_threads(256)
        .build()
        .context("cannot start the runtime's threads")?;
    let result = runtime.block_on(daemon::run(options));
    // What still waits on the kernel must not hold the end back.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
