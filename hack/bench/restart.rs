//! How long a daemon that was killed takes to answer again, with its containers running: the one
//! part of the bench that needs the daemon's command line.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilt::proto::cri::NamespaceMode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;

use crate::client::Cri;
use crate::pod::Maker;

/// The longest a start may take.
const BOUND: Duration = Duration::from_secs(60);
/// Containers started at a time.
const AT_A_TIME: usize = 8;

/// What is done.
pub(crate) struct Plan<'a> {
    /// Where the daemon answers.
    pub(crate) socket: &'a Path,
    /// Program and arguments that start it.
    pub(crate) command: &'a [String],
    /// Containers that run meanwhile, each in its own pod.
    pub(crate) containers: usize,
    /// How often it is killed.
    pub(crate) rounds: usize,
}

/// Starts the containers, kills the daemon time after time, and prints what it took, in
/// milliseconds, as JSON.
///
/// Returns the daemon that runs in the end, if it is one of ours.
pub(crate) async fn measure(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan<'_>,
) -> Result<Option<Child>> {
    ensure!(
        !plan.command.is_empty(),
        "name the daemon's command line after --"
    );
    cri.pull(maker.image()).await?;
    for batch in 0..plan.containers.div_ceil(AT_A_TIME) {
        let count = AT_A_TIME.min(plan.containers - batch * AT_A_TIME);
        let started = (0..count).map(|_| run(cri.clone(), maker));
        futures_util::future::try_join_all(started).await?;
    }
    let mut answers = Vec::new();
    let mut all = Vec::new();
    // Kept to the end: a child that is dropped is not reaped.
    let mut children: Vec<Child> = Vec::new();
    for _ in 0..plan.rounds {
        kill(plan.socket, children.last_mut()).await?;
        let begun = Instant::now();
        children.push(start(plan.command)?);
        let mut again = first_answer(plan.socket, begun).await?;
        answers.push(begun.elapsed());
        let running = again.count_running().await?;
        ensure!(
            running == plan.containers,
            "{running} of {} run",
            plan.containers
        );
        all.push(begun.elapsed());
    }
    let ms = |times: &[Duration]| -> Vec<f64> {
        times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
    };
    let report = serde_json::json!({
        "containers": plan.containers,
        "answers_ms": ms(&answers),
        "all_running_ms": ms(&all),
        "median": { "answers_ms": median(&answers), "all_running_ms": median(&all) },
    });
    println!("{report:#}");
    Ok(children.pop())
}

/// Ends a daemon as an operator would.
pub(crate) fn end(mut daemon: Child) -> Result<()> {
    let pid = i32::try_from(daemon.id())?;
    let pid = Pid::from_raw(pid).context("the daemon's process")?;
    kill_process(pid, Signal::TERM).context("end the daemon")?;
    let status = daemon.wait()?;
    ensure!(status.success(), "the daemon ended with {status}");
    Ok(())
}

fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_secs_f64() * 1e3
}

async fn run(mut cri: Cri, maker: &Maker) -> Result<()> {
    let config = maker.pod(NamespaceMode::Pod);
    let (pod, _) = cri.run_pod(config.clone()).await?;
    let (id, _) = cri.create(&pod, config, maker.running()).await?;
    cri.start(&id).await.map(drop)
}

/// Ends whoever listens at the socket, without a chance to prepare.
async fn kill(socket: &Path, child: Option<&mut Child>) -> Result<()> {
    let peer = UnixStream::connect(socket).await?.peer_cred()?;
    let pid = peer
        .pid()
        .and_then(Pid::from_raw)
        .context("the daemon's process")?;
    kill_process(pid, Signal::KILL).context("kill the daemon")?;
    if let Some(child) = child {
        child.wait()?;
    }
    let end = Instant::now() + BOUND;
    while UnixStream::connect(socket).await.is_ok() {
        ensure!(Instant::now() < end, "the daemon survives SIGKILL");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn start(command: &[String]) -> Result<Child> {
    let mut daemon = Command::new(&command[0]);
    daemon.args(&command[1..]).stdin(Stdio::null());
    daemon.stdout(Stdio::null()).stderr(Stdio::null());
    daemon.spawn().context("start the daemon")
}

async fn first_answer(socket: &Path, begun: Instant) -> Result<Cri> {
    loop {
        if let Ok(mut cri) = Cri::connect(socket).await
            && cri.version().await.is_ok()
        {
            return Ok(cri);
        }
        ensure!(begun.elapsed() < BOUND, "the daemon does not answer");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
