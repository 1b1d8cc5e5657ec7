//! What a pod costs the runtime's own processes: CPU time and context switches, as proc(5) counts
//! them. Unlike times they hardly change with what else the machine does.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::client::Cri;
use crate::memory;
use crate::phase::{self, Plan};
use crate::pod::Maker;
use crate::report::Report;

/// Of all the runtime's processes together.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) cpu_ns: u64,
    switches: u64,
}

/// For one pod with one container, up and down.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) pods: usize,
    pub(crate) cpu_ms: f64,
    pub(crate) switches: f64,
}

/// Brings pods up and down, one call after the other, with nothing in between.
pub(crate) async fn cost(
    cri: &mut Cri,
    maker: &Maker,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    if plan.cost_pods == 0 {
        return Ok(());
    }
    // The first pod of a runtime makes what the others find.
    let pods = phase::up(cri, maker, 1, 1).await?;
    phase::down(cri, pods, 1).await?;
    let before = spent(plan)?;
    for _ in 0..plan.cost_pods {
        let pods = phase::up(cri, maker, 1, 1).await?;
        phase::down(cri, pods, 1).await?;
    }
    let after = spent(plan)?;
    let pods = plan.cost_pods as f64;
    report.cost(Cost {
        pods: plan.cost_pods,
        cpu_ms: after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e6 / pods,
        switches: after.switches.saturating_sub(before.switches) as f64 / pods,
    });
    Ok(())
}

/// Threads that have ended since they were counted are missed; a runtime keeps its threads.
pub(crate) fn spent(plan: &Plan) -> Result<Spent> {
    let mut spent = Spent::default();
    for pid in memory::processes(&plan.runtime)? {
        let tasks = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))?;
        for task in tasks.flatten() {
            let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let running = read("schedstat");
            let ran = running.split(' ').next().and_then(|ns| ns.parse().ok());
            spent.cpu_ns += ran.unwrap_or(0_u64);
            let status = read("status");
            let switches = status
                .lines()
                .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
                .filter_map(|(_, count)| count.trim().parse::<u64>().ok());
            spent.switches += switches.sum::<u64>();
        }
    }
    Ok(spent)
}
