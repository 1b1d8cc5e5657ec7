//! Measures what containers have written, one after the other and off everybody's path.
//!
//! Counting a tree takes time that grows with it, so a layer rests after each measure for many
//! times as long as that took, and all of them together keep a small part of one CPU busy.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Back, ReconcileError, blocking};
use crate::id::ContainerId;
use crate::lifecycle::container::State;
use crate::snapshot::{self, SnapshotError};
use crate::state::container::{Container, ContainerFilter};
use crate::state::now_ns;
use crate::state::sample::LayerUsage;

/// Time between two rounds, and the shortest between two measures of one layer.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest measure; a layer that takes longer keeps its last figure.
const MEASURE_MAX: Duration = Duration::from_secs(5);
/// How many times as long as its measure took a layer is left alone.
const REST: u32 = 50;

/// Measures until `stop` turns true.
pub async fn run(back: Back, mut stop: watch::Receiver<bool>) {
    let mut due: HashMap<ContainerId, Instant> = HashMap::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = ticks.tick() => {}
        }
        let containers = match back.store.containers(&ContainerFilter::default()).await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::warn!(%error, "cannot list containers to measure");
                continue;
            }
        };
        let known: HashSet<_> = containers.iter().map(|one| one.id.clone()).collect();
        due.retain(|id, _| known.contains(id));
        // One that went while it was measured has come in after it was forgotten.
        back.store.samples().keep_layers(|id| known.contains(id));
        for one in containers {
            if *stop.borrow() {
                return;
            }
            let resting = due.get(&one.id).is_some_and(|at| *at > Instant::now());
            if !resting && changes(&back, &one) {
                let begun = Instant::now();
                measure(&back, one.id.clone()).await;
                due.insert(one.id, Instant::now() + begun.elapsed() * REST);
            }
        }
    }
}

/// What does not run has written its last: it is measured once more, and then known.
fn changes(back: &Back, container: &Container) -> bool {
    let Some(known) = back.store.samples().layer(&container.id) else {
        return true;
    };
    container.state == State::Running || container.exited_at.is_some_and(|at| at >= known.at)
}

async fn measure(back: &Back, id: ContainerId) {
    let back = back.clone();
    let name = id.clone();
    let measured = blocking(move || {
        let at = now_ns();
        let end = Some(Instant::now() + MEASURE_MAX);
        let used = match snapshot::usage(&back.paths.root, id.as_str(), end) {
            Ok(used) => used,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let (bytes, inodes) = (used.bytes, used.inodes);
        let usage = LayerUsage { at, bytes, inodes };
        back.store.samples().put_layer(&id, usage);
        Ok(())
    });
    if let Err(error) = measured.await {
        let error = ReconcileError::full_text(&error);
        tracing::debug!(container = %name, error, "cannot measure the writable layer");
    }
}

fn is_gone(error: &SnapshotError) -> bool {
    let gone = std::io::ErrorKind::NotFound;
    matches!(error, SnapshotError::Storage { source, .. } if source.kind() == gone)
}
