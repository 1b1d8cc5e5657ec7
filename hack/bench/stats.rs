//! What kubelet's polling costs while nothing happens, and how fast statistics are: the recorded
//! idle minute of a kubelet with 11 pods, the calls for statistics beside many containers, what the
//! runtime takes to have them at hand, and a list that is larger than a message.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilt::proto::cri::NamespaceMode;
use serde::Serialize;

use crate::client::{Cri, Poll};
use crate::cost;
use crate::phase::{self, Pair, Plan};
use crate::pod::Maker;
use crate::report::Report;

/// Pods of the recorded minute, and its calls. ContainerStatus and ImageStatus are half retries of
/// a pod that did not start; they are asked all the same.
const IDLE_PODS: usize = 11;
const IDLE_CALLS: [(Poll, u32); 10] = [
    (Poll::ContainerdNotFound, 600),
    (Poll::ListContainers, 104),
    (Poll::ListPodSandbox, 97),
    (Poll::ContainerStatus, 96),
    (Poll::Version, 23),
    (Poll::Status, 12),
    (Poll::ImageFsInfo, 6),
    (Poll::ListContainerStats, 6),
    (Poll::ImageStatus, 5),
    (Poll::ListImages, 2),
];
const MINUTE: Duration = Duration::from_secs(60);
/// Calls of each kind for statistics.
const READS: usize = 300;
/// Streams of the large list.
const STREAMS: usize = 20;
/// Samples are taken every ten seconds: all containers have been in one.
const SETTLED: Duration = Duration::from_secs(12);

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    /// Containers that run.
    pub(crate) running: usize,
    /// Containers that are listed.
    pub(crate) listed: usize,
}

/// What came of it, beside the times of calls.
#[derive(Debug, Serialize)]
pub(crate) struct Stats {
    /// Of one core, in per cent, during the recorded minute.
    pub(crate) idle_core_percent: f64,
    pub(crate) running: usize,
    /// The same beside these containers while nobody asks: what sampling takes.
    pub(crate) sampling_core_percent: f64,
    pub(crate) listed: usize,
    /// Bytes of the largest message of their stream.
    pub(crate) largest_message_bytes: usize,
}

/// All of it, one part after the other.
pub(crate) async fn measure(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan,
    amount: Amount,
    report: &mut Report,
) -> Result<()> {
    let pods = phase::up(cri, maker, IDLE_PODS, plan.concurrency).await?;
    tokio::time::sleep(SETTLED).await;
    let idle_core_percent = share(plan, idle_minute(cri, maker, &pods)).await?;
    phase::down(cri, pods, plan.concurrency).await?;

    let pods = phase::up(cri, maker, amount.running, plan.concurrency).await?;
    tokio::time::sleep(SETTLED).await;
    let nobody_asks = async {
        tokio::time::sleep(MINUTE).await;
        Ok(())
    };
    let sampling_core_percent = share(plan, nobody_asks).await?;
    for _ in 0..READS {
        let (count, took) = cri.list_stats().await?;
        ensure!(
            count >= amount.running,
            "statistics of only {count} containers"
        );
        report.time("ListContainerStats", took);
        let (count, took) = cri.pod_metrics().await?;
        ensure!(count >= amount.running, "metrics of only {count} pods");
        report.time("ListPodSandboxMetrics", took);
    }
    phase::down(cri, pods, plan.concurrency).await?;
    let largest_message_bytes = large_list(cri, maker, amount.listed, report).await?;
    report.stats(Stats {
        idle_core_percent,
        running: amount.running,
        sampling_core_percent,
        listed: amount.listed,
        largest_message_bytes,
    });
    Ok(())
}

/// The runtime's share of one core while something goes on, in per cent.
async fn share(plan: &Plan, what: impl Future<Output = Result<()>>) -> Result<f64> {
    let (before, begun) = (cost::spent(plan)?, Instant::now());
    what.await?;
    let (after, seconds) = (cost::spent(plan)?, begun.elapsed().as_secs_f64());
    let cpu_s = after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e9;
    Ok(cpu_s / seconds * 100.0)
}

/// Each kind of call spread evenly over the minute, and kinds between each other.
async fn idle_minute(cri: &mut Cri, maker: &Maker, pods: &[Pair]) -> Result<()> {
    let mut calls: Vec<(Duration, Poll)> = Vec::new();
    for (place, (poll, count)) in (0_u32..).zip(IDLE_CALLS) {
        let period = MINUTE / count;
        let first = period * place / 10;
        calls.extend((0..count).map(|number| (first + period * number, poll)));
    }
    calls.sort_unstable_by_key(|(at, _)| *at);
    let begun = tokio::time::Instant::now();
    for (number, (at, poll)) in calls.into_iter().enumerate() {
        tokio::time::sleep_until(begun + at).await;
        let (_, container) = &pods[number % pods.len()];
        cri.poll(poll, container, maker.image()).await?;
    }
    tokio::time::sleep_until(begun + MINUTE).await;
    Ok(())
}

/// Containers that wait in one pod, listed as a stream.
async fn large_list(
    cri: &mut Cri,
    maker: &Maker,
    listed: usize,
    report: &mut Report,
) -> Result<usize> {
    let config = maker.pod(NamespaceMode::Node);
    let (pod, _) = cri.run_pod(config.clone()).await?;
    for number in 0..listed {
        let mut container = maker.running();
        let metadata = container.metadata.as_mut().context("a name")?;
        metadata.name = format!("main-{number}");
        cri.create(&pod, config.clone(), container).await?;
    }
    let mut largest = 0;
    for _ in 0..STREAMS {
        let (count, bytes, took) = cri.stream_containers().await?;
        ensure!(count >= listed, "only {count} containers are streamed");
        largest = largest.max(bytes);
        report.time("StreamContainers", took);
    }
    cri.stop_pod(&pod).await?;
    cri.remove_pod(&pod).await?;
    Ok(largest)
}
