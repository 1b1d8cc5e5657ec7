//! The table `containers`: reading it, and the front's side of it. The back's side is in
//! `container_facts`.

use std::sync::Arc;

use rusqlite::params;

use super::container_update::{Update, limits};
use super::error::corrupt;
use super::event::Subject;
use super::specs::Specs;
use super::sql::{all, column, first};
use super::writer::Tx;
use super::{DesiredWriter, StateError, Store, now_ns, sandbox};
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::Verdict;
use crate::lifecycle::container::{Desired, State, admit, is_lost_start, may_live};
use crate::lifecycle::event::Stopper;
use crate::lifecycle::sandbox::{Desired as SandboxDesired, State as SandboxState};
use crate::lifecycle::spec::{ContainerSpec, NamespaceMode, Resources, UserIds};

/// A container as the database knows it.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub sandbox_id: SandboxId,
    /// Id of its image.
    pub image_id: String,
    /// What was asked for, with the limits that are in force.
    pub spec: Arc<ContainerSpec>,
    /// When it was asked for, ns.
    pub created_at: i64,
    /// What the client wants now.
    pub desired: Desired,
    /// When the grace of a stop ends, ns.
    pub stop_at: Option<i64>,
    /// What is so.
    pub state: State,
    /// Its process and that one's start time in clock ticks.
    pub process: Option<(i32, u64)>,
    /// Who its process runs as, once that is known.
    pub runs_as: Option<UserIds>,
    /// When its process started, ns.
    pub started_at: Option<i64>,
    /// When it ended, ns.
    pub exited_at: Option<i64>,
    /// How: 0 to 255, 128 + signal.
    pub exit_code: Option<i32>,
    /// One word for why, as kubelet knows them.
    pub reason: String,
    /// The particulars.
    pub error: Option<String>,
    /// When the stop signal was sent, ns.
    pub signalled_at: Option<i64>,
    /// Processes of it that the kernel had killed for want of memory by then.
    pub ooms_before_stop: Option<u64>,
    /// The limits that the kernel held when they were last set.
    pub held: Option<Resources>,
    /// Whether its cgroup is gone.
    pub released: bool,
    /// Updates of its limits.
    pub update: Update,
    /// Its log file; empty when its output is discarded.
    pub log_path: String,
    /// Entries of its log, and their bytes, that could not be written.
    pub lost_log: (u64, u64),
    /// What the client wants of its pod, and how that pod is.
    pub sandbox: (SandboxDesired, SandboxState),
}

struct Row {
    id: String,
    sandbox_id: String,
    image_id: String,
    spec: Result<Arc<ContainerSpec>, serde_json::Error>,
    created_at: i64,
    desired: String,
    stop_at: Option<i64>,
    state: String,
    pid: Option<i64>,
    pid_start: Option<i64>,
    runs_as: Option<String>,
    started_at: Option<i64>,
    exited_at: Option<i64>,
    exit_code: Option<i32>,
    reason: String,
    error: Option<String>,
    signalled_at: Option<i64>,
    released: bool,
    log_directory: String,
    sandbox_desired: String,
    sandbox_state: String,
    resources: Option<String>,
    wanted_resources: Option<String>,
    updates_wanted: i64,
    updates_done: i64,
    update_error: Option<String>,
    lost_log_lines: i64,
    lost_log_bytes: i64,
    ooms_before_stop: Option<i64>,
    held_resources: Option<String>,
}

const SELECT: &str = "SELECT c.id, c.sandbox_id, c.image_id, c.spec, c.created_at, c.desired,
     c.stop_at, c.state, c.pid, c.pid_start, c.runs_as,
     c.started_at, c.exited_at, c.exit_code, c.reason,
     c.error, c.signalled_at, c.released,
     coalesce(json_extract(s.spec, '$.log_directory'), '') AS log_directory,
     s.desired AS sandbox_desired, s.state AS sandbox_state,
     c.resources, c.wanted_resources, c.updates_wanted, c.updates_done, c.update_error,
     c.lost_log_lines, c.lost_log_bytes, c.ooms_before_stop, c.held_resources
     FROM containers c JOIN sandboxes s ON s.id = c.sandbox_id";

/// The container that a retry of its creation means.
const TWIN: &str = "SELECT id FROM containers WHERE sandbox_id = ? AND name = ? AND attempt = ?
     AND desired <> 'removed' AND state <> 'error'";

impl Row {
    fn read(row: &rusqlite::Row<'_>, specs: &Specs<ContainerSpec>) -> rusqlite::Result<Self> {
        let id: String = row.get(0)?;
        let spec = specs.of(&id, row.get_ref(3)?.as_str()?);
        Ok(Self {
            id,
            sandbox_id: row.get(1)?,
            image_id: row.get(2)?,
            spec,
            created_at: row.get(4)?,
            desired: row.get(5)?,
            stop_at: row.get(6)?,
            state: row.get(7)?,
            pid: row.get(8)?,
            pid_start: row.get(9)?,
            runs_as: row.get(10)?,
            started_at: row.get(11)?,
            exited_at: row.get(12)?,
            exit_code: row.get(13)?,
            reason: row.get(14)?,
            error: row.get(15)?,
            signalled_at: row.get(16)?,
            released: row.get(17)?,
            log_directory: row.get(18)?,
            sandbox_desired: row.get(19)?,
            sandbox_state: row.get(20)?,
            resources: row.get(21)?,
            wanted_resources: row.get(22)?,
            updates_wanted: row.get(23)?,
            updates_done: row.get(24)?,
            update_error: row.get(25)?,
            lost_log_lines: row.get(26)?,
            lost_log_bytes: row.get(27)?,
            ooms_before_stop: row.get(28)?,
            held_resources: row.get(29)?,
        })
    }
}

impl TryFrom<Row> for Container {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        let process = match (row.pid, row.pid_start) {
            (Some(pid), Some(start)) => i32::try_from(pid).ok().zip(u64::try_from(start).ok()),
            _ => None,
        };
        let mut spec = row.spec.map_err(corrupt("containers.spec"))?;
        if let Some(in_force) = limits(row.resources.as_deref(), "containers.resources")? {
            Arc::make_mut(&mut spec).resources = in_force;
        }
        let log_path = if row.log_directory.is_empty() || spec.log_path.is_empty() {
            String::new()
        } else {
            format!(
                "{}/{}",
                row.log_directory.trim_end_matches('/'),
                spec.log_path
            )
        };
        Ok(Self {
            id: row.id.try_into().map_err(corrupt("containers.id"))?,
            log_path,
            sandbox_id: row
                .sandbox_id
                .try_into()
                .map_err(corrupt("containers.sandbox_id"))?,
            image_id: row.image_id,
            spec,
            created_at: row.created_at,
            desired: row.desired.parse().map_err(corrupt("containers.desired"))?,
            stop_at: row.stop_at,
            state: row.state.parse().map_err(corrupt("containers.state"))?,
            process,
            runs_as: row
                .runs_as
                .map(|json| serde_json::from_str(&json))
                .transpose()
                .map_err(corrupt("containers.runs_as"))?,
            started_at: row.started_at,
            exited_at: row.exited_at,
            exit_code: row.exit_code,
            reason: row.reason,
            error: row.error,
            signalled_at: row.signalled_at,
            ooms_before_stop: row.ooms_before_stop.and_then(|n| u64::try_from(n).ok()),
            held: limits(row.held_resources.as_deref(), "containers.held_resources")?,
            released: row.released,
            update: Update {
                wanted: limits(
                    row.wanted_resources.as_deref(),
                    "containers.wanted_resources",
                )?,
                asked: row.updates_wanted,
                done: row.updates_done,
                error: row.update_error,
            },
            lost_log: (
                u64::try_from(row.lost_log_lines).unwrap_or(0),
                u64::try_from(row.lost_log_bytes).unwrap_or(0),
            ),
            sandbox: (
                row.sandbox_desired
                    .parse()
                    .map_err(corrupt("sandboxes.desired"))?,
                row.sandbox_state
                    .parse()
                    .map_err(corrupt("sandboxes.state"))?,
            ),
        })
    }
}

/// Which containers a list is about; all conditions hold together.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    /// Beginning of the id.
    pub id_prefix: Option<String>,
    /// Beginning of the sandbox' id.
    pub sandbox_prefix: Option<String>,
    /// `running`, `exited`, or `created` (which includes starting).
    pub state: Option<State>,
}

impl Store {
    fn container_row(&self) -> impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<Row> {
        |row| Row::read(row, &self.container_specs)
    }

    /// One container.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn container(&self, id: &ContainerId) -> Result<Option<Container>, StateError> {
        let sql = format!("{SELECT} WHERE c.id = ?");
        let row = self
            .look("read a container", |connection| {
                first(connection, &sql, [id.as_str()], self.container_row())
            })
            .await?;
        row.map(Container::try_from).transpose()
    }

    /// Containers that clients may see, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>, StateError> {
        let sql = format!(
            "{SELECT} WHERE c.state NOT IN ('preparing', 'error')
             AND (?1 IS NULL OR (c.id >= ?1 AND c.id < ?1 || 'g'))
             AND (?2 IS NULL OR (c.sandbox_id >= ?2 AND c.sandbox_id < ?2 || 'g'))
             AND (?3 IS NULL OR c.state = ?3 OR (?3 = 'created' AND c.state = 'starting'))
             ORDER BY c.created_at DESC"
        );
        let rows = self
            .look("list containers", |connection| {
                let state = filter.state.map(State::as_str);
                let params = params![filter.id_prefix, filter.sandbox_prefix, state];
                all(connection, &sql, params, self.container_row())
            })
            .await?;
        rows.into_iter().map(Container::try_from).collect()
    }

    /// Every container there is, for recovery, the monitor and the sweep.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn all_containers(&self) -> Result<Vec<Container>, StateError> {
        let rows = self
            .look("list containers", |connection| {
                all(connection, SELECT, [], self.container_row())
            })
            .await?;
        rows.into_iter().map(Container::try_from).collect()
    }

    /// Every container of one sandbox, whatever its state.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn sandbox_containers(&self, id: &SandboxId) -> Result<Vec<Container>, StateError> {
        let sql = format!("{SELECT} WHERE c.sandbox_id = ?");
        let rows = self
            .look("list a sandbox' containers", |connection| {
                all(connection, &sql, [id.as_str()], self.container_row())
            })
            .await?;
        rows.into_iter().map(Container::try_from).collect()
    }

    /// The container that a pod has under this name and attempt, if any.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn container_twin(
        &self,
        sandbox: &SandboxId,
        name: &str,
        attempt: u32,
    ) -> Result<Option<ContainerId>, StateError> {
        let twin: Option<String> = self
            .look("find a container", |connection| {
                let params = params![sandbox.as_str(), name, attempt];
                first(connection, TWIN, params, column)
            })
            .await?;
        twin.map(|id| id.try_into().map_err(corrupt("containers.id")))
            .transpose()
    }

    /// Ids that begin with `prefix`, two at most: enough to know whether it is unique.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn container_ids(&self, prefix: &str) -> Result<Vec<ContainerId>, StateError> {
        let rows: Vec<String> = self
            .look("find a container", |connection| {
                let sql = "SELECT id FROM containers WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2";
                all(connection, sql, [prefix], column)
            })
            .await?;
        rows.into_iter()
            .map(|id| id.try_into().map_err(corrupt("containers.id")))
            .collect()
    }
}

/// A container to be recorded.
pub struct NewContainer {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub sandbox_id: SandboxId,
    /// Id of its image.
    pub image_id: String,
    /// What was asked for.
    pub spec: ContainerSpec,
}

impl DesiredWriter {
    /// Records the wish for a container and queues it; or finds the one that the same pod, name and
    /// attempt already has (invariant I8).
    ///
    /// # Errors
    /// When the sandbox is not ready, the image is gone, or the database fails.
    pub async fn create_container(&self, new: NewContainer) -> Result<ContainerId, StateError> {
        self.0
            .write("create a container", move |tx| {
                Box::pin(async move { tx.create_container(&new).await })
            })
            .await
    }

    /// Records the wish that a container run, stop or be gone, and queues it. `stop_at` (ns) is
    /// the end of a stop's grace; the earliest one asked for holds.
    ///
    /// # Errors
    /// When that cannot follow from its present state, it is not there, or the database fails.
    pub async fn lower_container(
        &self,
        id: ContainerId,
        to: Desired,
        stop_at: Option<i64>,
    ) -> Result<Verdict, StateError> {
        self.0
            .write("lower a container", move |tx| {
                Box::pin(async move { tx.lower_container(&id, to, stop_at).await })
            })
            .await
    }
}

impl Tx {
    async fn create_container(&mut self, new: &NewContainer) -> Result<ContainerId, StateError> {
        let pod: Option<(String, String)> = self.first(
            "find a sandbox",
            "SELECT desired, CASE WHEN init_ended_at IS NULL THEN state ELSE 'stopped' END
             FROM sandboxes WHERE id = ?",
            [new.sandbox_id.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let Some((desired, state)) = pod else {
            let id = new.sandbox_id.to_string();
            return Err(StateError::NotFound {
                noun: "sandbox",
                id,
            });
        };
        let state: SandboxState = state.parse().map_err(corrupt("sandboxes.state"))?;
        if desired != SandboxDesired::Ready.as_str() || state != SandboxState::Ready {
            return Err(sandbox::not_ready(state).of(&new.sandbox_id).into());
        }
        let identity = (new.sandbox_id.as_str(), &new.spec.name, new.spec.attempt);
        let twin: Option<String> = self.first("find a container", TWIN, identity, column)?;
        if let Some(twin) = twin {
            return twin.try_into().map_err(corrupt("containers.id"));
        }
        let image: Option<Option<String>> = self.first(
            "find an image",
            "SELECT top_chain_id FROM images WHERE id = ? AND desired = 'present'",
            [&new.image_id],
            column,
        )?;
        let Some(top_chain_id) = image else {
            return Err(StateError::NotFound {
                noun: "image",
                id: new.image_id.clone(),
            });
        };
        self.insert_container(new).await?;
        self.add_snapshot(&new.id, top_chain_id.as_deref()).await?;
        self.hold_image_volumes(&new.id, &new.spec).await?;
        self.enqueue(&ObjectKey::Container(new.id.clone())).await?;
        Ok(new.id.clone())
    }

    pub(super) async fn insert_container(&mut self, new: &NewContainer) -> Result<(), StateError> {
        let spec = &new.spec;
        let json = |value: &Vec<String>| {
            serde_json::to_string(value).map_err(corrupt("containers.command"))
        };
        let positive = |value: i64| (value > 0).then_some(value);
        self.run(
            "record a container",
            "INSERT INTO containers (id, sandbox_id, name, attempt, image_id, image, command,
             environment, memory_limit_bytes, cpu_quota_us, cpu_shares, namespaces, spec,
             created_at, desired) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'created')",
            params![
                new.id.as_str(),
                new.sandbox_id.as_str(),
                spec.name,
                spec.attempt,
                new.image_id,
                spec.image,
                json(&spec.process.args)?,
                json(&spec.process.env)?,
                positive(spec.resources.memory_limit_bytes),
                positive(spec.resources.cpu_quota_us),
                positive(spec.resources.cpu_shares),
                json(&own_namespaces(spec))?,
                serde_json::to_string(spec).map_err(corrupt("containers.spec"))?,
                now_ns(),
            ],
        )
        .map(drop)
    }

    async fn lower_container(
        &mut self,
        id: &ContainerId,
        to: Desired,
        stop_at: Option<i64>,
    ) -> Result<Verdict, StateError> {
        let row = self.first(
            "find a container",
            "SELECT c.desired, c.state, c.stop_at, c.start_answered, s.desired AS pod,
             s.state AS pod_state
             FROM containers c JOIN sandboxes s ON s.id = c.sandbox_id WHERE c.id = ?",
            [id.as_str()],
            Standing::read,
        )?;
        let Some(row) = row else {
            return Err(StateError::NotFound {
                noun: "container",
                id: id.to_string(),
            });
        };
        let state: State = row.state.parse().map_err(corrupt("containers.state"))?;
        let desired = row.desired.parse().map_err(corrupt("containers.desired"))?;
        let pod_state: SandboxState = row.pod_state.parse().map_err(corrupt("sandboxes.state"))?;
        let pod_is_up =
            row.pod == SandboxDesired::Ready.as_str() && pod_state == SandboxState::Ready;
        let verdict = if to == Desired::Running && !pod_is_up {
            Verdict::Refused(sandbox::not_ready(SandboxState::Stopped))
        } else if to == Desired::Running && is_lost_start(desired, state, row.start_answered) {
            Verdict::Already
        } else {
            admit(to, desired, state)
        };
        if verdict == Verdict::Admitted {
            self.run(
                "lower a container",
                "UPDATE containers SET desired = ?2,
                 stop_at = CASE WHEN ?3 IS NULL THEN stop_at ELSE min(coalesce(stop_at, ?3), ?3) END
                 WHERE id = ?1",
                params![id.as_str(), to.as_str(), stop_at],
            )?;
            let sooner = stop_at.is_some_and(|at| row.stop_at.is_none_or(|before| at < before));
            if may_live(state) && (sooner || to > desired) {
                self.stopping(id, to, stop_at).await?;
            }
        }
        // Also when nothing changed: a caller that asks again gets another look.
        self.enqueue(&ObjectKey::Container(id.clone())).await?;
        Ok(verdict)
    }
}

/// What a wish for a container is judged by.
struct Standing {
    desired: String,
    state: String,
    stop_at: Option<i64>,
    start_answered: bool,
    pod: String,
    pod_state: String,
}

impl Standing {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            desired: row.get(0)?,
            state: row.get(1)?,
            stop_at: row.get(2)?,
            start_answered: row.get(3)?,
            pod: row.get(4)?,
            pod_state: row.get(5)?,
        })
    }
}

impl Tx {
    /// Records who wants a running container to end; a wish that it run says nothing.
    async fn stopping(
        &mut self,
        id: &ContainerId,
        to: Desired,
        stop_at: Option<i64>,
    ) -> Result<(), StateError> {
        let message = match to {
            Desired::Stopped => {
                let grace_ns = stop_at.map_or(0, |at| at.saturating_sub(now_ns()).max(0));
                // The wish is some moments old.
                let grace_s = (grace_ns + 500_000_000) / 1_000_000_000;
                format!("by {}, grace {grace_s} s", Stopper::StopContainer.as_str())
            }
            Desired::Removed => format!("by {}", Stopper::RemoveContainer.as_str()),
            Desired::Created | Desired::Running => return Ok(()),
        };
        self.event(Subject::Container(id), "stopping", &message)
            .await
    }
}

/// Names of the namespaces that are the container's own, as the database shows them.
fn own_namespaces(spec: &ContainerSpec) -> Vec<String> {
    let mut own = vec!["mount".to_owned(), "cgroup".to_owned()];
    if spec.security.pid == NamespaceMode::Container {
        own.push("pid".to_owned());
    }
    own
}
