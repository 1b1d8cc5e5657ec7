//! The wish that a sandbox come down: who has it, and what is told of it.

use super::StateError;
use super::error::corrupt;
use super::event::Subject;
use super::sql::column;
use super::writer::Tx;
use crate::id::SandboxId;
use crate::lifecycle::event::Stopper;
use crate::lifecycle::sandbox::Desired;

impl Tx {
    /// The wish that a sandbox be stopped or removed, in the running transaction.
    pub(super) async fn lower_sandbox(
        &mut self,
        id: &SandboxId,
        to: Desired,
        by: Stopper,
    ) -> Result<bool, StateError> {
        let changed = self.run(
            "lower a sandbox",
            "UPDATE sandboxes SET desired = ?2 WHERE id = ?1 AND
             (desired = 'ready' OR (desired = 'stopped' AND ?2 = 'removed'))",
            [id.as_str(), to.as_str()],
        )? > 0;
        if changed {
            let kind = match to {
                Desired::Removed => "removing",
                _ => "stopping",
            };
            let message = format!("by {}", by.as_str());
            self.event(Subject::Sandbox(id), kind, &message).await?;
            self.stopping_containers(id, by).await?;
        }
        self.enqueue_sandbox_and_containers(id).await?;
        Ok(changed)
    }

    /// Records who ends the containers of a sandbox that run.
    async fn stopping_containers(&mut self, id: &SandboxId, by: Stopper) -> Result<(), StateError> {
        let running: Vec<String> = self.all(
            "list a sandbox' containers",
            "SELECT id FROM containers WHERE sandbox_id = ? AND state IN ('starting', 'running')",
            [id.as_str()],
            column,
        )?;
        let message = format!("by {}", by.as_str());
        for container in running {
            let container = container.try_into().map_err(corrupt("containers.id"))?;
            self.event(Subject::Container(&container), "stopping", &message)
                .await?;
        }
        Ok(())
    }
}
