//! The table `sandboxes`.

use std::sync::Arc;

use rusqlite::params;

use super::attachment::Joins;
use super::container_update::{Update, limits};
use super::error::corrupt;
use super::event::Subject;
use super::operation::Finished;
use super::specs::Specs;
use super::sql::{all, column, first};
use super::transition::{Change, Table};
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError, Store, now_ns};
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::egress;
use crate::lifecycle::event::{Announced, Stopper};
use crate::lifecycle::hardware;
use crate::lifecycle::port::host_ports;
use crate::lifecycle::sandbox::{Desired, State, admit};
use crate::lifecycle::spec::{NamespaceMode, SandboxSpec};
use crate::lifecycle::{Impossible, Verdict};

/// A sandbox as the database knows it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: Arc<SandboxSpec>,
    /// When it was asked for, ns.
    pub created_at: i64,
    /// What the client wants now.
    pub desired: Desired,
    /// What is so.
    pub state: State,
    /// PID 1 of a shared PID namespace, with its start time in clock ticks.
    pub init: Option<(i32, u64)>,
    /// Whether that process has ended by itself: the pod is brought down.
    pub init_ended: bool,
    /// Its address, while it has one.
    pub address: Option<String>,
    /// Its other addresses, while it has some.
    pub more_addresses: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether the caller that asked for it has not come back yet.
    pub unclaimed: bool,
    /// Updates of its limits.
    pub update: Update,
}

impl Sandbox {
    /// The name its containers see: the wished one, the node's with the node's network, else its
    /// short id.
    #[must_use]
    pub fn hostname(&self) -> String {
        if !self.spec.hostname.is_empty() {
            return self.spec.hostname.clone();
        }
        if self.spec.network == NamespaceMode::Node {
            let node = rustix::system::uname();
            return node.nodename().to_string_lossy().into_owned();
        }
        self.id.short().to_owned()
    }
}

struct Row {
    id: String,
    spec: Result<Arc<SandboxSpec>, serde_json::Error>,
    created_at: i64,
    desired: String,
    state: String,
    init_pid: Option<i64>,
    init_start: Option<i64>,
    init_ended: bool,
    address: Option<String>,
    more_addresses: Option<String>,
    error: Option<String>,
    unclaimed: bool,
    wanted_resources: Option<String>,
    updates_wanted: i64,
    updates_done: i64,
    update_error: Option<String>,
}

const SELECT: &str = "SELECT s.id, s.spec, s.created_at, s.desired, s.state, s.init_pid,
     s.init_start, s.init_ended_at IS NOT NULL AS init_ended, coalesce(n.address, a.address),
     coalesce(n.address6, a.more_addresses), s.error,
     s.unclaimed_since IS NOT NULL AS unclaimed,
     s.wanted_resources, s.updates_wanted, s.updates_done, s.update_error
     FROM sandboxes s LEFT JOIN network_allocations n ON n.sandbox_id = s.id
         AND n.status IN ('allocated', 'active')
     LEFT JOIN network_attachments a ON a.sandbox_id = s.id AND a.state = 'added'";

impl Row {
    fn read(row: &rusqlite::Row<'_>, specs: &Specs<SandboxSpec>) -> rusqlite::Result<Self> {
        let id: String = row.get(0)?;
        let spec = specs.of(&id, row.get_ref(1)?.as_str()?);
        Ok(Self {
            id,
            spec,
            created_at: row.get(2)?,
            desired: row.get(3)?,
            state: row.get(4)?,
            init_pid: row.get(5)?,
            init_start: row.get(6)?,
            init_ended: row.get(7)?,
            address: row.get(8)?,
            more_addresses: row.get(9)?,
            error: row.get(10)?,
            unclaimed: row.get(11)?,
            wanted_resources: row.get(12)?,
            updates_wanted: row.get(13)?,
            updates_done: row.get(14)?,
            update_error: row.get(15)?,
        })
    }
}

impl TryFrom<Row> for Sandbox {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        let init = match (row.init_pid, row.init_start) {
            (Some(pid), Some(start)) => i32::try_from(pid).ok().zip(u64::try_from(start).ok()),
            _ => None,
        };
        Ok(Self {
            id: row.id.try_into().map_err(corrupt("sandboxes.id"))?,
            spec: row.spec.map_err(corrupt("sandboxes.spec"))?,
            created_at: row.created_at,
            desired: row.desired.parse().map_err(corrupt("sandboxes.desired"))?,
            state: row.state.parse().map_err(corrupt("sandboxes.state"))?,
            init,
            init_ended: row.init_ended,
            address: row.address,
            more_addresses: row
                .more_addresses
                .iter()
                .flat_map(|text| text.split(','))
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .collect(),
            error: row.error,
            unclaimed: row.unclaimed,
            update: Update {
                wanted: limits(
                    row.wanted_resources.as_deref(),
                    "sandboxes.wanted_resources",
                )?,
                asked: row.updates_wanted,
                done: row.updates_done,
                error: row.update_error,
            },
        })
    }
}

/// Which sandboxes a list is about; all conditions hold together.
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    /// Beginning of the id.
    pub id_prefix: Option<String>,
    /// `ready` or not.
    pub ready: Option<bool>,
}

impl Store {
    fn sandbox_row(&self) -> impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<Row> {
        |row| Row::read(row, &self.sandbox_specs)
    }

    /// One sandbox.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StateError> {
        let sql = format!("{SELECT} WHERE s.id = ?");
        let row = self
            .look("read a sandbox", |connection| {
                first(connection, &sql, [id.as_str()], self.sandbox_row())
            })
            .await?;
        row.map(Sandbox::try_from).transpose()
    }

    /// Sandboxes that clients may see, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>, StateError> {
        let sql = format!(
            "{SELECT} WHERE s.state IN ('ready', 'stopped')
             AND (?1 IS NULL OR (s.id >= ?1 AND s.id < ?1 || 'g'))
             AND (?2 IS NULL OR (s.state = 'ready' AND s.init_ended_at IS NULL) = ?2)
             ORDER BY s.created_at DESC"
        );
        let rows = self
            .look("list sandboxes", |connection| {
                let params = params![filter.id_prefix, filter.ready];
                all(connection, &sql, params, self.sandbox_row())
            })
            .await?;
        rows.into_iter().map(Sandbox::try_from).collect()
    }

    /// Ids that begin with `prefix`, two at most: enough to know whether it is unique.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn sandbox_ids(&self, prefix: &str) -> Result<Vec<SandboxId>, StateError> {
        let rows: Vec<String> = self
            .look("find a sandbox", |connection| {
                let sql = "SELECT id FROM sandboxes WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2";
                all(connection, sql, [prefix], column)
            })
            .await?;
        rows.into_iter()
            .map(|id| id.try_into().map_err(corrupt("sandboxes.id")))
            .collect()
    }

    /// Every id there is, for recovery and the sweep.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn all_sandbox_ids(&self) -> Result<Vec<SandboxId>, StateError> {
        let rows: Vec<String> = self
            .read("list sandbox ids", || {
                sqlx::query_scalar("SELECT id FROM sandboxes").fetch_all(&self.readers)
            })
            .await?;
        rows.into_iter()
            .map(|id| id.try_into().map_err(corrupt("sandboxes.id")))
            .collect()
    }
}

impl DesiredWriter {
    /// Records the wish for a sandbox, with its address and ports, and queues it; or finds the one
    /// that the same pod, name and attempt already has (invariant I8). It is known by `id`, unless
    /// it takes a network that was prepared for another one.
    ///
    /// # Errors
    /// When that one has been stopped, no address is free, a port is another pod's, or the database
    /// fails.
    pub async fn run_sandbox(
        &self,
        id: SandboxId,
        spec: SandboxSpec,
        joins: impl Into<Joins>,
    ) -> Result<SandboxId, StateError> {
        let joins = joins.into();
        self.0
            .write("run a sandbox", move |tx| {
                Box::pin(async move {
                    if let Some((twin, state)) = tx.find_twin(&spec).await? {
                        tx.asked_again(&twin).await?;
                        return match admit(Desired::Ready, twin_desired(state), state) {
                            Verdict::Already | Verdict::Admitted => Ok(Ok(twin)),
                            Verdict::Refused(impossible) => Err(impossible.of(&twin).into()),
                        };
                    }
                    if let Joins::Nothing(why) = joins {
                        return Err(StateError::NetworkNotReady(why));
                    }
                    let mut id = id;
                    match &joins {
                        Joins::Pool(pool) => {
                            refuse(&spec, hardware::MAC, FOLLOWS_ADDRESS)?;
                            match tx.give_address(id, &spec, pool).await? {
                                Ok(given) => id = given,
                                Err(refused) => return Ok(Err(refused)),
                            }
                        }
                        Joins::Plugins => refuse(&spec, egress::EGRESS, BY_PLUGINS)?,
                        Joins::Node | Joins::Nothing(_) => {}
                    }
                    tx.insert_sandbox(&id, &spec).await?;
                    if let Joins::Plugins = joins {
                        tx.want_attachment(&id).await?;
                    }
                    if !matches!(joins, Joins::Node) {
                        // Two of its own that meet were refused by the front.
                        let ports = host_ports(&spec).unwrap_or_default();
                        tx.claim_ports(&id, &ports).await?;
                    }
                    tx.enqueue(&ObjectKey::Sandbox(id.clone())).await?;
                    Ok(Ok(id))
                })
            })
            .await?
    }

    /// Records the wish that a sandbox be stopped or removed, and queues it and its containers.
    /// `false` says that there is nothing (more) to wish for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lower_sandbox(&self, id: SandboxId, to: Desired) -> Result<bool, StateError> {
        let by = match to {
            Desired::Removed => Stopper::RemovePod,
            _ => Stopper::StopPod,
        };
        self.0
            .write("lower a sandbox", move |tx| {
                Box::pin(async move { tx.lower_sandbox(&id, to, by).await })
            })
            .await
    }
}

/// Why an annotation cannot be met on this node now.
const FOLLOWS_ADDRESS: &str =
    "cannot be met: a pod's hardware address follows from its IPv4 address";
const BY_PLUGINS: &str = "cannot be met: network plugins connect the pods of this node";

/// Refuses an annotation that would mean nothing, and whoever wrote it would not know.
fn refuse(spec: &SandboxSpec, annotation: &'static str, why: &str) -> Result<(), StateError> {
    if !spec.annotations.contains_key(annotation) {
        return Ok(());
    }
    let why = why.to_owned();
    Err(StateError::AddressUnfit { annotation, why })
}

fn to<'a>(operation: &'static str, id: &'a SandboxId, state: State) -> Change<'a> {
    Change {
        operation,
        of: Table::Sandboxes,
        id: id.as_str(),
        to: state.as_str(),
    }
}

/// A twin found by identity is wished ready unless it has come down already.
fn twin_desired(state: State) -> Desired {
    match state {
        State::Preparing | State::Ready => Desired::Ready,
        State::Stopped | State::Failed => Desired::Stopped,
    }
}

impl Tx {
    async fn find_twin(
        &mut self,
        spec: &SandboxSpec,
    ) -> Result<Option<(SandboxId, State)>, StateError> {
        let row: Option<(String, String, String)> = self.first(
            "find a sandbox",
            "SELECT id, desired, CASE WHEN init_ended_at IS NULL THEN state ELSE 'stopped' END
             FROM sandboxes WHERE uid = ? AND namespace = ? AND name = ? AND attempt = ?
             AND desired <> 'removed' AND state <> 'failed'",
            params![spec.uid, spec.namespace, spec.name, spec.attempt],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let Some((id, desired, state)) = row else {
            return Ok(None);
        };
        let id = id.try_into().map_err(corrupt("sandboxes.id"))?;
        let state = if desired == Desired::Ready.as_str() {
            state.parse().map_err(corrupt("sandboxes.state"))?
        } else {
            State::Stopped
        };
        Ok(Some((id, state)))
    }

    pub(super) async fn insert_sandbox(
        &mut self,
        id: &SandboxId,
        spec: &SandboxSpec,
    ) -> Result<(), StateError> {
        let json = serde_json::to_string(spec).map_err(corrupt("sandboxes.spec"))?;
        self.run(
            "record a sandbox",
            "INSERT INTO sandboxes (id, name, namespace, uid, attempt, spec, created_at, desired,
                 unclaimed_since)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'ready', ?7)",
            params![
                id.as_str(),
                spec.name,
                spec.namespace,
                spec.uid,
                spec.attempt,
                json,
                now_ns(),
            ],
        )
        .map(drop)
    }

    pub(super) async fn enqueue_sandbox_and_containers(
        &mut self,
        id: &SandboxId,
    ) -> Result<(), StateError> {
        self.enqueue(&ObjectKey::Sandbox(id.clone())).await?;
        let sql = "SELECT id FROM containers WHERE sandbox_id = ?";
        let containers: Vec<String> =
            self.all("list a sandbox' containers", sql, [id.as_str()], column)?;
        for container in containers {
            let container = container.try_into().map_err(corrupt("containers.id"))?;
            self.enqueue(&ObjectKey::Container(container)).await?;
        }
        Ok(())
    }
}

impl ObservedWriter {
    /// The sandbox is set up.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_ready(
        &self,
        id: SandboxId,
        boot_id: String,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("record a ready sandbox", move |tx| {
                Box::pin(async move {
                    let now = now_ns();
                    tx.change(
                        to("record a ready sandbox", &id, State::Ready),
                        "UPDATE sandboxes SET state = 'ready', ready_at = ?, boot_id = ?
                         WHERE id = ?",
                        params![now, boot_id, id.as_str()],
                    )?;
                    tx.activate_address(&id).await?;
                    tx.operation(&done).await?;
                    let subject = Subject::Sandbox(&id);
                    tx.announce(subject, Announced::Created, "created", "")
                        .await?;
                    tx.announce(subject, Announced::Started, "ready", "")
                        .await?;
                    tx.touch(ObjectKey::Sandbox(id));
                    Ok(())
                })
            })
            .await
    }

    /// Setting the sandbox up failed for good; the removal path takes over (invariant I4).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_failed(&self, id: SandboxId, done: Finished) -> Result<(), StateError> {
        self.0
            .write("record a failed sandbox", move |tx| {
                Box::pin(async move {
                    let error = done.error.clone().unwrap_or_else(|| "unknown".into());
                    let sql = "UPDATE sandboxes SET state = 'failed', error = ? WHERE id = ?";
                    let failed = to("record a failed sandbox", &id, State::Failed);
                    tx.change(failed, sql, [&error, id.as_str()])?;
                    tx.operation(&done).await?;
                    tx.event(Subject::Sandbox(&id), "failed", &error).await?;
                    tx.enqueue(&ObjectKey::Sandbox(id.clone())).await?;
                    tx.touch(ObjectKey::Sandbox(id));
                    Ok(())
                })
            })
            .await
    }

    /// Nothing of the sandbox runs any more; its link is left to a cleanup task.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_stopped(&self, id: SandboxId, done: Finished) -> Result<(), StateError> {
        self.0
            .write("record a stopped sandbox", move |tx| {
                Box::pin(async move {
                    tx.change(
                        to("record a stopped sandbox", &id, State::Stopped),
                        "UPDATE sandboxes SET state = 'stopped', stopped_at = ?, init_pid = NULL,
                         init_start = NULL WHERE id = ?",
                        params![now_ns(), id.as_str()],
                    )?;
                    let subject = Subject::Sandbox(&id);
                    if !tx.was_ready(&id).await? {
                        // Clients see it from now on, although it never was ready.
                        tx.announce(subject, Announced::Created, "created", "")
                            .await?;
                    }
                    tx.release_address(&id).await?;
                    tx.release_attachment(&id).await?;
                    tx.release_ports_unless_attached(&id).await?;
                    tx.operation(&done).await?;
                    tx.announce(subject, Announced::Stopped, "stopped", "")
                        .await?;
                    tx.enqueue(&ObjectKey::Sandbox(id.clone())).await?;
                    tx.touch(ObjectKey::Sandbox(id));
                    Ok(())
                })
            })
            .await
    }

    /// Nothing of the sandbox is left; its record goes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_removed(&self, id: SandboxId) -> Result<(), StateError> {
        self.0
            .write("delete a sandbox", move |tx| {
                Box::pin(async move {
                    tx.release_address(&id).await?;
                    tx.release_attachment(&id).await?;
                    tx.release_ports(&id).await?;
                    tx.sandbox_goes(&id).await?;
                    let sql = "DELETE FROM sandboxes WHERE id = ?";
                    tx.run("delete a sandbox", sql, [id.as_str()])?;
                    tx.touch(ObjectKey::Sandbox(id));
                    Ok(())
                })
            })
            .await
    }
}

impl Tx {
    async fn was_ready(&mut self, id: &SandboxId) -> Result<bool, StateError> {
        let sql = "SELECT ready_at IS NOT NULL FROM sandboxes WHERE id = ?";
        let was = self.first("find a sandbox", sql, [id.as_str()], column)?;
        Ok(was.unwrap_or(false))
    }

    /// The event of a sandbox whose row goes next; one that clients never saw is not announced.
    async fn sandbox_goes(&mut self, id: &SandboxId) -> Result<(), StateError> {
        let sql = "SELECT state FROM sandboxes WHERE id = ?";
        let state: Option<String> = self.first("find a sandbox", sql, [id.as_str()], column)?;
        let subject = Subject::Sandbox(id);
        match state.as_deref() {
            None => Ok(()),
            Some("ready" | "stopped") => {
                self.announce(subject, Announced::Deleted, "removed", "")
                    .await
            }
            Some(_) => self.event(subject, "removed", "").await,
        }
    }
}

/// The error of a wish for a sandbox that is not up.
#[must_use]
pub fn not_ready(state: State) -> Impossible {
    Impossible {
        noun: "sandbox",
        id: String::new(),
        from: state.as_str(),
        to: "host of a new container",
        because: "only a ready sandbox takes containers",
    }
}
