//! The table `sandboxes`: PID 1 of a pod whose containers share a PID namespace.
//!
//! ```text
//! (none) ──started──► init_pid, init_start ──ends by itself──► init_ended_at: the pod comes down
//!                                          ──ended with its pod──► (none)
//! ```

use rusqlite::params;

use super::event::Subject;
use super::{ObservedWriter, StateError, now_ns};
use crate::id::{ObjectKey, SandboxId};

impl ObservedWriter {
    /// Remembers PID 1 of a shared PID namespace before anything else joins it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_init(
        &self,
        id: SandboxId,
        pid: i32,
        start: u64,
    ) -> Result<(), StateError> {
        self.0
            .write("record a pod's init", move |tx| {
                Box::pin(async move {
                    let sql = "UPDATE sandboxes SET init_pid = ?, init_start = ?,
                               init_ended_at = NULL WHERE id = ?";
                    let start = i64::try_from(start).unwrap_or(i64::MAX);
                    tx.run("record a pod's init", sql, params![pid, start, id.as_str()])
                        .map(drop)
                })
            })
            .await
    }

    /// PID 1 of a pod's shared PID namespace has ended although nobody had asked for it; with it
    /// every process in the namespace. The pod is brought down (`lifecycle::sandbox::effective`).
    /// `pid` is the one that ended: what another attempt had started says nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_init_ended(
        &self,
        id: SandboxId,
        pid: i32,
        how: String,
    ) -> Result<(), StateError> {
        self.0
            .write("record the end of a pod's init", move |tx| {
                Box::pin(async move {
                    let ended = tx.run(
                        "record the end of a pod's init",
                        "UPDATE sandboxes SET init_ended_at = ? WHERE id = ? AND init_pid = ?
                         AND desired = 'ready' AND state = 'ready' AND init_ended_at IS NULL",
                        params![now_ns(), id.as_str(), pid],
                    )?;
                    if ended > 0 {
                        tx.event(Subject::Sandbox(&id), "init_ended", &how).await?;
                        tx.enqueue(&ObjectKey::Sandbox(id.clone())).await?;
                        tx.touch(ObjectKey::Sandbox(id));
                    }
                    Ok(())
                })
            })
            .await
    }
}
