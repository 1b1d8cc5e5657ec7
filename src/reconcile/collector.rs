//! Hands what the image store has kept and nobody came for to the cleanup: layers of failed pulls
//! whose retry did not come in time, and broken layers that were replaced while containers stood on
//! them.

use std::time::Duration;

use tokio::sync::watch;

use super::{Back, ReconcileError, blocking};
use crate::state::now_ns;

/// Longest pause between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// The same while a broken layer waits for its containers to end.
const PERIOD_RETIRED: Duration = Duration::from_secs(2);
/// Shortest one.
const PERIOD_MIN: Duration = Duration::from_millis(100);

/// Runs until `stop` turns true.
pub async fn run(back: Back, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let pause = match look(&back).await {
            Ok(pause) => pause,
            Err(error) => {
                let error = error.full_text();
                tracing::warn!(error, "unused layers stay for now");
                PERIOD
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = back.unused_layers.notified() => {}
            _ = stop.changed() => {}
        }
    }
}

/// Collects what is due; says when to look again.
async fn look(back: &Back) -> Result<Duration, ReconcileError> {
    let period = match remove_retired(back).await? {
        0 => PERIOD,
        _ => PERIOD_RETIRED,
    };
    let mut next = back.store.next_unused_layer().await?;
    if next.is_some_and(|at| at <= now_ns()) {
        back.observed.collect_layers().await?;
        next = back.store.next_unused_layer().await?;
    }
    let Some(at) = next else { return Ok(period) };
    let left = u64::try_from(at.saturating_sub(now_ns())).unwrap_or(0);
    Ok(Duration::from_nanos(left).clamp(PERIOD_MIN, period))
}

/// Broken layers go when the last container that was started on them has ended; says how many stay.
async fn remove_retired(back: &Back) -> Result<usize, ReconcileError> {
    let mut stay = 0;
    let back_too = back.clone();
    for layer in blocking(move || Ok(back_too.images.retired_layers()?)).await? {
        let chain_id = layer.chain_id.to_string();
        if back.store.is_stood_on(&chain_id, layer.at_ns).await? {
            stay += 1;
            continue;
        }
        tracing::info!(
            layer = chain_id,
            "deleting a broken layer that was replaced"
        );
        let back_too = back.clone();
        blocking(move || Ok(back_too.images.remove_retired(&layer)?)).await?;
    }
    Ok(stay)
}
