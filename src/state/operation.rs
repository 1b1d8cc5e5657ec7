//! What was done and how long each stage took: the history that answers "why was it slow".

use rusqlite::params;
use sqlx::FromRow;

use super::error::corrupt;
use super::writer::Tx;
use super::{StateError, Store};

/// A finished piece of work, as the worker hands it over.
#[derive(Debug, Clone)]
pub struct Finished {
    /// `run_sandbox`, `start_container`, …
    pub kind: &'static str,
    /// What it was done to.
    pub object_id: String,
    /// When it was asked for, ns.
    pub started_at: i64,
    /// Until it was done, ns.
    pub duration_ns: i64,
    /// Why it failed.
    pub error: Option<String>,
    /// Name and ns of each stage.
    pub stages: Vec<(&'static str, i64)>,
}

impl Tx {
    /// Files an operation in the running transaction.
    pub(super) async fn operation(&mut self, done: &Finished) -> Result<(), StateError> {
        let stages = serde_json::to_string(&done.stages).map_err(corrupt("operations.stages"))?;
        self.run(
            "file an operation",
            "INSERT INTO operations (kind, object_id, started_at, duration_ns, error, stages)
             VALUES (?, ?, ?, ?, ?, ?)",
            params![
                done.kind,
                done.object_id,
                done.started_at,
                done.duration_ns,
                done.error,
                stages,
            ],
        )
        .map(drop)
    }
}

/// A stored operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// `run_sandbox`, `start_container`, …
    pub kind: String,
    /// What it was done to.
    pub object_id: String,
    /// When it was asked for, ns.
    pub started_at: i64,
    /// Until it was done, ns.
    pub duration_ns: i64,
    /// Why it failed.
    pub error: Option<String>,
    /// Name and ns of each stage.
    pub stages: Vec<(String, i64)>,
}

#[derive(FromRow)]
struct Row {
    kind: String,
    object_id: String,
    started_at: i64,
    duration_ns: i64,
    error: Option<String>,
    stages: String,
}

impl Store {
    /// Operations on one object, or on all when `object_id` is empty, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn operations(
        &self,
        object_id: &str,
        limit: u32,
    ) -> Result<Vec<Operation>, StateError> {
        let rows: Vec<Row> = self
            .read("list operations", || {
                sqlx::query_as(
                    "SELECT kind, object_id, started_at, duration_ns, error, stages FROM operations
             WHERE (?1 = '' OR object_id = ?1) ORDER BY id DESC LIMIT ?2",
                )
                .bind(object_id)
                .bind(limit)
                .fetch_all(&self.readers)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Operation {
                    stages: serde_json::from_str(&row.stages)
                        .map_err(corrupt("operations.stages"))?,
                    kind: row.kind,
                    object_id: row.object_id,
                    started_at: row.started_at,
                    duration_ns: row.duration_ns,
                    error: row.error,
                })
            })
            .collect()
    }

    /// Why the newest operation on an object failed, if it did.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn last_failure(&self, object_id: &str) -> Result<Option<String>, StateError> {
        let newest = self.operations(object_id, 1).await?;
        Ok(newest
            .into_iter()
            .next()
            .and_then(|operation| operation.error))
    }
}
