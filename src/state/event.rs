//! What happened, in order: one monotonic sequence for the node.
//!
//! Sequences have no holes but at their beginning, where old events are pruned, and times never
//! go back: an event is at least a nanosecond younger than the one before it, whatever the clock
//! does. So a reader may remember either, and finds its place again.

use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::params;
use sqlx::FromRow;

use super::error::corrupt;
use super::writer::Tx;
use super::{DesiredWriter, StateError, Store, now_ns};
use crate::id::{ContainerId, SandboxId};
use crate::lifecycle::event::{Announced, EventDetail};

/// Name of the fact that [`Given`] is kept in.
const GIVEN: &str = "events_given";

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

/// The pod of a sandbox or container, and both as JSON.
const SANDBOX_DETAIL: &str = "SELECT id, json_object('name', name, 'namespace', namespace,
         'uid', uid, 'attempt', attempt, 'created_at', created_at)
     FROM sandboxes WHERE id = ?";
const CONTAINER_DETAIL: &str = "SELECT s.id, json_object('name', s.name, 'namespace', s.namespace,
         'uid', s.uid, 'attempt', s.attempt, 'created_at', s.created_at, 'container',
         json_object('name', c.name, 'attempt', c.attempt, 'image', c.image,
             'image_id', c.image_id, 'created_at', c.created_at, 'started_at', c.started_at,
             'exited_at', c.exited_at, 'exit_code', c.exit_code, 'reason', c.reason))
     FROM containers c JOIN sandboxes s ON s.id = c.sandbox_id WHERE c.id = ?";

impl Tx {
    /// Adds an event in the running transaction.
    pub(super) async fn event(
        &mut self,
        subject: Subject<'_>,
        kind: &'static str,
        message: &str,
    ) -> Result<(), StateError> {
        self.insert_event(subject, kind, message, None).await
    }

    /// Adds an event that CRI's subscribers hear of. The rows it is about must be there still, and
    /// say what has happened.
    pub(super) async fn announce(
        &mut self,
        subject: Subject<'_>,
        announced: Announced,
        kind: &'static str,
        message: &str,
    ) -> Result<(), StateError> {
        self.insert_event(subject, kind, message, Some(announced))
            .await
    }

    async fn insert_event(
        &mut self,
        subject: Subject<'_>,
        kind: &'static str,
        message: &str,
        announced: Option<Announced>,
    ) -> Result<(), StateError> {
        let sql = match subject {
            Subject::Sandbox(_) => Some(SANDBOX_DETAIL),
            Subject::Container(_) => Some(CONTAINER_DETAIL),
            Subject::Image(_) | Subject::Node => None,
        };
        let mut context: Option<(String, String)> = None;
        if let Some(sql) = sql {
            context = self.first("describe an event", sql, [subject.id()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        }
        let (sandbox_id, detail) = context.unzip();
        self.run(
            "record an event",
            "INSERT INTO events (at, object_kind, object_id, kind, message, sandbox_id, announced,
                 detail)
             VALUES (max(?1, coalesce((SELECT at + 1 FROM events ORDER BY sequence DESC LIMIT 1),
                 0)), ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                now_ns(),
                subject.kind(),
                subject.id(),
                kind,
                message,
                sandbox_id,
                announced.map(Announced::as_str),
                detail.filter(|_| announced.is_some()),
            ],
        )?;
        self.told();
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

/// An event as CRI's subscribers are to hear of it.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Position in the node's history.
    pub sequence: i64,
    /// When, ns.
    pub at: i64,
    /// What happened.
    pub announced: Announced,
    /// Id of the sandbox or container it is about.
    pub object_id: String,
    /// Its pod.
    pub sandbox_id: SandboxId,
    /// Pod and container as they were then.
    pub detail: EventDetail,
}

#[derive(FromRow)]
struct AnnouncedRow {
    sequence: i64,
    at: i64,
    announced: String,
    object_id: String,
    sandbox_id: String,
    detail: String,
}

impl TryFrom<AnnouncedRow> for Announcement {
    type Error = StateError;
    fn try_from(row: AnnouncedRow) -> Result<Self, StateError> {
        Ok(Self {
            sequence: row.sequence,
            at: row.at,
            announced: row.announced.parse().map_err(corrupt("events.announced"))?,
            object_id: row.object_id,
            sandbox_id: row
                .sandbox_id
                .try_into()
                .map_err(corrupt("events.sandbox_id"))?,
            detail: serde_json::from_str(&row.detail).map_err(corrupt("events.detail"))?,
        })
    }
}

/// The sequences of the events that are kept: none when `oldest` is beyond `newest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The first that is there.
    pub oldest: i64,
    /// The last that was given out, there or not.
    pub newest: i64,
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

    /// The first `limit` announced events after `sequence`, in order.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn announcements(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Announcement>, StateError> {
        let rows: Vec<AnnouncedRow> = self
            .read("read announced events", || {
                sqlx::query_as(
                    "SELECT sequence, at, announced, object_id, sandbox_id, detail FROM events
                     WHERE announced IS NOT NULL AND sandbox_id IS NOT NULL
                     AND detail IS NOT NULL AND sequence > ? ORDER BY sequence LIMIT ?",
                )
                .bind(after)
                .bind(limit)
                .fetch_all(&self.readers)
            })
            .await?;
        rows.into_iter().map(Announcement::try_from).collect()
    }

    /// Which events are kept.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn kept_events(&self) -> Result<Kept, StateError> {
        let (oldest, newest): (Option<i64>, Option<i64>) = self
            .read("find the newest event", || {
                sqlx::query_as(
                    "SELECT (SELECT min(sequence) FROM events),
                         (SELECT seq FROM sqlite_sequence WHERE name = 'events')",
                )
                .fetch_one(&self.readers)
            })
            .await?;
        let newest = newest.unwrap_or(0);
        Ok(Kept {
            oldest: oldest.unwrap_or(newest + 1),
            newest,
        })
    }

    /// The sequence of the last event that is not younger than `at` (ns since 1970); 0 if all are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn sequence_at(&self, at: i64) -> Result<i64, StateError> {
        self.read("find an event by its time", || {
            sqlx::query_scalar(
                "SELECT coalesce(
                     (SELECT sequence FROM events WHERE at <= ? ORDER BY at DESC LIMIT 1), 0)",
            )
            .bind(at)
            .fetch_one(&self.readers)
        })
        .await
    }
}

/// How far streams that name no position have come: the last event that one of them was given. In
/// memory, and written from time to time.
#[derive(Debug)]
pub struct Given {
    /// Negative until the database has been asked.
    sequence: AtomicI64,
    written: AtomicI64,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            sequence: AtomicI64::new(-1),
            written: AtomicI64::new(-1),
        }
    }
}

impl Given {
    /// A stream without a position has been given this event.
    pub fn advance(&self, sequence: i64) {
        self.sequence.fetch_max(sequence, Ordering::AcqRel);
    }
}

impl Store {
    /// How far streams without a position have come.
    #[must_use]
    pub fn given(&self) -> &Given {
        &self.given
    }

    /// Where a stream without a position begins: after the last event that one was given, also by
    /// an earlier daemon; the first one ever begins now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn begin_given(&self) -> Result<i64, StateError> {
        if self.given.sequence.load(Ordering::Acquire) < 0 {
            let kept = self.fact(GIVEN).await?;
            let newest = self.kept_events().await?.newest;
            let stored = kept.and_then(|text| text.parse::<i64>().ok());
            // A database that was made anew counts from 1 again.
            self.given.advance(stored.unwrap_or(newest).min(newest));
        }
        Ok(self.given.sequence.load(Ordering::Acquire))
    }
}

impl DesiredWriter {
    /// Writes how far streams without a position have come, if that is news.
    ///
    /// # Errors
    /// When the database fails; the next call tries again.
    pub async fn keep_given(&self, store: &Store) -> Result<(), StateError> {
        let sequence = store.given.sequence.load(Ordering::Acquire);
        if sequence == store.given.written.load(Ordering::Acquire) {
            return Ok(());
        }
        self.0
            .write("remember the events given", move |tx| {
                Box::pin(async move { tx.set_fact(GIVEN, &sequence.to_string()).await })
            })
            .await?;
        store.given.written.store(sequence, Ordering::Release);
        Ok(())
    }
}
