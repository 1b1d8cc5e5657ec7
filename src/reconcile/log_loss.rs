//! What could not be written to logs: recorded with the container, and said once.

use std::collections::HashMap;

use super::{Back, ReconcileError};
use crate::id::ContainerId;
use crate::shim::protocol::{LogLoss, ProcessId};

/// What the shim has told of and is not recorded yet: the newest of each container.
#[derive(Default)]
pub(super) struct Losses(HashMap<ProcessId, LogLoss>);

impl Losses {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, losses: Vec<LogLoss>) {
        let by_id = losses.into_iter().map(|loss| (loss.id.clone(), loss));
        self.0.extend(by_id);
    }

    /// Records all, or keeps all for the next try.
    pub(super) async fn record(&mut self, back: &Back) {
        if self.is_empty() {
            return;
        }
        match record(back, self.0.values().cloned().collect()).await {
            Ok(()) => self.0.clear(),
            Err(error) => {
                let error = error.full_text();
                tracing::error!(error, "cannot record what logs lack; it is tried again");
            }
        }
    }
}

/// Records what logs lack. Whatever was told before counts once.
pub(super) async fn record(back: &Back, losses: Vec<LogLoss>) -> Result<(), ReconcileError> {
    for loss in losses {
        let LogLoss {
            id,
            lines,
            bytes,
            why,
        } = loss;
        let Ok(id) = ContainerId::try_from(String::from(id)) else {
            continue;
        };
        let first = back
            .observed
            .container_log_lost(id.clone(), (lines, bytes), why.clone())
            .await?;
        if first {
            let text = "its log cannot be written; it goes on";
            tracing::warn!(container = %id, lines, bytes, why, "{text}");
        }
    }
    Ok(())
}
