//! The table `network_attachments`: pods whose network plugins make, and with what they are to be
//! disconnected again. Its states are those of [`crate::lifecycle::attachment`].

use std::net::IpAddr;

use rusqlite::params;

use super::error::corrupt;
use super::event::Subject;
use super::sql::{all, column, first, pair};
use super::transition::{Change, Table};
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, now_ns};
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::address::Pool;
use crate::lifecycle::attachment::State;
use crate::lifecycle::record::AttachmentRecord;

/// How a new sandbox is connected.
#[derive(Debug, Clone)]
pub enum Joins {
    /// It shares the node's network.
    Node,
    /// It gets a link, and an address out of the pool.
    Pool(Pool),
    /// Plugins connect it.
    Plugins,
    /// Plugins should, and cannot; why.
    Nothing(String),
}

impl From<Option<Pool>> for Joins {
    fn from(pool: Option<Pool>) -> Self {
        pool.map_or(Self::Node, Self::Pool)
    }
}

/// A pod's attachment.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// Whose it is.
    pub sandbox_id: SandboxId,
    /// How far it is.
    pub state: State,
    /// The list that ADD was called with, JSON.
    pub config: Option<String>,
    /// What plugins were told of the pod, JSON.
    pub parameters: Option<String>,
    /// The last plugin's answer, JSON.
    pub result: Option<String>,
    /// The pod's addresses, the main one first.
    pub addresses: Vec<IpAddr>,
    /// What the last call that failed had to say.
    pub error: Option<String>,
    /// How long ADD took in all, ns.
    pub add_ns: i64,
    /// Calls of DEL that have failed since it leaves.
    pub deletes: i64,
    /// Whether CHECK was asked for and has not been called since.
    pub check_due: bool,
}

struct Row {
    sandbox_id: String,
    state: String,
    config: Option<String>,
    parameters: Option<String>,
    result: Option<String>,
    address: Option<String>,
    more_addresses: String,
    error: Option<String>,
    add_ns: Option<i64>,
    deletes: i64,
    check_due: bool,
}

const SELECT: &str = "SELECT sandbox_id, state, config, parameters, result, address,
     more_addresses, error, add_ns, deletes,
     check_asked_at IS NOT NULL AND check_asked_at > coalesce(checked_at, 0)
     FROM network_attachments";

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            sandbox_id: row.get(0)?,
            state: row.get(1)?,
            config: row.get(2)?,
            parameters: row.get(3)?,
            result: row.get(4)?,
            address: row.get(5)?,
            more_addresses: row.get(6)?,
            error: row.get(7)?,
            add_ns: row.get(8)?,
            deletes: row.get(9)?,
            check_due: row.get(10)?,
        })
    }
}

impl TryFrom<Row> for Attachment {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        let more = row
            .more_addresses
            .split(',')
            .filter(|text| !text.is_empty());
        let addresses = row.address.as_deref().into_iter().chain(more);
        Ok(Self {
            addresses: addresses
                .map(|text| text.parse().map_err(corrupt("network_attachments.address")))
                .collect::<Result<_, _>>()?,
            sandbox_id: row
                .sandbox_id
                .try_into()
                .map_err(corrupt("network_attachments.sandbox_id"))?,
            state: row
                .state
                .parse()
                .map_err(corrupt("network_attachments.state"))?,
            config: row.config,
            parameters: row.parameters,
            result: row.result,
            error: row.error,
            add_ns: row.add_ns.unwrap_or(0),
            deletes: row.deletes,
            check_due: row.check_due,
        })
    }
}

impl Store {
    /// The attachment of one sandbox, if plugins connect it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn attachment(&self, id: &SandboxId) -> Result<Option<Attachment>, StateError> {
        let sql = format!("{SELECT} WHERE sandbox_id = ?");
        let row = self
            .look("read an attachment", |connection| {
                first(connection, &sql, [id.as_str()], Row::read)
            })
            .await?;
        row.map(Attachment::try_from).transpose()
    }

    /// Every attachment and its state, without what plugins have said.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn attachment_states(&self) -> Result<Vec<(SandboxId, State)>, StateError> {
        let rows: Vec<(String, String)> = self
            .look("list attachments", |connection| {
                let sql = "SELECT sandbox_id, state FROM network_attachments";
                all(connection, sql, [], pair)
            })
            .await?;
        rows.into_iter()
            .map(|(id, state)| {
                let id = id
                    .try_into()
                    .map_err(corrupt("network_attachments.sandbox_id"))?;
                let state = state
                    .parse()
                    .map_err(corrupt("network_attachments.state"))?;
                Ok((id, state))
            })
            .collect()
    }

    /// What CHECK has found wrong, by sandbox.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn check_errors(&self) -> Result<Vec<(String, String)>, StateError> {
        self.look("list failed checks", |connection| {
            let sql = "SELECT sandbox_id, check_error FROM network_attachments
                 WHERE state = 'added' AND check_error IS NOT NULL";
            all(connection, sql, [], pair)
        })
        .await
    }

    /// How many pods have not been checked since `before` (ns since 1970), nor been attached.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn unchecked(&self, before: i64) -> Result<i64, StateError> {
        let count = self.look("count pods to check", |connection| {
            let sql = "SELECT count(*) FROM network_attachments WHERE state = 'added'
                 AND coalesce(checked_at, added_at, 0) < ?
                 AND (check_asked_at IS NULL OR check_asked_at <= coalesce(checked_at, 0))";
            first(connection, sql, [before], column)
        });
        Ok(count.await?.unwrap_or(0))
    }

    /// How many checks that were asked for are still to be made.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn checks_left(&self) -> Result<i64, StateError> {
        let left = self.look("count checks", |connection| {
            let sql = "SELECT count(*) FROM network_attachments
                 WHERE state = 'added' AND check_asked_at > coalesce(checked_at, 0)";
            first(connection, sql, [], column)
        });
        Ok(left.await?.unwrap_or(0))
    }
}

/// What ADD has brought.
#[derive(Debug, Clone)]
pub struct Added {
    /// The last plugin's answer, JSON.
    pub result: String,
    /// The pod's addresses, the main one first.
    pub addresses: Vec<IpAddr>,
    /// How long it took in all, ns.
    pub took_ns: i64,
    /// What is told of it.
    pub message: String,
}

fn to<'a>(operation: &'static str, id: &'a SandboxId, state: State) -> Change<'a> {
    Change {
        operation,
        of: Table::Attachments,
        id: id.as_str(),
        to: state.as_str(),
    }
}

impl Tx {
    /// The sandbox is to be connected by plugins.
    pub(super) async fn want_attachment(&mut self, id: &SandboxId) -> Result<(), StateError> {
        self.run(
            "record an attachment",
            "INSERT INTO network_attachments (sandbox_id, created_at) VALUES (?, ?)",
            params![id.as_str(), now_ns()],
        )
        .map(drop)
    }

    /// Whether plugins have connected the sandbox, or may have.
    pub(super) async fn is_attached(&mut self, id: &SandboxId) -> Result<bool, StateError> {
        let sql = "SELECT 1 FROM network_attachments WHERE sandbox_id = ? AND state <> 'wanted'";
        let row: Option<i64> = self.first("find an attachment", sql, [id.as_str()], column)?;
        Ok(row.is_some())
    }

    /// The pod is down: DEL is called from now on until it succeeds.
    pub(super) async fn release_attachment(&mut self, id: &SandboxId) -> Result<(), StateError> {
        self.run(
            "forget an attachment",
            "DELETE FROM network_attachments WHERE sandbox_id = ? AND state = 'wanted'",
            [id.as_str()],
        )?;
        let changed = self.run(
            "release an attachment",
            "UPDATE network_attachments SET state = 'leaving', error = NULL, deletes = 0
             WHERE sandbox_id = ? AND state IN ('adding', 'added', 'failed')",
            [id.as_str()],
        )?;
        if changed > 0 {
            self.enqueue(&ObjectKey::Attachment(id.clone())).await?;
        }
        Ok(())
    }

    /// The node was started anew: what was added to a pod that is still being set up is in a
    /// namespace that is gone.
    pub(super) async fn forget_attachments(&mut self) -> Result<(), StateError> {
        self.run(
            "forget the last boot",
            "UPDATE network_attachments SET state = 'adding' WHERE state = 'added'
             AND sandbox_id IN (SELECT id FROM sandboxes WHERE state = 'preparing')",
            [],
        )
        .map(drop)
    }

    /// Brings an attachment back from the record of its sandbox, which is up or on its way, or
    /// (`leaving`) is not.
    pub(super) async fn bring_attachment(
        &mut self,
        id: &SandboxId,
        record: &AttachmentRecord,
        leaving: bool,
    ) -> Result<(), StateError> {
        let called = !record.config.is_empty();
        let mut addresses = record.addresses.iter().map(ToString::to_string);
        let main = addresses.next().filter(|_| record.result.is_some());
        let more = addresses.collect::<Vec<_>>().join(",");
        let state = match (called, leaving, &main) {
            (false, true, _) => return Ok(()),
            (false, false, _) => State::Wanted,
            (true, true, _) => State::Leaving,
            (true, false, None) => State::Adding,
            (true, false, Some(_)) => State::Added,
        };
        self.run(
            "bring back an attachment",
            "INSERT INTO network_attachments (sandbox_id, state, network, config, parameters,
                 result, address, more_addresses, created_at, added_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9) ON CONFLICT DO NOTHING",
            params![
                id.as_str(),
                state.as_str(),
                called.then_some(&record.network),
                called.then_some(&record.config),
                called.then_some(&record.parameters),
                record.result,
                main,
                more,
                now_ns(),
            ],
        )
        .map(drop)
    }

    /// It is the sandbox' turn.
    async fn attachment_changed(&mut self, id: &SandboxId) -> Result<(), StateError> {
        self.touch(ObjectKey::Attachment(id.clone()));
        let sql = "SELECT 1 FROM sandboxes WHERE id = ?";
        let there: Option<i64> = self.first("find a sandbox", sql, [id.as_str()], column)?;
        match there {
            Some(_) => self.enqueue(&ObjectKey::Sandbox(id.clone())).await,
            None => Ok(()),
        }
    }
}

impl ObservedWriter {
    /// ADD is about to be called with this configuration and these parameters.
    ///
    /// # Errors
    /// When it is not wanted any more, or the database fails.
    pub async fn attachment_adding(
        &self,
        id: SandboxId,
        network: String,
        config: String,
        parameters: String,
    ) -> Result<(), StateError> {
        self.0
            .write("begin an attachment", move |tx| {
                Box::pin(async move {
                    tx.change(
                        to("begin an attachment", &id, State::Adding),
                        "UPDATE network_attachments SET state = 'adding', network = ?, config = ?,
                         parameters = ?, result = NULL, address = NULL, more_addresses = ''
                         WHERE sandbox_id = ?",
                        params![network, config, parameters, id.as_str()],
                    )
                })
            })
            .await
    }

    /// ADD has succeeded. If the pod is to go by now, only what DEL needs is kept of it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_added(&self, id: SandboxId, added: Added) -> Result<(), StateError> {
        self.0
            .write("record an attachment", move |tx| {
                Box::pin(async move {
                    let mut addresses = added.addresses.iter().map(ToString::to_string);
                    let main = addresses.next();
                    let more = addresses.collect::<Vec<_>>().join(",");
                    tx.run(
                        "record an attachment",
                        "UPDATE network_attachments SET result = ?2, address = ?3,
                         more_addresses = ?4, added_at = ?5, add_ns = ?6, error = NULL,
                         checked_at = NULL, check_error = NULL, check_asked_at = NULL,
                         state = CASE state WHEN 'adding' THEN 'added' ELSE state END
                         WHERE sandbox_id = ?1 AND state IN ('adding', 'leaving')",
                        params![
                            id.as_str(),
                            added.result,
                            main,
                            more,
                            now_ns(),
                            added.took_ns
                        ],
                    )?;
                    tx.event(Subject::Sandbox(&id), "attached", &added.message)
                        .await?;
                    tx.attachment_changed(&id).await
                })
            })
            .await
    }

    /// ADD has failed for good, or (`again`) may succeed later, after a DEL.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_failed(
        &self,
        id: SandboxId,
        error: String,
        again: bool,
    ) -> Result<(), StateError> {
        self.0
            .write("record a failed attachment", move |tx| {
                Box::pin(async move {
                    tx.run(
                        "record a failed attachment",
                        "UPDATE network_attachments SET error = ?2,
                         state = CASE WHEN state = 'adding' AND NOT ?3 THEN 'failed' ELSE state END
                         WHERE sandbox_id = ?1",
                        params![id.as_str(), error, again],
                    )?;
                    tx.event(Subject::Sandbox(&id), "attachment_failed", &error)
                        .await?;
                    tx.attachment_changed(&id).await
                })
            })
            .await
    }

    /// What was half done is undone; ADD may be called again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_undone(
        &self,
        id: SandboxId,
        message: String,
    ) -> Result<(), StateError> {
        self.0
            .write("undo an attachment", move |tx| {
                Box::pin(async move {
                    tx.run(
                        "undo an attachment",
                        "UPDATE network_attachments SET state = 'wanted'
                         WHERE sandbox_id = ? AND state = 'adding'",
                        [id.as_str()],
                    )?;
                    tx.event(Subject::Sandbox(&id), "detached", &message).await
                })
            })
            .await
    }

    /// The pod is to go: plugins are to disconnect it while its namespace is there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_leaves(&self, id: SandboxId) -> Result<(), StateError> {
        self.0
            .write("release an attachment", move |tx| {
                Box::pin(async move { tx.release_attachment(&id).await })
            })
            .await
    }

    /// The namespace of an attached pod is gone, and another one is there: it is connected anew.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_lost(&self, id: SandboxId) -> Result<(), StateError> {
        self.0
            .write("lose an attachment", move |tx| {
                Box::pin(async move {
                    let sql = "UPDATE network_attachments SET state = 'adding'
                         WHERE sandbox_id = ? AND state = 'added'";
                    tx.run("lose an attachment", sql, [id.as_str()])?;
                    tx.enqueue(&ObjectKey::Attachment(id)).await
                })
            })
            .await
    }

    /// DEL has succeeded: nothing is left of it, and its row goes, with the ports that led there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_deleted(
        &self,
        id: SandboxId,
        message: String,
    ) -> Result<(), StateError> {
        self.0
            .write("delete an attachment", move |tx| {
                Box::pin(async move {
                    tx.event(Subject::Sandbox(&id), "detached", &message)
                        .await?;
                    tx.release_ports(&id).await?;
                    let sql = "DELETE FROM network_attachments WHERE sandbox_id = ?";
                    tx.run("delete an attachment", sql, [id.as_str()])?;
                    tx.attachment_changed(&id).await
                })
            })
            .await
    }

    /// DEL has failed; its job calls it again. Its pod need not wait for that.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_stays(&self, id: SandboxId, error: String) -> Result<(), StateError> {
        self.0
            .write("note a failed DEL", move |tx| {
                Box::pin(async move {
                    let sql = "UPDATE network_attachments SET deletes = deletes + 1, error = ?
                         WHERE sandbox_id = ? RETURNING deletes";
                    let failed: Option<i64> =
                        tx.first("note a failed DEL", sql, [&error, id.as_str()], column)?;
                    // Once is told; how often since then is in its row and its job.
                    if failed == Some(1) {
                        tx.event(Subject::Sandbox(&id), "detachment_failed", &error)
                            .await?;
                    }
                    tx.attachment_changed(&id).await
                })
            })
            .await
    }

    /// Asks for CHECK of pods that were attached, or checked, before `before` (ns since 1970); of
    /// `limit` at most. Returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn ask_checks(&self, before: i64, limit: u32) -> Result<usize, StateError> {
        self.0
            .write("ask for checks", move |tx| {
                Box::pin(async move {
                    let ids: Vec<String> = tx.all(
                        "ask for checks",
                        "UPDATE network_attachments SET check_asked_at = ?1 WHERE sandbox_id IN
                             (SELECT sandbox_id FROM network_attachments WHERE state = 'added'
                              AND coalesce(checked_at, added_at, 0) < ?2
                              ORDER BY coalesce(checked_at, added_at, 0) LIMIT ?3)
                         RETURNING sandbox_id",
                        params![now_ns(), before, limit],
                        column,
                    )?;
                    for id in &ids {
                        let id = id.clone().try_into();
                        let id = id.map_err(corrupt("network_attachments.sandbox_id"))?;
                        tx.enqueue(&ObjectKey::Attachment(id)).await?;
                    }
                    Ok(ids.len())
                })
            })
            .await
    }

    /// What CHECK has shown. A change is an event.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attachment_checked(
        &self,
        id: SandboxId,
        problem: Option<String>,
    ) -> Result<(), StateError> {
        self.0
            .write("record a check", move |tx| {
                Box::pin(async move {
                    let sql = "SELECT check_error FROM network_attachments WHERE sandbox_id = ?";
                    let before: Option<Option<String>> =
                        tx.first("record a check", sql, [id.as_str()], column)?;
                    tx.run(
                        "record a check",
                        "UPDATE network_attachments SET checked_at = ?2, check_error = ?3
                         WHERE sandbox_id = ?1",
                        params![id.as_str(), now_ns(), problem],
                    )?;
                    let subject = Subject::Sandbox(&id);
                    match (before.flatten(), problem) {
                        (before, Some(problem)) if before.as_ref() != Some(&problem) => {
                            tx.event(subject, "check_failed", &problem).await
                        }
                        (Some(_), None) => tx.event(subject, "check_passed", "").await,
                        _ => Ok(()),
                    }
                })
            })
            .await
    }
}
