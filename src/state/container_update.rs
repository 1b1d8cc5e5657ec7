//! Changed limits of a container: the wish for them, and what became of it.
//!
//! A wish holds all limits, what was there before with what a client changes. So wishes that come
//! while one is being carried out fall together into the newest, and that is put in force, or not,
//! as a whole.

use rusqlite::{Row, params};

use super::error::corrupt;
use super::event::Subject;
use super::operation::Finished;
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError};
use crate::id::{ContainerId, ObjectKey};
use crate::lifecycle::Verdict;
use crate::lifecycle::container::{Desired, State, admit_update};
use crate::lifecycle::spec::{ContainerSpec, Resources};

/// How far the updates of a container's limits are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// The limits that are wanted, if others than at its creation have ever been.
    pub wanted: Option<Resources>,
    /// How many updates were asked for. The newest holds what those before it brought.
    pub asked: i64,
    /// Up to which they have been answered.
    pub done: i64,
    /// Why the newest answered one failed, if it did.
    pub error: Option<String>,
}

/// Reads limits as a column keeps them.
pub(super) fn limits(
    json: Option<&str>,
    column: &'static str,
) -> Result<Option<Resources>, StateError> {
    let parsed = json.map(serde_json::from_str).transpose();
    parsed.map_err(corrupt(column))
}

impl Update {
    /// Whether other limits are wanted than the ones about which something has been said.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.asked > self.done
    }
}

/// What is known of the limits of a container or a pod.
pub(super) struct Known {
    in_force: Option<String>,
    wanted: Option<String>,
    /// How many updates have been wanted.
    pub(super) asked: i64,
    done: i64,
}

impl Known {
    /// From four columns of a row, of which `first` is the first: limits in force and wanted,
    /// updates wanted and done.
    pub(super) fn read(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            in_force: row.get(first)?,
            wanted: row.get(first + 1)?,
            asked: row.get(first + 2)?,
            done: row.get(first + 3)?,
        })
    }

    /// The wish that is still to come true, or else what is in force; `None` when there has been no
    /// update. `columns` are the names of the first two.
    pub(super) fn base(&self, columns: [&'static str; 2]) -> Result<Option<Resources>, StateError> {
        let [in_force, wanted] = columns;
        if self.asked > self.done
            && let Some(wanted) = limits(self.wanted.as_deref(), wanted)?
        {
            return Ok(Some(wanted));
        }
        limits(self.in_force.as_deref(), in_force)
    }
}

/// What the next wish builds on.
struct Standing {
    desired: String,
    state: String,
    spec: String,
    known: Known,
}

impl DesiredWriter {
    /// Records the wish for other limits and queues it; returns which update of the container it
    /// is. What `change` leaves at 0 or empty stays as it is.
    ///
    /// # Errors
    /// When the container is being removed, is not there, or the database fails.
    pub async fn update_container(
        &self,
        id: ContainerId,
        change: Resources,
    ) -> Result<i64, StateError> {
        self.0
            .write("want other limits", move |tx| {
                Box::pin(async move { tx.update_container(&id, change).await })
            })
            .await
    }
}

impl ObservedWriter {
    /// Update `number` of a container has come true, with these limits now in force and those that
    /// the kernel holds, if it was asked, or it has failed and they are as before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_updated(
        &self,
        id: ContainerId,
        number: i64,
        in_force: (Option<Resources>, Option<Resources>),
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("record other limits", move |tx| {
                Box::pin(async move { tx.container_updated(&id, number, in_force, &done).await })
            })
            .await
    }
}

impl Tx {
    async fn update_container(
        &mut self,
        id: &ContainerId,
        change: Resources,
    ) -> Result<i64, StateError> {
        let standing = self.first(
            "find a container",
            "SELECT desired, state, spec, resources, wanted_resources, updates_wanted, updates_done
             FROM containers WHERE id = ?",
            [id.as_str()],
            |row| {
                Ok(Standing {
                    desired: row.get(0)?,
                    state: row.get(1)?,
                    spec: row.get(2)?,
                    known: Known::read(row, 3)?,
                })
            },
        )?;
        let Some(standing) = standing else {
            return Err(StateError::NotFound {
                noun: "container",
                id: id.to_string(),
            });
        };
        let desired: Desired = standing
            .desired
            .parse()
            .map_err(corrupt("containers.desired"))?;
        let state: State = standing
            .state
            .parse()
            .map_err(corrupt("containers.state"))?;
        if let Verdict::Refused(impossible) = admit_update(desired, state) {
            return Err(impossible.of(id).into());
        }
        let wanted = standing.base()?.changed_by(change);
        let wanted = serde_json::to_string(&wanted);
        let wanted = wanted.map_err(corrupt("containers.wanted_resources"))?;
        self.run(
            "want other limits",
            "UPDATE containers SET wanted_resources = ?2, updates_wanted = updates_wanted + 1
             WHERE id = ?1",
            params![id.as_str(), wanted],
        )?;
        self.enqueue(&ObjectKey::Container(id.clone())).await?;
        Ok(standing.known.asked + 1)
    }

    async fn container_updated(
        &mut self,
        id: &ContainerId,
        number: i64,
        (in_force, held): (Option<Resources>, Option<Resources>),
        done: &Finished,
    ) -> Result<(), StateError> {
        let positive = |value: i64| (value > 0).then_some(value);
        let limits = in_force.as_ref();
        let json = limits.map(serde_json::to_string).transpose();
        let held = held.as_ref().map(serde_json::to_string).transpose();
        self.run(
            "record other limits",
            "UPDATE containers SET updates_done = ?2, update_error = ?3,
             resources = coalesce(?4, resources),
             held_resources = CASE WHEN ?4 IS NULL THEN held_resources ELSE ?8 END,
             memory_limit_bytes = CASE WHEN ?4 IS NULL THEN memory_limit_bytes ELSE ?5 END,
             cpu_quota_us = CASE WHEN ?4 IS NULL THEN cpu_quota_us ELSE ?6 END,
             cpu_shares = CASE WHEN ?4 IS NULL THEN cpu_shares ELSE ?7 END
             WHERE id = ?1",
            params![
                id.as_str(),
                number,
                done.error,
                json.map_err(corrupt("containers.resources"))?,
                limits.and_then(|limits| positive(limits.memory_limit_bytes)),
                limits.and_then(|limits| positive(limits.cpu_quota_us)),
                limits.and_then(|limits| positive(limits.cpu_shares)),
                held.map_err(corrupt("containers.held_resources"))?,
            ],
        )?;
        self.tell_update(Subject::Container(id), limits, done)
            .await?;
        self.touch(ObjectKey::Container(id.clone()));
        Ok(())
    }

    /// Keeps what an update was and what came of it.
    pub(super) async fn tell_update(
        &mut self,
        subject: Subject<'_>,
        in_force: Option<&Resources>,
        done: &Finished,
    ) -> Result<(), StateError> {
        self.operation(done).await?;
        match (&done.error, in_force) {
            (Some(error), _) => self.event(subject, "update_failed", error).await,
            (None, Some(limits)) => self.event(subject, "updated", &limits.to_string()).await,
            (None, None) => Ok(()),
        }
    }
}

impl Standing {
    /// What the container was made with, when nobody has wanted others since.
    fn base(&self) -> Result<Resources, StateError> {
        let columns = ["containers.resources", "containers.wanted_resources"];
        if let Some(base) = self.known.base(columns)? {
            return Ok(base);
        }
        let spec: ContainerSpec =
            serde_json::from_str(&self.spec).map_err(corrupt("containers.spec"))?;
        Ok(spec.resources)
    }
}
