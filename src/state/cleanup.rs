//! The table `cleanup_tasks`: what is to be removed from kernel or disk after its owner is done
//! with it, off everybody's path. Each task is a job as well, and is tried until it succeeds.

use sqlx::FromRow;

use super::error::{corrupt, during};
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, now_ns};
use crate::id::ObjectKey;
use crate::lifecycle::stored_as_text;

/// Finished tasks kept to be looked at.
const KEPT: i64 = 1000;

stored_as_text! {
    /// What kind of thing is to be removed.
    Resource {
        /// A directory that was a container's writable layer.
        Rootfs = "rootfs",
        /// A pod's link, by the name of the node's end.
        Network = "network",
        /// An unpacked layer, by chain id.
        Layer = "layer",
    }
}

/// A thing to remove.
#[derive(Debug, Clone)]
pub struct CleanupTask {
    /// Kind.
    pub resource: Resource,
    /// Which.
    pub path: String,
    /// Whose it was.
    pub owner: String,
}

#[derive(FromRow)]
struct Row {
    resource_type: String,
    path: String,
    owner: String,
}

impl Tx {
    /// Adds a task and its job. The same thing is not listed twice.
    pub(super) async fn add_cleanup(
        &mut self,
        resource: Resource,
        path: &str,
        owner: &str,
    ) -> Result<(), StateError> {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO cleanup_tasks (resource_type, path, owner, status, created_at)
             VALUES (?1, ?2, ?3, 'pending', ?4)
             ON CONFLICT (resource_type, path) DO UPDATE SET status = 'pending', owner = ?3,
                 created_at = ?4, completed_at = NULL, error = NULL RETURNING id",
        )
        .bind(resource.as_str())
        .bind(path)
        .bind(owner)
        .bind(now_ns())
        .fetch_one(&mut self.connection)
        .await
        .map_err(during("add a cleanup task"))?;
        self.enqueue(&ObjectKey::Cleanup(id)).await
    }
}

impl Store {
    /// A task that is still to be done.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn cleanup_task(&self, id: i64) -> Result<Option<CleanupTask>, StateError> {
        let row: Option<Row> = self
            .read("read a cleanup task", || {
                sqlx::query_as(
                    "SELECT resource_type, path, owner FROM cleanup_tasks
             WHERE id = ? AND status <> 'completed'",
                )
                .bind(id)
                .fetch_optional(&self.readers)
            })
            .await?;
        row.map(|row| {
            Ok(CleanupTask {
                resource: row
                    .resource_type
                    .parse()
                    .map_err(corrupt("cleanup_tasks"))?,
                path: row.path,
                owner: row.owner,
            })
        })
        .transpose()
    }

    /// Tasks still to be done, for recovery.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn pending_cleanups(&self) -> Result<Vec<i64>, StateError> {
        self.read("list cleanup tasks", || {
            sqlx::query_scalar("SELECT id FROM cleanup_tasks WHERE status <> 'completed'")
                .fetch_all(&self.readers)
        })
        .await
    }

    /// Number of tasks still to be done.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_cleanup_tasks(&self) -> Result<i64, StateError> {
        self.read("count cleanup tasks", || {
            sqlx::query_scalar("SELECT count(*) FROM cleanup_tasks WHERE status <> 'completed'")
                .fetch_one(&self.readers)
        })
        .await
    }
}

impl ObservedWriter {
    /// The thing is gone; the row that stood for it goes too.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cleanup_completed(&self, id: i64, task: CleanupTask) -> Result<(), StateError> {
        self.0
            .write("finish a cleanup task", move |tx| {
                Box::pin(async move {
                    match task.resource {
                        Resource::Network => tx.delete_address(&task.path).await?,
                        Resource::Layer => tx.delete_layer(&task.path).await?,
                        Resource::Rootfs => tx.delete_snapshot(&task.owner).await?,
                    }
                    sqlx::query(
                        "UPDATE cleanup_tasks SET status = 'completed', completed_at = ?,
                         error = NULL WHERE id = ?",
                    )
                    .bind(now_ns())
                    .bind(id)
                    .execute(&mut tx.connection)
                    .await
                    .map_err(during("finish a cleanup task"))?;
                    sqlx::query(
                        "DELETE FROM cleanup_tasks WHERE status = 'completed' AND id < ? - ?",
                    )
                    .bind(id)
                    .bind(KEPT)
                    .execute(&mut tx.connection)
                    .await
                    .map(drop)
                    .map_err(during("prune cleanup tasks"))
                })
            })
            .await
    }

    /// The thing could not be removed; its job tries again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cleanup_failed(&self, id: i64, error: String) -> Result<(), StateError> {
        self.0
            .write("note a failed cleanup", move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE cleanup_tasks SET status = 'failed', error = ? WHERE id = ?",
                    )
                    .bind(error)
                    .bind(id)
                    .execute(&mut tx.connection)
                    .await
                    .map(drop)
                    .map_err(during("note a failed cleanup"))
                })
            })
            .await
    }
}
