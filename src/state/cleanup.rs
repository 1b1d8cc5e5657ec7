//! The table `cleanup_tasks`: what is to be removed from kernel or disk, after its owner is done
//! with it or because it never had one, off everybody's path. Each task is a job as well, and is
//! tried until it succeeds.
//!
//! ```text
//! pending ──a worker takes it──► in_progress ──gone, or somebody's after all──► completed
//!                                  ▲      │ cannot be removed
//!                                  └── failed: its job tries again, later and later
//! ```

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
        /// A bridge of ours that is not the configured one, by name.
        Bridge = "bridge",
        /// A cgroup, by path; what runs in it is killed.
        Cgroup = "cgroup",
        /// A mount point.
        Mounts = "mounts",
        /// An unpacked layer, by chain id.
        Layer = "layer",
        /// A pod's directory with all that is mounted in it, by id.
        SandboxFiles = "sandbox_files",
        /// A container's directory, by id.
        ContainerFiles = "container_files",
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
                 created_at = CASE WHEN completed_at IS NULL THEN created_at ELSE ?4 END,
                 attempts = CASE WHEN completed_at IS NULL THEN attempts ELSE 0 END,
                 error = CASE WHEN completed_at IS NULL THEN error END,
                 completed_at = NULL RETURNING id",
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

    /// Whether what a task names still has nobody who needs it: looked at right before it is
    /// removed. A mount point inside a pod's directory belongs to the pod `owner` names.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn is_unclaimed(&self, task: &CleanupTask) -> Result<bool, StateError> {
        let claims = match task.resource {
            Resource::Network => {
                "SELECT 1 FROM network_allocations WHERE host_link = ?1
                 AND status IN ('allocated', 'active')"
            }
            Resource::Bridge => "SELECT 1 FROM network_allocations WHERE bridge = ?1",
            Resource::Layer => "SELECT 1 FROM layers WHERE chain_id = ?1 AND state <> 'removing'",
            Resource::Rootfs | Resource::ContainerFiles => "SELECT 1 FROM containers WHERE id = ?1",
            Resource::SandboxFiles => "SELECT 1 FROM sandboxes WHERE id = ?1",
            Resource::Mounts => "SELECT 1 FROM sandboxes WHERE id = ?1 AND state <> 'stopped'",
            Resource::Cgroup => {
                "SELECT 1 FROM sandboxes WHERE id = ?1 UNION ALL SELECT 1 FROM containers
                 WHERE id = ?1 AND (released = 0 OR state NOT IN ('exited', 'error'))"
            }
        };
        let by_owner = matches!(task.resource, Resource::Mounts | Resource::Cgroup);
        let name = if by_owner { &task.owner } else { &task.path };
        let claim: Option<i64> = self
            .read("look for an owner", || {
                sqlx::query_scalar(claims)
                    .bind(name)
                    .fetch_optional(&self.readers)
            })
            .await?;
        Ok(claim.is_none())
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
    /// Has things removed that have no row: a task and a job for each.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_orphans(&self, orphans: Vec<CleanupTask>) -> Result<(), StateError> {
        self.0
            .write("record orphans", move |tx| {
                Box::pin(async move {
                    for CleanupTask {
                        resource,
                        path,
                        owner,
                    } in &orphans
                    {
                        tx.add_cleanup(*resource, path, owner).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// A worker has taken the task.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cleanup_begun(&self, id: i64) -> Result<(), StateError> {
        self.0
            .write("begin a cleanup task", move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE cleanup_tasks SET status = 'in_progress', started_at = ?,
                         attempts = attempts + 1 WHERE id = ? AND status <> 'completed'",
                    )
                    .bind(now_ns())
                    .bind(id)
                    .execute(&mut tx.connection)
                    .await
                    .map(drop)
                    .map_err(during("begin a cleanup task"))
                })
            })
            .await
    }

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
                        Resource::Rootfs => tx.delete_snapshot(&task.path).await?,
                        // These have no row of their own.
                        Resource::Bridge
                        | Resource::Cgroup
                        | Resource::Mounts
                        | Resource::SandboxFiles
                        | Resource::ContainerFiles => {}
                    }
                    tx.end_cleanup(id, None).await
                })
            })
            .await
    }

    /// The thing has an owner after all, and stays.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cleanup_withdrawn(&self, id: i64) -> Result<(), StateError> {
        self.0
            .write("withdraw a cleanup task", move |tx| {
                Box::pin(async move {
                    let why = "it is in use: nothing was removed";
                    tx.end_cleanup(id, Some(why)).await
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

impl Tx {
    async fn end_cleanup(&mut self, id: i64, note: Option<&str>) -> Result<(), StateError> {
        sqlx::query(
            "UPDATE cleanup_tasks SET status = 'completed', completed_at = ?, error = ?
             WHERE id = ?",
        )
        .bind(now_ns())
        .bind(note)
        .bind(id)
        .execute(&mut self.connection)
        .await
        .map_err(during("finish a cleanup task"))?;
        sqlx::query("DELETE FROM cleanup_tasks WHERE status = 'completed' AND id < ? - ?")
            .bind(id)
            .bind(KEPT)
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(during("prune cleanup tasks"))
    }
}
