//! The table `containers`, the back's side: what became of each wish.

use rusqlite::params;

use super::error::corrupt;
use super::event::Subject;
use super::operation::Finished;
use super::sql::column;
use super::transition::{Change, Table};
use super::writer::Tx;
use super::{ObservedWriter, StateError, now_ns};
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::container::State;
use crate::lifecycle::event::Announced;
use crate::lifecycle::spec::{Resources, UserIds};

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + signal.
    pub code: i32,
    /// When, ns.
    pub at: i64,
    /// One word, as kubelet knows them: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: &'static str,
    /// The particulars.
    pub error: Option<String>,
    /// Whether there was a process at all.
    pub ran: bool,
}

/// How a container's process came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Its number.
    pub pid: i32,
    /// Its start time in clock ticks since boot; with the number it names the process.
    pub start: u64,
    /// When, ns since 1970.
    pub at: i64,
    /// Who it runs as, if that is known.
    pub runs_as: Option<UserIds>,
    /// The limits that the kernel holds, if it was asked.
    pub limits: Option<Resources>,
}

fn to<'a>(operation: &'static str, id: &'a ContainerId, state: State) -> Change<'a> {
    Change {
        operation,
        of: Table::Containers,
        id: id.as_str(),
        to: state.as_str(),
    }
}

impl ObservedWriter {
    /// The container is ready to start.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_created(
        &self,
        id: ContainerId,
        rootfs: String,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("record a created container", move |tx| {
                Box::pin(async move {
                    let sql = "UPDATE containers SET state = 'created', rootfs = ? WHERE id = ?";
                    let created = to("record a created container", &id, State::Created);
                    tx.change(created, sql, [&rootfs, id.as_str()])?;
                    tx.operation(&done).await?;
                    let subject = Subject::Container(&id);
                    tx.announce(subject, Announced::Created, "created", "")
                        .await?;
                    tx.touch(ObjectKey::Container(id));
                    Ok(())
                })
            })
            .await
    }

    /// Preparing failed for good; the removal path takes over (invariant I4).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_error(&self, id: ContainerId, done: Finished) -> Result<(), StateError> {
        self.0
            .write("record a failed container", move |tx| {
                Box::pin(async move {
                    let error = done.error.clone().unwrap_or_else(|| "unknown".into());
                    let sql = "UPDATE containers SET state = 'error', error = ? WHERE id = ?";
                    let failed = to("record a failed container", &id, State::Error);
                    tx.change(failed, sql, [&error, id.as_str()])?;
                    tx.operation(&done).await?;
                    tx.event(Subject::Container(&id), "failed", &error).await?;
                    tx.enqueue(&ObjectKey::Container(id.clone())).await?;
                    tx.touch(ObjectKey::Container(id));
                    Ok(())
                })
            })
            .await
    }

    /// The container is about to be launched: from now on a cgroup and a process may exist.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_starting(&self, id: ContainerId) -> Result<(), StateError> {
        self.0
            .write("record a starting container", move |tx| {
                Box::pin(async move {
                    let sql = "UPDATE containers SET state = 'starting', released = 0 WHERE id = ?";
                    let starting = to("record a starting container", &id, State::Starting);
                    tx.change(starting, sql, [id.as_str()])
                })
            })
            .await
    }

    /// The container's process runs. An exit that was recorded first is not undone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_running(
        &self,
        id: ContainerId,
        started: Started,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("record a running container", move |tx| {
                Box::pin(async move {
                    let Started {
                        pid,
                        start,
                        at: started_at,
                        runs_as,
                        limits,
                    } = started;
                    let limits = limits.map(|limits| serde_json::to_string(&limits));
                    let limits = limits.transpose();
                    let limits = limits.map_err(corrupt("containers.held_resources"))?;
                    let runs_as = runs_as.map(|ids| serde_json::to_string(&ids));
                    let runs_as = runs_as.transpose().map_err(corrupt("containers.runs_as"))?;
                    tx.change(
                        to("record a running container", &id, State::Running),
                        // A process that a former daemon started may be known by the time at which
                        // it was found only; it has not started after its end.
                        "UPDATE containers SET pid = ?2, pid_start = ?3,
                         started_at = min(?4, coalesce(exited_at, ?4)),
                         runs_as = coalesce(?5, runs_as),
                         held_resources = coalesce(?6, held_resources),
                         state = CASE state WHEN 'starting' THEN 'running' ELSE state END
                         WHERE id = ?1 AND state IN ('starting', 'exited')",
                        params![
                            id.as_str(),
                            pid,
                            i64::try_from(start).unwrap_or(i64::MAX),
                            started_at,
                            runs_as,
                            limits,
                        ],
                    )?;
                    tx.monitor(&id, pid, started_at).await?;
                    tx.operation(&done).await?;
                    if tx.container_state(&id).await?.as_deref() == Some("running") {
                        // An exit that came first has told of the start as well.
                        let subject = Subject::Container(&id);
                        tx.announce(subject, Announced::Started, "started", "")
                            .await?;
                    }
                    tx.touch(ObjectKey::Container(id));
                    Ok(())
                })
            })
            .await
    }

    /// The container's process could not be started: it counts as exited, with the reason.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_start_failed(
        &self,
        id: ContainerId,
        exit: Exit,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("record a failed start", move |tx| {
                Box::pin(async move {
                    tx.operation(&done).await?;
                    tx.exited(&id, &exit).await.map(drop)
                })
            })
            .await
    }

    /// The container's process ended. Recorded once: `false` when it had been already.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_exited(&self, id: ContainerId, exit: Exit) -> Result<bool, StateError> {
        self.0
            .write("record an exit", move |tx| {
                Box::pin(async move { tx.exited(&id, &exit).await })
            })
            .await
    }

    /// The stop signal has been sent; it is sent once. Before, the kernel had killed `ooms`
    /// processes of the container for want of memory.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_signalled(
        &self,
        id: ContainerId,
        signal: i32,
        ooms: u64,
    ) -> Result<(), StateError> {
        self.0
            .write_later("record a stop signal", None, move |tx| {
                Box::pin(async move {
                    let ooms = i64::try_from(ooms).unwrap_or(i64::MAX);
                    tx.run(
                        "record a stop signal",
                        "UPDATE containers SET signalled_at = ?2, ooms_before_stop = ?3
                         WHERE id = ?1",
                        params![id.as_str(), now_ns(), ooms],
                    )?;
                    let message = format!("signal {signal} sent");
                    tx.event(Subject::Container(&id), "signalled", &message)
                        .await
                })
            })
            .await
    }

    /// So many entries and bytes of its log could not be written so far, the last of them because
    /// of `why`. `true` when it is the first that is heard of; then there is an event.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_log_lost(
        &self,
        id: ContainerId,
        lost: (u64, u64),
        why: String,
    ) -> Result<bool, StateError> {
        self.0
            .write("record what a log lacks", move |tx| {
                Box::pin(async move { tx.log_lost(&id, lost, &why).await })
            })
            .await
    }

    /// A hook of the container has run; `message` says which, how it ended, and what it said.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_hook(&self, id: ContainerId, message: String) -> Result<(), StateError> {
        self.0
            .write("record what a hook said", move |tx| {
                Box::pin(async move {
                    let subject = Subject::Container(&id);
                    tx.event(subject, "hook", &message).await
                })
            })
            .await
    }

    /// The container's cgroup is gone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_released(&self, id: ContainerId) -> Result<(), StateError> {
        self.0
            .write_later("record a released container", None, move |tx| {
                Box::pin(async move {
                    let sql = "UPDATE containers SET released = 1 WHERE id = ?";
                    tx.run("record a released container", sql, [id.as_str()])
                        .map(drop)
                })
            })
            .await
    }

    /// Nothing of the container is left but its writable layer, which a cleanup task removes; its
    /// record goes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn container_removed(
        &self,
        id: ContainerId,
        sandbox: SandboxId,
    ) -> Result<(), StateError> {
        self.0
            .write("delete a container", move |tx| {
                Box::pin(async move {
                    tx.release_snapshot(&id).await?;
                    tx.container_goes(&id).await?;
                    let sql = "DELETE FROM containers WHERE id = ?";
                    tx.run("delete a container", sql, [id.as_str()])?;
                    tx.enqueue_if_leaving(&sandbox).await?;
                    tx.touch(ObjectKey::Container(id));
                    Ok(())
                })
            })
            .await
    }
}

impl Tx {
    async fn log_lost(
        &mut self,
        id: &ContainerId,
        (lines, bytes): (u64, u64),
        why: &str,
    ) -> Result<bool, StateError> {
        let sql = "SELECT lost_log_lines FROM containers WHERE id = ?";
        let before: Option<i64> = self.first("find a container", sql, [id.as_str()], column)?;
        let Some(before) = before else {
            return Ok(false);
        };
        let bounded = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.run(
            "record what a log lacks",
            // A shim that has lost count says less than was known.
            "UPDATE containers SET lost_log_lines = max(lost_log_lines, ?2),
             lost_log_bytes = max(lost_log_bytes, ?3) WHERE id = ?1",
            params![id.as_str(), bounded(lines), bounded(bytes)],
        )?;
        let first = before == 0 && lines > 0;
        if first {
            let message = format!("its log cannot be written, and lacks lines from here on: {why}");
            let subject = Subject::Container(id);
            self.event(subject, "log_lost", &message).await?;
        }
        Ok(first)
    }

    async fn container_state(&mut self, id: &ContainerId) -> Result<Option<String>, StateError> {
        let sql = "SELECT state FROM containers WHERE id = ?";
        self.first("find a container", sql, [id.as_str()], column)
    }

    pub(super) async fn monitor(
        &mut self,
        id: &ContainerId,
        pid: i32,
        started_at: i64,
    ) -> Result<(), StateError> {
        self.run(
            "record a monitor",
            "INSERT INTO process_monitors (container_id, pid, started_at, last_check_at, status)
             SELECT id, ?2, ?3, ?3, CASE state WHEN 'exited' THEN 'completed' ELSE 'monitoring' END
             FROM containers WHERE id = ?1
             ON CONFLICT (container_id) DO NOTHING",
            params![id.as_str(), pid, started_at],
        )
        .map(drop)
    }

    /// Whether this is the exit of a process of whose start nothing has been recorded.
    async fn overtakes_its_start(
        &mut self,
        id: &ContainerId,
        exit: &Exit,
    ) -> Result<bool, StateError> {
        let state = self.container_state(id).await?;
        Ok(exit.ran && state.as_deref() == Some("starting"))
    }

    /// The event of a container whose row goes next; one that clients never saw is not announced.
    async fn container_goes(&mut self, id: &ContainerId) -> Result<(), StateError> {
        let state = self.container_state(id).await?;
        let subject = Subject::Container(id);
        match state.as_deref() {
            None => Ok(()),
            Some("preparing" | "error") => self.event(subject, "removed", "").await,
            Some(_) => {
                self.announce(subject, Announced::Deleted, "removed", "")
                    .await
            }
        }
    }

    async fn exited(&mut self, id: &ContainerId, exit: &Exit) -> Result<bool, StateError> {
        let quick = self.overtakes_its_start(id, exit).await?;
        let sandbox: Option<String> = self.first(
            "record an exit",
            // Who was too quick to be seen running has run all the same.
            "UPDATE containers SET state = 'exited', exit_code = ?2, exited_at = ?3, reason = ?4,
             error = ?5, oom_killed = ?6,
             started_at = CASE WHEN ?7 THEN coalesce(started_at, ?3) ELSE started_at END,
             ended_by = CASE
                 WHEN ?4 = 'OOMKilled' THEN 'oom' WHEN ?4 = 'StartError' THEN 'start'
                 WHEN ?4 IN ('ShimLost', 'Unknown') THEN 'unknown'
                 WHEN desired = 'removed' THEN 'removal' WHEN desired = 'stopped' THEN 'client'
                 WHEN (SELECT desired FROM sandboxes s WHERE s.id = sandbox_id) <> 'ready'
                 THEN 'pod' ELSE 'self' END
             WHERE id = ?1 AND state IN ('starting', 'running') RETURNING sandbox_id",
            params![
                id.as_str(),
                exit.code,
                exit.at,
                exit.reason,
                exit.error,
                exit.reason == "OOMKilled",
                exit.ran,
            ],
            column,
        )?;
        let Some(sandbox) = sandbox else {
            return Ok(false);
        };
        let status = if exit.reason == "ShimLost" {
            "failed"
        } else {
            "completed"
        };
        self.run(
            "complete a monitor",
            "UPDATE process_monitors SET status = ?, last_check_at = ? WHERE container_id = ?",
            params![status, exit.at, id.as_str()],
        )?;
        let message = match &exit.error {
            Some(error) => format!("exit code {}, {}: {error}", exit.code, exit.reason),
            None => format!("exit code {}, {}", exit.code, exit.reason),
        };
        let subject = Subject::Container(id);
        if quick {
            self.announce(subject, Announced::Started, "started", "")
                .await?;
        }
        self.announce(subject, Announced::Stopped, "exited", &message)
            .await?;
        self.enqueue(&ObjectKey::Container(id.clone())).await?;
        if let Ok(sandbox) = SandboxId::try_from(sandbox) {
            self.enqueue_if_leaving(&sandbox).await?;
        }
        self.touch(ObjectKey::Container(id.clone()));
        Ok(true)
    }

    /// A sandbox that waits for its containers to end or to go gets another look.
    async fn enqueue_if_leaving(&mut self, sandbox: &SandboxId) -> Result<(), StateError> {
        let leaving: Option<i64> = self.first(
            "find a sandbox",
            "SELECT 1 FROM sandboxes WHERE id = ? AND (desired <> 'ready' OR state = 'failed')",
            [sandbox.as_str()],
            column,
        )?;
        if leaving.is_some() {
            self.enqueue(&ObjectKey::Sandbox(sandbox.clone())).await?;
        }
        Ok(())
    }
}
