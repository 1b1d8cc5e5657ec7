//! Who has heard what became of a wish: sandboxes nobody came back for, starts that were answered.
//!
//! A wish outlives the call that brought it. So that a pod whose caller is gone for good does not
//! stay for ever, a sandbox is unclaimed until somebody asks for it by its id, or has been told it.

use rusqlite::params;

use super::error::corrupt;
use super::event::Subject;
use super::sql::column;
use super::writer::Tx;
use super::{DesiredWriter, StateError, Store, now_ns};
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::event::Stopper;
use crate::lifecycle::sandbox::Desired;

impl DesiredWriter {
    /// Somebody knows of this sandbox; it stays. Not waited for.
    pub fn claim_sandbox(&self, id: SandboxId) {
        self.0.write_behind("claim a sandbox", move |tx| {
            Box::pin(async move {
                let sql = "UPDATE sandboxes SET unclaimed_since = NULL WHERE id = ?";
                tx.run("claim a sandbox", sql, [id.as_str()]).map(drop)
            })
        });
    }

    /// A caller is told how a container's start ended: who asks for another one asks for a second
    /// start. Not waited for; a start that is asked for later comes after it.
    pub fn start_answered(&self, id: ContainerId) {
        self.0.write_behind("answer a start", move |tx| {
            Box::pin(async move {
                let sql = "UPDATE containers SET start_answered = 1 WHERE id = ?";
                tx.run("answer a start", sql, [id.as_str()]).map(drop)
            })
        });
    }

    /// Withdraws sandboxes that nobody has come back for since `before` (ns since 1970), except
    /// those a call waits for just now. Returns which.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn withdraw_abandoned(
        &self,
        store: &Store,
        before: i64,
    ) -> Result<Vec<SandboxId>, StateError> {
        let mut ids = store.unclaimed_since(before).await?;
        ids.retain(|id| !store.wakes().is_awaited(&ObjectKey::Sandbox(id.clone())));
        if ids.is_empty() {
            return Ok(ids);
        }
        self.0
            .write("withdraw abandoned sandboxes", move |tx| {
                Box::pin(async move {
                    let mut withdrawn = Vec::new();
                    for id in ids {
                        if tx.withdraw_abandoned(&id, before).await? {
                            withdrawn.push(id);
                        }
                    }
                    Ok(withdrawn)
                })
            })
            .await
    }
}

impl Store {
    /// Sandboxes that nobody has come back for since `before` (ns since 1970).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn unclaimed_since(&self, before: i64) -> Result<Vec<SandboxId>, StateError> {
        let ids: Vec<String> = self
            .read("list unclaimed sandboxes", || {
                sqlx::query_scalar(
                    "SELECT id FROM sandboxes WHERE unclaimed_since <= ? AND desired = 'ready'
                     LIMIT 100",
                )
                .bind(before)
                .fetch_all(&self.readers)
            })
            .await?;
        ids.into_iter()
            .map(|id| id.try_into().map_err(corrupt("sandboxes.id")))
            .collect()
    }
}

impl Tx {
    /// A caller asks for a sandbox that nobody has come back for yet: its time begins anew.
    pub(super) async fn asked_again(&mut self, id: &SandboxId) -> Result<(), StateError> {
        self.run(
            "ask for a sandbox again",
            "UPDATE sandboxes SET unclaimed_since = ? WHERE id = ? AND unclaimed_since IS NOT NULL",
            params![now_ns(), id.as_str()],
        )
        .map(drop)
    }

    async fn withdraw_abandoned(
        &mut self,
        id: &SandboxId,
        before: i64,
    ) -> Result<bool, StateError> {
        // It may have been claimed, or asked for again, since the list was read.
        let since: Option<i64> = self.first(
            "find an unclaimed sandbox",
            "SELECT unclaimed_since FROM sandboxes
             WHERE id = ? AND unclaimed_since <= ? AND desired = 'ready'",
            params![id.as_str(), before],
            column,
        )?;
        let Some(since) = since else {
            return Ok(false);
        };
        let seconds = now_ns().saturating_sub(since) / 1_000_000_000;
        let message = format!(
            "withdrawn: the call that asked for it ended without an answer, and nobody has asked \
             for it in the {seconds} s since"
        );
        self.event(Subject::Sandbox(id), "abandoned", &message)
            .await?;
        self.lower_sandbox(id, Desired::Removed, Stopper::Abandoned)
            .await
    }
}
