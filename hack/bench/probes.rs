//! What exec probes cost the runtime's own processes: each pod is asked once in ten seconds, evenly
//! spread, as kubelet does it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::Cri;
use crate::cost;
use crate::phase::{self, Plan};
use crate::pod::Maker;
use crate::report::Report;

/// Between two probes of one pod.
const PERIOD: Duration = Duration::from_secs(10);

/// Probes of many pods.
#[derive(Debug, Serialize)]
pub(crate) struct Probes {
    pub(crate) pods: usize,
    pub(crate) probes: usize,
    pub(crate) seconds: f64,
    /// Of one core, in per cent, of all the runtime's processes together.
    pub(crate) core_percent: f64,
}

/// Probes standing pods for a while.
pub(crate) async fn probes(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    if plan.probes_s == 0 || plan.crowd == 0 {
        return Ok(());
    }
    let standing = phase::up(cri, maker, plan.crowd, plan.concurrency).await?;
    let (before, begun) = (cost::spent(plan)?, Instant::now());
    let end = begun + Duration::from_secs(plan.probes_s);
    let mut ticks = tokio::time::interval(PERIOD / u32::try_from(plan.crowd)?);
    let mut running = JoinSet::new();
    let mut asked = 0;
    while Instant::now() < end {
        ticks.tick().await;
        let (mut cri, container) = (cri.clone(), standing[asked % standing.len()].1.clone());
        asked += 1;
        running.spawn(async move { cri.exec_true(&container).await });
        while let Some(ended) = running.try_join_next() {
            report.time("ExecSync probe", ended??);
        }
    }
    while let Some(ended) = running.join_next().await {
        report.time("ExecSync probe", ended??);
    }
    let (after, seconds) = (cost::spent(plan)?, begun.elapsed().as_secs_f64());
    let cpu_s = after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e9;
    report.probes(Probes {
        pods: standing.len(),
        probes: asked,
        seconds,
        core_percent: cpu_s / seconds * 100.0,
    });
    phase::down(cri, standing, plan.concurrency).await
}
