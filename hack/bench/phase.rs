//! The parts of a measurement, each leaving nothing behind when it succeeds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilt::proto::cri::{ContainerState, NamespaceMode};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::Cri;
use crate::memory::{self, Selection};
use crate::pod::Maker;
use crate::report::{Crowd, Report};

/// Seconds a container gets to end by itself.
const GRACE_S: i64 = 10;
/// Reads of state per kind, in a quiet and in a crowded runtime.
const READS: usize = 500;
/// How long `true` may take to be seen as exited.
const EXIT_BOUND: Duration = Duration::from_secs(30);

/// How much of what is measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) crowd: usize,
    pub(crate) concurrency: usize,
    pub(crate) memory_pods: usize,
    /// Seconds of churn, and pods that come in each of them.
    pub(crate) churn_s: u64,
    pub(crate) churn_rate: u32,
    /// Containers that cannot be ended, beside which the churn is repeated.
    pub(crate) stuck: usize,
    /// Pods over which the CPU time of one is measured.
    pub(crate) cost_pods: usize,
    /// Seconds of probes.
    pub(crate) probes_s: u64,
    pub(crate) runtime: Selection,
}

/// One pod after the other, through its whole life.
pub(crate) async fn sequential(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    for _ in 0..plan.rounds {
        let config = maker.pod(NamespaceMode::Pod);
        let begun = Instant::now();
        let (pod, took) = cri.run_pod(config.clone()).await?;
        report.time("RunPodSandbox", took);
        let (container, took) = cri.create(&pod, config, maker.running()).await?;
        report.time("CreateContainer", took);
        report.time("StartContainer", cri.start(&container).await?);
        report.time("pod up", begun.elapsed());
        report.time("ExecSync true", cri.exec_true(&container).await?);
        report.time("ContainerStatus", cri.status(&container).await?.1);
        let begun = Instant::now();
        report.time("StopContainer", cri.stop(&container, GRACE_S).await?);
        report.time("RemoveContainer", cri.remove(&container).await?);
        report.time("StopPodSandbox", cri.stop_pod(&pod).await?);
        report.time("RemovePodSandbox", cri.remove_pod(&pod).await?);
        report.time("pod down", begun.elapsed());

        let (pod, took) = cri.run_pod(maker.pod(NamespaceMode::Node)).await?;
        report.time("RunPodSandbox host network", took);
        cri.stop_pod(&pod).await?;
        cri.remove_pod(&pod).await?;
    }
    Ok(())
}

/// From the call that starts `true` to the status that says it has exited.
pub(crate) async fn short_lived(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    let config = maker.pod(NamespaceMode::Pod);
    let (pod, _) = cri.run_pod(config.clone()).await?;
    for _ in 0..plan.rounds {
        let (container, _) = cri
            .create(&pod, config.clone(), maker.short_lived())
            .await?;
        let begun = Instant::now();
        cri.start(&container).await?;
        while cri.status(&container).await?.0.state() != ContainerState::ContainerExited {
            ensure!(begun.elapsed() < EXIT_BOUND, "`true` is not seen to exit");
        }
        report.time("start to exited", begun.elapsed());
        cri.remove(&container).await?;
    }
    cri.stop_pod(&pod).await?;
    cri.remove_pod(&pod).await?;
    Ok(())
}

/// What the runtime itself takes beside running pods.
pub(crate) async fn memory(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    let pods = up(cri, maker, plan.memory_pods, plan.concurrency).await?;
    report.memory(pods.len(), memory::measure(&plan.runtime)?);
    down(cri, pods, plan.concurrency).await
}

/// Many pods at once, and reads beside them.
pub(crate) async fn crowd(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    if plan.crowd == 0 {
        return Ok(());
    }
    let begun = Instant::now();
    let pods = up(cri, maker, plan.crowd, plan.concurrency).await?;
    let up_s = begun.elapsed().as_secs_f64();
    for turn in 0..READS {
        let (count, took) = cri.list().await?;
        ensure!(count >= pods.len(), "only {count} containers are listed");
        report.time("ListContainers", took);
        let (_, container) = &pods[turn % pods.len()];
        report.time("ContainerStatus crowded", cri.status(container).await?.1);
    }
    let begun = Instant::now();
    let count = pods.len();
    down(cri, pods, plan.concurrency).await?;
    report.crowd(Crowd {
        pods: count,
        concurrency: plan.concurrency,
        up_s,
        down_s: begun.elapsed().as_secs_f64(),
    });
    Ok(())
}

/// A pod with its one container.
pub(crate) type Pair = (String, String);

/// Starts pods with a running container each, so many at a time.
pub(crate) async fn up(
    cri: &Cri,
    maker: &Maker,
    count: usize,
    concurrency: usize,
) -> Result<Vec<Pair>> {
    let jobs = (0..count).map(|_| {
        let (mut cri, config) = (cri.clone(), maker.pod(NamespaceMode::Pod));
        let running = maker.running();
        async move {
            let (pod, _) = cri.run_pod(config.clone()).await?;
            let (container, _) = cri.create(&pod, config, running).await?;
            cri.start(&container).await?;
            Ok((pod, container))
        }
    });
    bounded(jobs, concurrency).await
}

/// Stops and removes them, killing at once.
pub(crate) async fn down(cri: &Cri, pods: Vec<Pair>, concurrency: usize) -> Result<()> {
    let jobs = pods.into_iter().map(|(pod, container)| {
        let mut cri = cri.clone();
        async move {
            cri.stop(&container, 0).await?;
            cri.remove(&container).await?;
            cri.stop_pod(&pod).await?;
            cri.remove_pod(&pod).await?;
            Ok(())
        }
    });
    bounded(jobs, concurrency).await.map(drop)
}

/// Runs all jobs, at most `concurrency` at a time; the first error ends the wait.
async fn bounded<T, F>(jobs: impl Iterator<Item = F>, concurrency: usize) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(concurrency));
    let mut running = JoinSet::new();
    for job in jobs {
        let place = Arc::clone(&places).acquire_owned().await?;
        running.spawn(async move {
            let _place = place;
            job.await
        });
    }
    let mut done = Vec::new();
    while let Some(ended) = running.join_next().await {
        done.push(ended.context("a job of the bench panicked")??);
    }
    Ok(done)
}
