//! Changed limits of a pod as a whole: the wish for them, and what became of it. As with those of
//! a container (`container_update`), the newest wish holds what those before it brought.

use rusqlite::params;

use super::container_update::Known;
use super::error::corrupt;
use super::event::Subject;
use super::operation::Finished;
use super::sql::{column, first};
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError, Store};
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::Verdict;
use crate::lifecycle::sandbox::{Desired, State, admit_update};
use crate::lifecycle::spec::Resources;

/// What the next wish builds on.
struct Standing {
    desired: String,
    state: String,
    known: Known,
}

impl Store {
    /// Whether another pod that is not down has the same parent cgroup: limits set there would be
    /// its as well. A former sandbox of the same pod is not another one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn shares_its_parent(&self, id: &SandboxId) -> Result<bool, StateError> {
        let other: Option<i64> = self
            .look("find pods of a parent", |connection| {
                let sql = "SELECT 1 FROM sandboxes o JOIN sandboxes s ON s.id = ?
                     WHERE o.uid <> s.uid AND o.state IN ('preparing', 'ready')
                     AND o.spec ->> 'cgroup_parent' = s.spec ->> 'cgroup_parent' LIMIT 1";
                first(connection, sql, [id.as_str()], column)
            })
            .await?;
        Ok(other.is_some())
    }
}

impl DesiredWriter {
    /// Records the wish for other limits of a pod and queues it; returns which update of the pod
    /// it is. What `change` leaves at 0 or empty stays as it is.
    ///
    /// # Errors
    /// When the pod is not up, is not there, or the database fails.
    pub async fn update_sandbox(
        &self,
        id: SandboxId,
        change: Resources,
    ) -> Result<i64, StateError> {
        self.0
            .write("want other limits of a pod", move |tx| {
                Box::pin(async move { tx.update_sandbox(&id, change).await })
            })
            .await
    }
}

impl ObservedWriter {
    /// Update `number` of a pod has come true, with these limits now in force, or it has failed
    /// and they are as before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_updated(
        &self,
        id: SandboxId,
        number: i64,
        in_force: Option<Resources>,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("record other limits of a pod", move |tx| {
                Box::pin(async move { tx.sandbox_updated(&id, number, in_force, &done).await })
            })
            .await
    }
}

impl Tx {
    async fn update_sandbox(
        &mut self,
        id: &SandboxId,
        change: Resources,
    ) -> Result<i64, StateError> {
        let standing = self.first(
            "find a sandbox",
            "SELECT desired, CASE WHEN init_ended_at IS NULL THEN state ELSE 'stopped' END,
                 resources, wanted_resources, updates_wanted, updates_done
             FROM sandboxes WHERE id = ?",
            [id.as_str()],
            |row| {
                Ok(Standing {
                    desired: row.get(0)?,
                    state: row.get(1)?,
                    known: Known::read(row, 2)?,
                })
            },
        )?;
        let Some(standing) = standing else {
            return Err(StateError::NotFound {
                noun: "sandbox",
                id: id.to_string(),
            });
        };
        let desired: Desired = standing
            .desired
            .parse()
            .map_err(corrupt("sandboxes.desired"))?;
        let state: State = standing.state.parse().map_err(corrupt("sandboxes.state"))?;
        if let Verdict::Refused(impossible) = admit_update(desired, state) {
            return Err(impossible.of(id).into());
        }
        let columns = ["sandboxes.resources", "sandboxes.wanted_resources"];
        let base = standing.known.base(columns)?.unwrap_or_default();
        let wanted = base.changed_by(change);
        let wanted = serde_json::to_string(&wanted);
        let wanted = wanted.map_err(corrupt("sandboxes.wanted_resources"))?;
        self.run(
            "want other limits of a pod",
            "UPDATE sandboxes SET wanted_resources = ?2, updates_wanted = updates_wanted + 1
             WHERE id = ?1",
            params![id.as_str(), wanted],
        )?;
        self.enqueue(&ObjectKey::Sandbox(id.clone())).await?;
        Ok(standing.known.asked + 1)
    }

    async fn sandbox_updated(
        &mut self,
        id: &SandboxId,
        number: i64,
        in_force: Option<Resources>,
        done: &Finished,
    ) -> Result<(), StateError> {
        let json = in_force.as_ref().map(serde_json::to_string).transpose();
        self.run(
            "record other limits of a pod",
            "UPDATE sandboxes SET updates_done = ?2, update_error = ?3,
             resources = coalesce(?4, resources) WHERE id = ?1",
            params![
                id.as_str(),
                number,
                done.error,
                json.map_err(corrupt("sandboxes.resources"))?,
            ],
        )?;
        self.tell_update(Subject::Sandbox(id), in_force.as_ref(), done)
            .await?;
        self.touch(ObjectKey::Sandbox(id.clone()));
        Ok(())
    }
}
