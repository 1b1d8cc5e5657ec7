//! What happened, in order: one monotonic sequence for the node.

use sqlx::FromRow;

use super::error::during;
use super::writer::Tx;
use super::{StateError, Store, now_ns};
use crate::id::{ContainerId, SandboxId};

/// Events kept per node; older ones go as new ones come.
const KEPT: i64 = 100_000;

/// What an event is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    Sandbox(&'a SandboxId),
    Container(&'a ContainerId),
    Image(&'a str),
    Node,
}

impl Subject<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Sandbox(_) => "sandbox",
            Self::Container(_) => "container",
            Self::Image(_) => "image",
            Self::Node => "node",
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Sandbox(id) => id.as_str(),
            Self::Container(id) => id.as_str(),
            Self::Image(id) => id,
            Self::Node => "node",
        }
    }
}

impl Tx {
    /// Adds an event in the running transaction.
    pub(super) async fn event(
        &mut self,
        subject: Subject<'_>,
        kind: &'static str,
        message: &str,
    ) -> Result<(), StateError> {
        let sequence: i64 = sqlx::query_scalar(
            "INSERT INTO events (at, object_kind, object_id, kind, message)
             VALUES (?, ?, ?, ?, ?) RETURNING sequence",
        )
        .bind(now_ns())
        .bind(subject.kind())
        .bind(subject.id())
        .bind(kind)
        .bind(message)
        .fetch_one(&mut self.connection)
        .await
        .map_err(during("record an event"))?;
        if sequence % 1024 == 0 {
            sqlx::query("DELETE FROM events WHERE sequence <= ?")
                .bind(sequence - KEPT)
                .execute(&mut self.connection)
                .await
                .map_err(during("prune events"))?;
        }
        Ok(())
    }
}

/// A stored event.
#[derive(Debug, Clone, FromRow)]
pub struct Event {
    /// Position in the node's history.
    pub sequence: i64,
    /// When, ns.
    pub at: i64,
    /// Id of what it is about.
    pub object_id: String,
    /// What happened, one word.
    pub kind: String,
    /// The particulars.
    pub message: String,
}

impl Store {
    /// Events after `sequence`, oldest first, or the newest ones when that is 0; of one object, or
    /// of all when `object_id` is empty.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn events(
        &self,
        object_id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StateError> {
        self.read("list events", || {
            sqlx::query_as(
                "SELECT * FROM (
                 SELECT sequence, at, object_id, kind, message FROM events
                 WHERE (?1 = '' OR object_id = ?1) AND sequence > ?2
                 ORDER BY CASE WHEN ?2 = 0 THEN -sequence ELSE sequence END LIMIT ?3)
             ORDER BY sequence",
            )
            .bind(object_id)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.readers)
        })
        .await
    }
}
