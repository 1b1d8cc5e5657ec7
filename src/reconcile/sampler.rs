//! Reads the usage of running containers every few seconds, so that no request has to.

use std::time::Duration;

use tokio::sync::watch;

use super::{Back, blocking, container};
use crate::cgroup::CgroupPath;
use crate::id::ContainerId;
use crate::lifecycle::container::State;
use crate::state::container::ContainerFilter;
use crate::state::now_ns;
use crate::state::sample::Sample;

/// Time between two rounds: what kubelet's summary asks for at most.
const INTERVAL: Duration = Duration::from_secs(10);

/// Samples until `stop` turns true.
pub async fn run(back: Back, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = ticks.tick() => {}
        }
        let filter = ContainerFilter {
            state: Some(State::Running),
            ..Default::default()
        };
        let running = match back.store.containers(&filter).await {
            Ok(running) => running,
            Err(error) => {
                tracing::warn!(%error, "cannot sample");
                continue;
            }
        };
        for one in running {
            if let Ok(Some(path)) = container::cgroup_path(&back, &one).await {
                let (back, id) = (back.clone(), one.id);
                let _ = blocking(move || {
                    sample(&back, &id, &path);
                    Ok(())
                })
                .await;
            }
        }
    }
}

/// Takes one container's sample. A handful of small reads of kernel files.
pub(super) fn sample(back: &Back, id: &ContainerId, path: &CgroupPath) {
    match back.cgroups.stats(path) {
        Ok(stats) => back.store.samples().put(
            id,
            Sample {
                at: now_ns(),
                cpu_usage_ns: stats.cpu_usage_ns,
                cpu_rate_nano_cores: None,
                memory_usage_bytes: stats.memory_usage_bytes,
                memory_working_set_bytes: stats.memory_working_set_bytes,
                memory_available_bytes: stats.memory_available_bytes,
                memory_rss_bytes: stats.memory_rss_bytes,
                page_faults: stats.page_faults,
                major_page_faults: stats.major_page_faults,
            },
        ),
        Err(error) => tracing::debug!(container = %id, %error, "cannot sample"),
    }
}
