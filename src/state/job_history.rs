//! The table `job_history`, and the figures that are read from it and from the queue.

use sqlx::FromRow;

use super::error::during;
use super::{ObservedWriter, StateError, Store};
use crate::id::ObjectKey;

/// Newest rows of the history that means are taken over.
const MEANS_OVER: i64 = 10_000;

/// So many jobs of one kind are in one state.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct JobCount {
    /// `sandbox`, `container`, `image`, `pull`, `cleanup`.
    pub kind: String,
    /// `due`, `waiting` (due later), `backoff` (due later because it failed), `running`, `overdue`
    /// (running too long).
    pub state: String,
    /// How many.
    pub count: i64,
}

/// How the newest looks of one kind ended.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct JobFigures {
    /// `sandbox`, `container`, `image`, `pull`, `cleanup`.
    pub kind: String,
    /// `completed` or `failed`.
    pub status: String,
    /// How many.
    pub count: i64,
    /// Looks it took, on average.
    pub mean_attempts: f64,
    /// From due to claimed, on average, ns.
    pub mean_queue_ns: f64,
    /// From claimed to put down, on average, ns.
    pub mean_run_ns: f64,
}

/// One finished job or failed look.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct JobRecord {
    /// Position in the history.
    pub id: i64,
    /// What was looked at.
    pub key: String,
    /// What kind of thing that is.
    pub kind: String,
    /// `completed` or `failed`.
    pub status: String,
    /// Higher goes first.
    pub priority: i64,
    /// Looks since the last one that did not fail, this one included.
    pub attempts: i64,
    /// When the job was first asked for, ns.
    pub created_at: i64,
    /// When this look began, ns.
    pub started_at: i64,
    /// When it ended, ns.
    pub completed_at: i64,
    /// From due to claimed, ns.
    pub queue_ns: i64,
    /// From claimed to put down, ns.
    pub run_ns: i64,
    /// Why it failed.
    pub last_error: Option<String>,
}

impl Store {
    /// Number of jobs waiting or running.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_jobs(&self) -> Result<i64, StateError> {
        self.read("count jobs", || {
            sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&self.readers)
        })
        .await
    }

    /// How often the job of a key has failed, and why the last time; `None` when nothing is to be
    /// done.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn job_standing(
        &self,
        key: &ObjectKey,
    ) -> Result<Option<(i64, Option<String>)>, StateError> {
        let key = key.to_string();
        self.read("read a job", || {
            sqlx::query_as("SELECT attempts, last_error FROM jobs WHERE key = ?")
                .bind(&key)
                .fetch_optional(&self.readers)
        })
        .await
    }

    /// Jobs by kind and state at the time `now`, ns.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn job_counts(&self, now: i64) -> Result<Vec<JobCount>, StateError> {
        self.read("count jobs", || {
            sqlx::query_as(
                "SELECT kind, CASE
                 WHEN status = 'running' AND overdue_at IS NOT NULL THEN 'overdue'
                 WHEN status = 'running' THEN 'running'
                 WHEN next_attempt_at <= ? THEN 'due'
                 WHEN attempts > 0 THEN 'backoff'
                 ELSE 'waiting' END AS state, count(*) AS count
             FROM jobs GROUP BY 1, 2 ORDER BY 1, 2",
            )
            .bind(now)
            .fetch_all(&self.readers)
        })
        .await
    }

    /// How the newest looks ended, by kind: the last ten thousand.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn job_figures(&self) -> Result<Vec<JobFigures>, StateError> {
        self.read("sum up jobs", || {
            sqlx::query_as(
                "SELECT kind, status, count(*) AS count, avg(attempts) AS mean_attempts,
                 avg(queue_ns) AS mean_queue_ns, avg(run_ns) AS mean_run_ns
             FROM (SELECT * FROM job_history ORDER BY id DESC LIMIT ?)
             GROUP BY kind, status ORDER BY kind, status",
            )
            .bind(MEANS_OVER)
            .fetch_all(&self.readers)
        })
        .await
    }

    /// Finished jobs and failed looks, newest first; of one key, or of all when `key` is empty.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn job_history(&self, key: &str, limit: u32) -> Result<Vec<JobRecord>, StateError> {
        self.read("list finished jobs", || {
            sqlx::query_as(
                "SELECT * FROM job_history WHERE (?1 = '' OR key = ?1) ORDER BY id DESC LIMIT ?2",
            )
            .bind(key)
            .bind(limit)
            .fetch_all(&self.readers)
        })
        .await
    }
}

impl ObservedWriter {
    /// Deletes at most `batch` of the oldest rows that ended before `before` (ns) or are more than
    /// `rows` away from the newest. Returns how many went.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn prune_job_history(
        &self,
        before: i64,
        rows: u32,
        batch: u32,
    ) -> Result<u64, StateError> {
        self.0
            .write("prune finished jobs", move |tx| {
                Box::pin(async move {
                    let gone = sqlx::query(
                        "DELETE FROM job_history WHERE id IN (
                             SELECT id FROM (
                                 SELECT id, completed_at FROM job_history ORDER BY id LIMIT ?3)
                             WHERE completed_at < ?1
                                 OR id <= (SELECT max(id) FROM job_history) - ?2)",
                    )
                    .bind(before)
                    .bind(rows)
                    .bind(batch)
                    .execute(&mut tx.connection)
                    .await
                    .map_err(during("prune finished jobs"))?;
                    Ok(gone.rows_affected())
                })
            })
            .await
    }
}
