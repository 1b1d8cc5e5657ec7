//! Keeps history within its bounds, off everybody's path: a little at a time, at start and then
//! once a minute.

use std::time::Duration;

use tokio::sync::watch;

use super::Back;
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
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = stop.changed() => {}
        }
    }
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
