//! After a reboot: nothing of the old boot is believed.

use super::error::{corrupt, during};
use super::event::Subject;
use super::writer::Tx;
use super::{ObservedWriter, StateError, node, now_ns};
use crate::id::SandboxId;
use crate::lifecycle::event::Announced;

impl ObservedWriter {
    /// After a reboot nothing of the old boot runs: sandboxes that were up are down.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_other_boots(&self, boot_id: String) -> Result<u64, StateError> {
        self.0
            .write("forget the last boot", move |tx| {
                Box::pin(async move { tx.forget_other_boots(&boot_id).await })
            })
            .await
    }
}

impl Tx {
    async fn forget_other_boots(&mut self, boot_id: &str) -> Result<u64, StateError> {
        let now = now_ns();
        if self.fact(node::BOOT_ID).await?.as_deref() != Some(boot_id) {
            // One that was being set up is set up again; its init may have another's number now.
            sqlx::query(
                "UPDATE sandboxes SET init_pid = NULL, init_start = NULL
                 WHERE state = 'preparing'",
            )
            .execute(&mut self.connection)
            .await
            .map_err(during("forget the last boot"))?;
            self.forget_attachments().await?;
            self.set_fact(node::BOOT_ID, boot_id).await?;
        }
        let ids: Vec<String> = sqlx::query_scalar(
            "UPDATE sandboxes SET state = 'stopped', stopped_at = ?1, init_pid = NULL,
             init_start = NULL WHERE state = 'ready' AND boot_id <> ?2 RETURNING id",
        )
        .bind(now)
        .bind(boot_id)
        .fetch_all(&mut self.connection)
        .await
        .map_err(during("forget the last boot"))?;
        for id in &ids {
            let id: SandboxId = id.clone().try_into().map_err(corrupt("sandboxes.id"))?;
            self.release_address(&id).await?;
            self.release_attachment(&id).await?;
            self.release_ports_unless_attached(&id).await?;
            let why = "the node was started anew";
            self.announce(Subject::Sandbox(&id), Announced::Stopped, "stopped", why)
                .await?;
            self.forget_containers(&id, now).await?;
        }
        Ok(u64::try_from(ids.len()).unwrap_or(u64::MAX))
    }

    async fn forget_containers(&mut self, id: &SandboxId, now: i64) -> Result<(), StateError> {
        let gone: Vec<String> = sqlx::query_scalar(
            "UPDATE containers SET state = 'exited', exited_at = ?1, exit_code = 255,
             reason = 'Unknown', error = 'the node was started anew', ended_by = 'reboot'
             WHERE sandbox_id = ?2 AND state IN ('starting', 'running') RETURNING id",
        )
        .bind(now)
        .bind(id.as_str())
        .fetch_all(&mut self.connection)
        .await
        .map_err(during("forget the last boot"))?;
        for container in gone {
            sqlx::query("UPDATE process_monitors SET status = 'aborted' WHERE container_id = ?")
                .bind(&container)
                .execute(&mut self.connection)
                .await
                .map_err(during("forget the last boot"))?;
            let container = container.try_into().map_err(corrupt("containers.id"))?;
            let why = "exit code 255, Unknown: the node was started anew";
            let subject = Subject::Container(&container);
            self.announce(subject, Announced::Stopped, "exited", why)
                .await?;
        }
        Ok(())
    }
}
