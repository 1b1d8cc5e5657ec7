//! How much history is kept: events, operations, answered pulls. What is over goes in small
//! batches, so that no write waits long behind a prune.

use super::error::during;
use super::{ObservedWriter, StateError};

/// Rows deleted in one transaction at most.
pub const BATCH: u32 = 500;

/// Histories that are pruned.
#[derive(Debug, Clone, Copy)]
pub enum History {
    /// All but the newest `kept` events, and those from before `before` (ns since 1970).
    Events {
        /// Rows.
        kept: i64,
        /// ns since 1970.
        before: i64,
    },
    /// All but the newest operations.
    Operations {
        /// Rows.
        kept: i64,
    },
    /// Pulls that were answered before `before`: nobody waits for their answers any more.
    Pulls {
        /// ns since 1970.
        before: i64,
    },
}

impl ObservedWriter {
    /// Deletes up to [`BATCH`] rows that are over, oldest first; returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn prune(&self, history: History) -> Result<u64, StateError> {
        let (sql, first, second) = match history {
            History::Events { kept, before } => (
                "DELETE FROM events WHERE sequence IN (SELECT sequence FROM events
                     WHERE sequence <= max((SELECT max(sequence) FROM events) - ?1, coalesce(
                         (SELECT sequence FROM events WHERE at < ?2 ORDER BY at DESC LIMIT 1), 0))
                     ORDER BY sequence LIMIT ?3)",
                kept,
                before,
            ),
            History::Operations { kept } => (
                "DELETE FROM operations WHERE id IN (SELECT id FROM operations
                     WHERE id <= (SELECT max(id) FROM operations) - ?1 AND ?2 = 0
                     ORDER BY id LIMIT ?3)",
                kept,
                0,
            ),
            History::Pulls { before } => (
                "DELETE FROM pulls WHERE reference IN (SELECT reference FROM pulls
                     WHERE finished >= requested AND finished_at < ?1 AND ?2 = 0 LIMIT ?3)",
                before,
                0,
            ),
        };
        self.0
            .write("prune", move |tx| {
                Box::pin(async move {
                    sqlx::query(sql)
                        .bind(first)
                        .bind(second)
                        .bind(BATCH)
                        .execute(&mut tx.connection)
                        .await
                        .map(|done| done.rows_affected())
                        .map_err(during("prune"))
                })
            })
            .await
    }
}
