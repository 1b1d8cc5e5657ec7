//! The table `snapshots`: the writable layer of each container and the image layers it stands on.

use rusqlite::params;

use super::cleanup::Resource;
use super::sql::{column, first};
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
            .look("read a snapshot", |connection| {
                let sql = "SELECT top_chain_id FROM snapshots WHERE container_id = ?";
                first(connection, sql, [id.as_str()], column)
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
        self.run(
            "record a snapshot",
            "INSERT INTO snapshots (container_id, top_chain_id, created_at) VALUES (?, ?, ?)",
            params![id.as_str(), top_chain_id, now_ns()],
        )
        .map(drop)
    }

    /// Leaves the writable layer to a cleanup task.
    pub(super) async fn release_snapshot(&mut self, id: &ContainerId) -> Result<(), StateError> {
        let sql = "SELECT 1 FROM snapshots WHERE container_id = ?";
        let known: Option<i64> = self.first("find a snapshot", sql, [id.as_str()], column)?;
        if known.is_some() {
            self.add_cleanup(Resource::Rootfs, id.as_str(), id.as_str())
                .await?;
        }
        Ok(())
    }

    /// The writable layer is gone; layers that only it needed may go.
    pub(super) async fn delete_snapshot(&mut self, owner: &str) -> Result<(), StateError> {
        let sql = "DELETE FROM snapshots WHERE container_id = ?";
        self.run("delete a snapshot", sql, [owner])?;
        self.release_unused_layers().await
    }
}
