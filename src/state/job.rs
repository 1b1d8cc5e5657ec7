//! The queue of keys to look at. It survives restarts, dedupes by key, never runs one key twice at
//! a time, and tries again later what failed.

use sqlx::FromRow;

use super::error::{corrupt, during};
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, now_ns};
use crate::id::ObjectKey;

/// First pause after a failure and the longest one, ns.
const BACKOFF_NS: i64 = 100_000_000;
const BACKOFF_MAX_NS: i64 = 60_000_000_000;

/// A key handed to a worker.
#[derive(Debug, Clone)]
pub struct Claim {
    /// What to look at.
    pub key: ObjectKey,
    /// Failures so far.
    pub attempts: i64,
}

/// How looking at a key ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Wish and fact agree.
    Done,
    /// Come back after this many ns, unless something happens earlier.
    Again(i64),
    /// It failed; come back later, and later still.
    Failed(String),
}

#[derive(FromRow)]
struct ClaimRow {
    key: String,
    attempts: i64,
}

/// The pause before try number `attempts` + 1: doubling, with up to a quarter of jitter so that
/// what failed together does not return together.
#[must_use]
pub fn backoff_ns(attempts: i64, jitter: u8) -> i64 {
    let doublings = u32::try_from(attempts.clamp(0, 20)).unwrap_or(20);
    let pause = BACKOFF_NS
        .saturating_mul(1_i64 << doublings)
        .min(BACKOFF_MAX_NS);
    pause + pause / 4 * i64::from(jitter) / 255
}

impl Tx {
    /// Asks for an object to be looked at, now.
    pub(super) async fn enqueue(&mut self, key: &ObjectKey) -> Result<(), StateError> {
        let now = now_ns();
        sqlx::query(
            "INSERT INTO jobs (key, next_attempt_at, created_at) VALUES (?1, ?2, ?2)
             ON CONFLICT (key) DO UPDATE SET generation = generation + 1, next_attempt_at = ?2",
        )
        .bind(key.to_string())
        .bind(now)
        .execute(&mut self.connection)
        .await
        .map_err(during("queue a job"))?;
        self.queued();
        Ok(())
    }
}

impl ObservedWriter {
    /// Takes up to `limit` due jobs off the queue, and says when the next one is due (ns since
    /// 1970).
    ///
    /// # Errors
    /// When the database cannot be written, or holds an unknown key.
    pub async fn claim_jobs(&self, limit: u32) -> Result<(Vec<Claim>, Option<i64>), StateError> {
        self.0
            .write("claim jobs", move |tx| {
                Box::pin(async move {
                    let now = now_ns();
                    let rows: Vec<ClaimRow> = sqlx::query_as(
                        "UPDATE jobs SET status = 'running', claimed_at = ?1,
                             claimed_generation = generation
                         WHERE key IN (SELECT key FROM jobs
                             WHERE status = 'pending' AND next_attempt_at <= ?1
                             ORDER BY priority DESC, next_attempt_at LIMIT ?2)
                         RETURNING key, attempts",
                    )
                    .bind(now)
                    .bind(limit)
                    .fetch_all(&mut tx.connection)
                    .await
                    .map_err(during("claim jobs"))?;
                    let next: Option<i64> = sqlx::query_scalar(
                        "SELECT min(next_attempt_at) FROM jobs WHERE status = 'pending'",
                    )
                    .fetch_one(&mut tx.connection)
                    .await
                    .map_err(during("find the next job"))?;
                    let claims = rows
                        .into_iter()
                        .map(|row| {
                            let key = row.key.parse().map_err(corrupt("jobs.key"))?;
                            Ok(Claim {
                                key,
                                attempts: row.attempts,
                            })
                        })
                        .collect::<Result<_, StateError>>()?;
                    Ok((claims, next))
                })
            })
            .await
    }

    /// Puts a claimed job down. One that was asked for again meanwhile is due at once.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn finish_job(&self, key: ObjectKey, outcome: Outcome) -> Result<(), StateError> {
        self.0
            .write("finish a job", move |tx| {
                Box::pin(async move { tx.finish_job(&key, outcome).await })
            })
            .await
    }

    /// Makes jobs that a dead daemon had claimed due again.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn reclaim_jobs(&self) -> Result<(), StateError> {
        self.0
            .write("reclaim jobs", |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE jobs SET status = 'pending', next_attempt_at = ?, attempts = 0
                         WHERE status = 'running'",
                    )
                    .bind(now_ns())
                    .execute(&mut tx.connection)
                    .await
                    .map_err(during("reclaim jobs"))?;
                    tx.queued();
                    Ok(())
                })
            })
            .await
    }

    /// Asks for objects to be looked at, now.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn enqueue(&self, keys: Vec<ObjectKey>) -> Result<(), StateError> {
        self.0
            .write("queue jobs", move |tx| {
                Box::pin(async move {
                    for key in &keys {
                        tx.enqueue(key).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

impl Tx {
    async fn finish_job(&mut self, key: &ObjectKey, outcome: Outcome) -> Result<(), StateError> {
        let key = key.to_string();
        let (delay, error) = match outcome {
            Outcome::Done => {
                let gone = sqlx::query(
                    "DELETE FROM jobs WHERE key = ? AND generation = claimed_generation",
                )
                .bind(&key)
                .execute(&mut self.connection)
                .await
                .map_err(during("finish a job"))?;
                if gone.rows_affected() > 0 {
                    return Ok(());
                }
                (0, None)
            }
            Outcome::Again(delay) => (delay, None),
            Outcome::Failed(error) => {
                let attempts: Option<i64> =
                    sqlx::query_scalar("SELECT attempts FROM jobs WHERE key = ?")
                        .bind(&key)
                        .fetch_optional(&mut self.connection)
                        .await
                        .map_err(during("read a job"))?;
                let jitter = now_ns().to_le_bytes()[1];
                (backoff_ns(attempts.unwrap_or(0), jitter), Some(error))
            }
        };
        let now = now_ns();
        sqlx::query(
            "UPDATE jobs SET status = 'pending', claimed_at = NULL,
                 attempts = CASE WHEN ?2 IS NULL THEN 0 ELSE attempts + 1 END, last_error = ?2,
                 next_attempt_at = CASE WHEN generation = claimed_generation THEN ?3 ELSE ?4 END
             WHERE key = ?1",
        )
        .bind(&key)
        .bind(error)
        .bind(now.saturating_add(delay))
        .bind(now)
        .execute(&mut self.connection)
        .await
        .map_err(during("put a job back"))?;
        self.queued();
        Ok(())
    }
}

impl Store {
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

    /// Number of jobs waiting or running.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_jobs(&self) -> Result<i64, StateError> {
        sqlx::query_scalar("SELECT count(*) FROM jobs")
            .fetch_one(&self.readers)
            .await
            .map_err(during("count jobs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_grow_and_stay_bounded(attempts in 0_i64..1000, jitter: u8) {
            let pause = backoff_ns(attempts, jitter);
            prop_assert!(pause >= BACKOFF_NS);
            prop_assert!(pause <= BACKOFF_MAX_NS + BACKOFF_MAX_NS / 4);
            prop_assert!(backoff_ns(attempts + 1, 0) >= backoff_ns(attempts, 0));
        }
    }
}
