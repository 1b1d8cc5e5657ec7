//! Measures a container runtime over its CRI socket: any runtime, ours or a peer's, in the same
//! way.
//!
//! It is a plain CRI client that knows nothing of what it measures. It prints JSON on standard
//! output and a table on standard error, and removes everything it made, also when it fails.

mod churn;
mod client;
mod cost;
mod memory;
mod phase;
mod pod;
mod probes;
mod pull;
mod raw;
mod report;
mod restart;
mod stats;
mod stuck;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;

use crate::client::Cri;
use crate::phase::Plan;
use crate::pod::Maker;
use crate::report::Report;

/// Measures a CRI endpoint.
#[derive(Debug, Parser)]
#[command(name = "cri")]
struct Args {
    /// Socket of the runtime, as unix:///run/containerd/containerd.sock.
    #[arg(long)]
    endpoint: String,
    /// Image with busybox in it; it is pulled first.
    #[arg(long)]
    image: String,
    /// A large image, whose pull is measured.
    #[arg(long)]
    pull_image: Option<String>,
    /// Measures that pull and nothing else.
    #[arg(long, requires = "pull_image")]
    only_pull: bool,
    /// Pods of the sequential part.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Pods of the parallel part.
    #[arg(long, default_value_t = 100)]
    crowd: usize,
    /// Pods started at a time in the parallel part.
    #[arg(long, default_value_t = 10)]
    concurrency: usize,
    /// Running pods beside which memory is measured.
    #[arg(long, default_value_t = 50)]
    memory_pods: usize,
    /// Seconds of churn; 0 leaves it out.
    #[arg(long, default_value_t = 15)]
    churn_s: u64,
    /// Pods that come and go in each second of it.
    #[arg(long, default_value_t = 20)]
    churn_rate: u32,
    /// Containers that cannot be ended, beside which the churn is repeated; 0 leaves that out.
    #[arg(long, default_value_t = 100)]
    stuck: usize,
    /// Pods over which the CPU time of one is measured; 0 leaves it out.
    #[arg(long, default_value_t = 50)]
    cost_pods: usize,
    /// Seconds for which the pods of the parallel part are probed, each every ten seconds; 0 leaves
    /// it out.
    #[arg(long, default_value_t = 20)]
    probes_s: u64,
    /// Measures statistics and polling instead, beside so many running containers.
    #[arg(long, value_name = "CONTAINERS")]
    stats: Option<usize>,
    /// Containers of the large list that is measured then.
    #[arg(long, default_value_t = 5000)]
    listed: usize,
    /// Further processes of the runtime, by process id.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<i32>,
    /// Further processes of the runtime, by name (containerd-shim-runc-v2, conmon, pause).
    #[arg(long, value_delimiter = ',')]
    processes: Vec<String>,
    /// Measures restarts instead: kills the daemon so often and starts it again.
    #[arg(long, value_name = "ROUNDS", requires = "daemon")]
    restart: Option<usize>,
    /// Containers that run while the daemon is killed.
    #[arg(long, default_value_t = 200)]
    containers: usize,
    /// Command line that starts the daemon, after --.
    #[arg(last = true)]
    daemon: Vec<String>,
    /// Ends with an error when a goal is missed.
    #[arg(long)]
    check: bool,
    /// Cargo passes this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let socket = PathBuf::from(args.endpoint.trim_start_matches("unix://"));
    let mut cri = Cri::connect(&socket).await?;
    let logs = tempfile::tempdir().context("make a log directory")?;
    let maker = Arc::new(Maker::new(&args.image, logs.path()));
    if let Some(rounds) = args.restart {
        let plan = restart::Plan {
            socket: &socket,
            command: &args.daemon,
            containers: args.containers,
            rounds,
        };
        let kept = cri.has_image(maker.image()).await?;
        let measured = restart::measure(&mut cri, &maker, &plan).await;
        // The connection ended with the first daemon.
        let mut cri = Cri::connect(&socket).await?;
        let swept = cri.sweep(maker.run()).await;
        if !kept {
            cri.remove_image(maker.image()).await?;
        }
        if let Some(daemon) = measured? {
            restart::end(daemon)?;
        }
        return swept.context("remove what the bench made");
    }
    let pulled = pull::Plan {
        image: args.pull_image,
        socket: socket.clone(),
        alone: args.only_pull,
    };
    let plan = Plan {
        rounds: args.rounds,
        crowd: args.crowd,
        concurrency: args.concurrency.max(1),
        memory_pods: args.memory_pods,
        churn_s: args.churn_s,
        churn_rate: args.churn_rate,
        stuck: args.stuck,
        cost_pods: args.cost_pods,
        probes_s: args.probes_s,
        runtime: memory::Selection {
            socket,
            pids: args.pids,
            names: args.processes,
        },
    };
    let amount = args.stats.map(|running| stats::Amount {
        running,
        listed: args.listed,
    });
    let measured = measure(&mut cri, &maker, &plan, &pulled, amount).await;
    let swept = cri.sweep(maker.run()).await;
    let report = measured?;
    swept.context("remove what the bench made")?;
    report.print()?;
    if args.check {
        report.check()?;
    }
    Ok(())
}

/// All parts, one after the other, with the image in place and gone afterwards if it was not there.
async fn measure(
    cri: &mut Cri,
    maker: &Arc<Maker>,
    plan: &Plan,
    pulled: &pull::Plan,
    amount: Option<stats::Amount>,
) -> Result<Report> {
    let version = cri.version().await?;
    let mut report = Report::new(version.runtime_name, version.runtime_version);
    if let Some(amount) = amount {
        let kept = cri.has_image(maker.image()).await?;
        cri.pull(maker.image()).await?;
        stats::measure(cri, maker, plan, amount, &mut report).await?;
        if !kept {
            cri.remove_image(maker.image()).await?;
        }
        return Ok(report);
    }
    pull::measure(cri, pulled, &mut report).await?;
    if pulled.alone {
        return Ok(report);
    }
    let kept = cri.has_image(maker.image()).await?;
    report.time("PullImage", cri.pull(maker.image()).await?);
    phase::sequential(cri, maker, plan, &mut report).await?;
    phase::short_lived(cri, maker, plan, &mut report).await?;
    cost::cost(cri, maker, plan, &mut report).await?;
    phase::memory(cri, maker, plan, &mut report).await?;
    phase::crowd(cri, maker, plan, &mut report).await?;
    probes::probes(cri, maker, plan, &mut report).await?;
    churn::churn(cri, maker, plan, &mut report).await?;
    if !kept {
        cri.remove_image(maker.image()).await?;
    }
    Ok(report)
}
