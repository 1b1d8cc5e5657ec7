//! Keeps history within its bounds, and unfinished downloads, off everybody's path: a little at a
//! time, at start and then once a minute.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::watch;

use super::pull_progress::measure_downloads;
use super::{Back, ReconcileError, blocking};
use crate::state::now_ns;
use crate::state::retention::{BATCH, History};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// Between two batches: whoever waits to write comes first.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the answer of a pull is kept; its callers read it within moments.
const ANSWERS_KEPT: Duration = Duration::from_secs(3600);

/// How much history is kept.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Newest events.
    pub events: u32,
    /// Age beyond which an event goes, if there is one.
    pub events_age: Option<Duration>,
    /// Newest operations.
    pub operations: u32,
}

/// Runs until `stop` turns true.
pub async fn run(back: Back, retention: Retention, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        for history in histories(&retention) {
            prune(&back, history, &stop).await;
        }
        if let Err(error) = forget_downloads(&back).await {
            tracing::warn!(%error, "cannot delete unfinished downloads; it is tried again");
        }
        measure_downloads(&back).await;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = stop.changed() => {}
        }
    }
}

/// Deletes what is kept of blobs that no pull is remembered for. A row comes before its file, so
/// what has none is no beginning.
async fn forget_downloads(back: &Back) -> Result<(), ReconcileError> {
    let too = back.clone();
    let kept = blocking(move || Ok(too.images.list_downloads()?)).await?;
    if kept.is_empty() {
        return Ok(());
    }
    let wanted: HashSet<String> = back.store.pulled_blobs().await?.into_iter().collect();
    let back = back.clone();
    blocking(move || {
        let unwanted = kept
            .iter()
            .filter(|digest| !wanted.contains(&digest.to_string()));
        for digest in unwanted {
            back.images.remove_download(digest)?;
        }
        Ok(())
    })
    .await
}

fn histories(retention: &Retention) -> [History; 3] {
    [
        History::Events {
            kept: retention.events.into(),
            before: retention.events_age.map_or(0, ago),
        },
        History::Operations {
            kept: retention.operations.into(),
        },
        History::Pulls {
            before: ago(ANSWERS_KEPT),
        },
    ]
}

fn ago(age: Duration) -> i64 {
    now_ns().saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX))
}

async fn prune(back: &Back, history: History, stop: &watch::Receiver<bool>) {
    while !*stop.borrow() {
        match back.observed.prune(history).await {
            Ok(deleted) if deleted < u64::from(BATCH) => return,
            Ok(_) => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                tracing::warn!(?history, %error, "cannot prune; it is tried again");
                return;
            }
        }
    }
}
