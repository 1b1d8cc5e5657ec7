//! The table `cleanup_tasks`: what is to be removed from kernel or disk, after its owner is done
//! with it or because it never had one, off everybody's path. Each task is a job as well, and is
//! tried until it succeeds.
//!
//! ```text
//! pending ──a worker takes it──► in_progress ──gone, or somebody's after all──► completed
//!                                  ▲      │ cannot be removed
//!                                  └── failed: its job tries again, later and later
//! ```

use rusqlite::params;

use super::error::{corrupt, during};
use super::sql::{column, first};
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, now_ns};
use crate::id::ObjectKey;
use crate::lifecycle::stored_as_text;

/// About what the kernel takes to end a namespace with its links.
const LINK_NS: i64 = 40_000_000;
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

impl Tx {
    /// Adds a task and its job. The same thing is not listed twice.
    pub(super) async fn add_cleanup(
        &mut self,
        resource: Resource,
        path: &str,
        owner: &str,
    ) -> Result<(), StateError> {
        let id: Option<i64> = self.first(
            "add a cleanup task",
            "INSERT INTO cleanup_tasks (resource_type, path, owner, status, created_at)
             VALUES (?1, ?2, ?3, 'pending', ?4)
             ON CONFLICT (resource_type, path) DO UPDATE SET status = 'pending', owner = ?3,
                 created_at = CASE WHEN completed_at IS NULL THEN created_at ELSE ?4 END,
                 attempts = CASE WHEN completed_at IS NULL THEN attempts ELSE 0 END,
                 error = CASE WHEN completed_at IS NULL THEN error END,
                 completed_at = NULL RETURNING id",
            params![resource.as_str(), path, owner, now_ns()],
            column,
        )?;
        let id = id.ok_or(sqlx::Error::RowNotFound);
        let id = id.map_err(during("add a cleanup task"))?;
        match resource {
            // Most often it goes by itself, with its namespace.
            Resource::Network => self.enqueue_later(&ObjectKey::Cleanup(id), LINK_NS),
            _ => self.enqueue(&ObjectKey::Cleanup(id)).await,
        }
    }
}

impl Store {
    /// A task that is still to be done.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn cleanup_task(&self, id: i64) -> Result<Option<CleanupTask>, StateError> {
        let row: Option<(String, String, String)> = self
            .look("read a cleanup task", |connection| {
                let sql = "SELECT resource_type, path, owner FROM cleanup_tasks
                     WHERE id = ? AND status <> 'completed'";
                first(connection, sql, [id], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
            })
            .await?;
        row.map(|(resource, path, owner)| {
            Ok(CleanupTask {
                resource: resource.parse().map_err(corrupt("cleanup_tasks"))?,
                path,
                owner,
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
                // What limits a pod has its link's name but for the first letter.
                "SELECT 1 FROM network_allocations
                 WHERE host_link IN (?1, 'q' || substr(?1, 2))
                 AND status IN ('allocated', 'active')"
            }
            Resource::Bridge => "SELECT 1 FROM network_allocations WHERE bridge = ?1",
            Resource::Layer => "SELECT 1 FROM layers WHERE chain_id = ?1 AND state <> 'removing'",
            Resource::Rootfs | Resource::ContainerFiles => "SELECT 1 FROM containers WHERE id = ?1",
            Resource::SandboxFiles => {
                "SELECT 1 FROM sandboxes WHERE id = ?1
                 UNION ALL SELECT 1 FROM prepared_networks WHERE id = ?1"
            }
            Resource::Mounts => {
                "SELECT 1 FROM sandboxes WHERE id = ?1 AND state <> 'stopped'
                 UNION ALL SELECT 1 FROM prepared_networks WHERE id = ?1"
            }
            Resource::Cgroup => {
                "SELECT 1 FROM sandboxes WHERE id = ?1 UNION ALL SELECT 1 FROM containers
                 WHERE id = ?1 AND (released = 0 OR state NOT IN ('exited', 'error'))"
            }
        };
        let by_owner = matches!(task.resource, Resource::Mounts | Resource::Cgroup);
        let name = if by_owner { &task.owner } else { &task.path };
        let claim: Option<i64> = self
            .look("look for an owner", |connection| {
                first(connection, claims, [name], column)
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
            .write_later("begin a cleanup task", None, move |tx| {
                Box::pin(async move {
                    tx.run(
                        "begin a cleanup task",
                        "UPDATE cleanup_tasks SET status = 'in_progress', started_at = ?,
                         attempts = attempts + 1 WHERE id = ? AND status <> 'completed'",
                        [now_ns(), id],
                    )
                    .map(drop)
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
            .write_later("finish a cleanup task", None, move |tx| {
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
            .write_later("withdraw a cleanup task", None, move |tx| {
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
                    tx.run(
                        "note a failed cleanup",
                        "UPDATE cleanup_tasks SET status = 'failed', error = ? WHERE id = ?",
                        params![error, id],
                    )
                    .map(drop)
                })
            })
            .await
    }
}

impl Tx {
    async fn end_cleanup(&mut self, id: i64, note: Option<&str>) -> Result<(), StateError> {
        self.run(
            "finish a cleanup task",
            "UPDATE cleanup_tasks SET status = 'completed', completed_at = ?, error = ?
             WHERE id = ?",
            params![now_ns(), note, id],
        )?;
        let sql = "DELETE FROM cleanup_tasks WHERE status = 'completed' AND id < ? - ?";
        self.run("prune cleanup tasks", sql, [id, KEPT]).map(drop)
    }
}
