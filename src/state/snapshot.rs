//! The table `snapshots`: the writable layer of each container and the image layers it stands on.

use super::cleanup::Resource;
use super::error::during;
use super::writer::Tx;
use super::{StateError, Store, now_ns};
use crate::id::ContainerId;

impl Store {
    /// The topmost image layer below a container's writable one; `None` for an image without
    /// layers.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn snapshot_top(&self, id: &ContainerId) -> Result<Option<String>, StateError> {
        let top: Option<Option<String>> = self
            .read("read a snapshot", || {
                sqlx::query_scalar("SELECT top_chain_id FROM snapshots WHERE container_id = ?")
                    .bind(id.as_str())
                    .fetch_optional(&self.readers)
            })
            .await?;
        Ok(top.flatten())
    }

    /// Ids of the containers that have a writable layer, for the sweep.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn snapshot_owners(&self) -> Result<Vec<String>, StateError> {
        self.read("list snapshots", || {
            sqlx::query_scalar("SELECT container_id FROM snapshots").fetch_all(&self.readers)
        })
        .await
    }
}

impl Tx {
    /// Records a writable layer before it is made (invariant I5). From here on the layers below
    /// it stay, whatever happens to their image.
    pub(super) async fn add_snapshot(
        &mut self,
        id: &ContainerId,
        top_chain_id: Option<&str>,
    ) -> Result<(), StateError> {
        sqlx::query(
            "INSERT INTO snapshots (container_id, top_chain_id, created_at) VALUES (?, ?, ?)",
        )
        .bind(id.as_str())
        .bind(top_chain_id)
        .bind(now_ns())
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("record a snapshot"))
    }

    /// Leaves the writable layer to a cleanup task.
    pub(super) async fn release_snapshot(&mut self, id: &ContainerId) -> Result<(), StateError> {
        let known: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM snapshots WHERE container_id = ?")
                .bind(id.as_str())
                .fetch_optional(&mut self.connection)
                .await
                .map_err(during("find a snapshot"))?;
        if known.is_some() {
            self.add_cleanup(Resource::Rootfs, id.as_str(), id.as_str())
                .await?;
        }
        Ok(())
    }

    /// The writable layer is gone; layers that only it needed may go.
    pub(super) async fn delete_snapshot(&mut self, owner: &str) -> Result<(), StateError> {
        sqlx::query("DELETE FROM snapshots WHERE container_id = ?")
            .bind(owner)
            .execute(&mut self.connection)
            .await
            .map_err(during("delete a snapshot"))?;
        self.release_unused_layers().await
    }
}
