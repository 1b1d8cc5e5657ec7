//! Pods that nobody came back for.
//!
//! A caller that goes away cancels nothing (invariant I8), so a pod may come to stand for somebody
//! who never hears of it. It is withdrawn when, for the configured time, no call that asked for it
//! has been answered, none waits for it, and none has named it by its id. Showing up in a list does
//! not count. The time of a daemon that was down does not count either: nobody could ask then.

use std::time::Duration;

use super::Front;
use crate::state::now_ns;

/// Longest time between two looks.
const PERIOD_MAX: Duration = Duration::from_secs(30);

/// Withdraws abandoned pods until the daemon ends.
pub async fn run(front: Front) {
    let Some(after) = front.info.abandoned_after else {
        return;
    };
    let began_at = now_ns();
    let after_ns = i64::try_from(after.as_nanos()).unwrap_or(i64::MAX);
    let period = (after / 4).min(PERIOD_MAX);
    let mut stopped = front.stopped.clone();
    while !*stopped.borrow() {
        let before = now_ns().saturating_sub(after_ns);
        // Within the first period even what is older has to wait.
        if before >= began_at {
            withdraw(&front, before).await;
        }
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            _ = stopped.changed() => {}
        }
    }
}

async fn withdraw(front: &Front, before: i64) {
    match front.desired.withdraw_abandoned(&front.store, before).await {
        Ok(withdrawn) => {
            for sandbox in withdrawn {
                tracing::warn!(%sandbox, "nobody came back for the pod; it is withdrawn");
            }
        }
        Err(error) => tracing::error!(%error, "cannot withdraw abandoned pods; tried again"),
    }
}
