//! The queue of keys to look at. It survives restarts, dedupes by key, never runs one key twice at
//! a time, and tries again later what failed. How the looks ended is in `job_history`.

use rusqlite::{Row, params};

use super::error::corrupt;
use super::event::Subject;
use super::sql::column;
use super::writer::Tx;
use super::{ObservedWriter, StateError, now_ns};
use crate::id::ObjectKey;
use crate::lifecycle::job::{Kind, REPORTED_AFTER, backoff_ns};

/// A key handed to a worker.
#[derive(Debug, Clone)]
pub struct Claim {
    /// What to look at.
    pub key: ObjectKey,
    /// Failures so far.
    pub attempts: i64,
}

/// How many jobs of each lane may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Of sandboxes and containers.
    pub pods: u32,
    /// Of pulls.
    pub pulls: u32,
    /// Of image removals, cleanup and prepared networks.
    pub cleanup: u32,
    /// Of attachments.
    pub plugins: u32,
}

impl Free {
    /// So many of each.
    #[must_use]
    pub fn each(count: u32) -> Self {
        Self {
            pods: count,
            pulls: count,
            cleanup: count,
            plugins: count,
        }
    }
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

/// What the history takes from a job's row.
struct Running {
    priority: i64,
    attempts: i64,
    created_at: i64,
    claimed_at: Option<i64>,
    queued_ns: i64,
}

impl Running {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            priority: row.get(0)?,
            attempts: row.get(1)?,
            created_at: row.get(2)?,
            claimed_at: row.get(3)?,
            queued_ns: row.get(4)?,
        })
    }
}

const CLAIM: &str = "UPDATE jobs SET status = 'running', claimed_at = ?1, claimed_by = ?2,
         claimed_generation = generation, queued_ns = max(0, ?1 - next_attempt_at),
         overdue_at = NULL
     WHERE key IN (
         SELECT key FROM (SELECT key FROM jobs WHERE kind IN ('sandbox', 'container')
             AND status = 'pending' AND next_attempt_at <= ?1
             ORDER BY priority DESC, next_attempt_at LIMIT ?3)
         UNION ALL SELECT key FROM (SELECT key FROM jobs WHERE kind = 'pull'
             AND status = 'pending' AND next_attempt_at <= ?1
             ORDER BY priority DESC, next_attempt_at LIMIT ?4)
         UNION ALL SELECT key FROM (SELECT key FROM jobs
             WHERE kind IN ('image', 'cleanup', 'prepared')
             AND status = 'pending' AND next_attempt_at <= ?1
             ORDER BY priority DESC, next_attempt_at LIMIT ?5)
         UNION ALL SELECT key FROM (SELECT key FROM jobs WHERE kind = 'attachment'
             AND status = 'pending' AND next_attempt_at <= ?1
             ORDER BY priority DESC, next_attempt_at LIMIT ?6))
     RETURNING key, attempts";

/// The next due time among lanes that still have room: one that is full is looked at when a slot
/// of it becomes free.
const NEXT: &str = "SELECT min(next_attempt_at) FROM jobs WHERE status = 'pending' AND (
     (kind IN ('sandbox', 'container') AND ?1 > 0) OR (kind = 'pull' AND ?2 > 0)
     OR (kind IN ('image', 'cleanup', 'prepared') AND ?3 > 0)
     OR (kind = 'attachment' AND ?4 > 0))";

impl Tx {
    /// Asks for an object to be looked at, now.
    pub(super) async fn enqueue(&mut self, key: &ObjectKey) -> Result<(), StateError> {
        let now = now_ns();
        self.run(
            "queue a job",
            "INSERT INTO jobs (key, priority, next_attempt_at, created_at) VALUES (?1, ?2, ?3, ?3)
             ON CONFLICT (key) DO UPDATE SET generation = generation + 1, next_attempt_at = ?3",
            params![key.to_string(), Kind::of(key).priority(), now],
        )?;
        self.asked.insert(key.clone());
        self.queued();
        Ok(())
    }

    /// Asks for an object to be looked at after `delay_ns`, at the latest.
    pub(super) fn enqueue_later(
        &mut self,
        key: &ObjectKey,
        delay_ns: i64,
    ) -> Result<(), StateError> {
        let now = now_ns();
        let due = now.saturating_add(delay_ns);
        self.run(
            "queue a job",
            "INSERT INTO jobs (key, priority, next_attempt_at, created_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key) DO UPDATE SET generation = generation + 1,
                 next_attempt_at = min(next_attempt_at, ?3)",
            params![key.to_string(), Kind::of(key).priority(), due, now],
        )?;
        self.asked.insert(key.clone());
        self.queued();
        Ok(())
    }

    /// Takes due jobs off the queue; also says when the next one is due.
    pub(super) fn claim_jobs(
        &mut self,
        free: Free,
    ) -> Result<(Vec<Claim>, Option<i64>), StateError> {
        let incarnation = self.incarnation.clone();
        let doubtful = std::mem::take(&mut self.doubtful);
        self.claimed.extend_from_slice(&doubtful);
        for key in doubtful {
            self.run(
                "claim a job once more",
                "UPDATE jobs SET status = 'pending', claimed_at = NULL, claimed_by = NULL
                 WHERE key = ?1 AND status = 'running' AND claimed_by = ?2",
                (key.to_string(), &incarnation),
            )?;
        }
        let Free {
            pods,
            pulls,
            cleanup,
            plugins,
        } = free;
        let params = params![now_ns(), incarnation, pods, pulls, cleanup, plugins];
        let rows: Vec<(String, i64)> = self.all("claim jobs", CLAIM, params, |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        let claims = rows
            .into_iter()
            .map(|(key, attempts)| {
                let key = key.parse().map_err(corrupt("jobs.key"))?;
                Ok(Claim { key, attempts })
            })
            .collect::<Result<Vec<_>, StateError>>()?;
        for claim in &claims {
            self.asked.remove(&claim.key);
            self.claimed.push(claim.key.clone());
        }
        let left = free.without(&claims);
        let left = [left.pods, left.pulls, left.cleanup, left.plugins];
        let next: Option<Option<i64>> = self.first("find the next job", NEXT, left, column)?;
        Ok((claims, next.flatten()))
    }

    /// Files how a look ended.
    async fn job_ended(
        &mut self,
        key: &ObjectKey,
        job: &Running,
        error: Option<&str>,
    ) -> Result<(), StateError> {
        let now = now_ns();
        let started_at = job.claimed_at.unwrap_or(now);
        let status = match error {
            None => "completed",
            Some(_) => "failed",
        };
        self.run(
            "file a job",
            "INSERT INTO job_history (key, kind, status, priority, attempts, created_at,
                 started_at, completed_at, queue_ns, run_ns, last_error)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                key.to_string(),
                Kind::of(key).as_str(),
                status,
                job.priority,
                job.attempts + 1,
                job.created_at,
                started_at,
                now,
                job.queued_ns,
                now - started_at,
                error,
            ],
        )
        .map(drop)
    }

    async fn finish_job(&mut self, key: &ObjectKey, outcome: Outcome) -> Result<(), StateError> {
        self.asked.remove(key);
        let (delay, error) = match outcome {
            Outcome::Done => {
                if self.delete_job(key).await? {
                    return Ok(());
                }
                (0, None)
            }
            Outcome::Again(delay) => (delay, None),
            Outcome::Failed(error) => (self.job_failed(key, &error).await?, Some(error)),
        };
        let now = now_ns();
        self.run(
            "put a job back",
            "UPDATE jobs SET status = 'pending', claimed_at = NULL, claimed_by = NULL,
                 overdue_at = NULL,
                 attempts = CASE WHEN ?2 IS NULL THEN 0 ELSE attempts + 1 END, last_error = ?2,
                 next_attempt_at = CASE WHEN generation = claimed_generation THEN ?3 ELSE ?4 END
             WHERE key = ?1",
            params![key.to_string(), error, now.saturating_add(delay), now],
        )?;
        self.queued();
        Ok(())
    }

    /// Takes a finished job off the queue; `false` when it was asked for again meanwhile.
    async fn delete_job(&mut self, key: &ObjectKey) -> Result<bool, StateError> {
        let job = self.first(
            "finish a job",
            "DELETE FROM jobs WHERE key = ? AND generation = claimed_generation
             RETURNING priority, attempts, created_at, claimed_at, queued_ns",
            [key.to_string()],
            Running::read,
        )?;
        match job {
            Some(job) => self.job_ended(key, &job, None).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Files a failed look; returns the pause before the next one, ns.
    async fn job_failed(&mut self, key: &ObjectKey, error: &str) -> Result<i64, StateError> {
        let job = self.first(
            "read a job",
            "SELECT priority, attempts, created_at, claimed_at, queued_ns FROM jobs WHERE key = ?",
            [key.to_string()],
            Running::read,
        )?;
        let Some(job) = job else { return Ok(0) };
        self.job_ended(key, &job, Some(error)).await?;
        if job.attempts + 1 == REPORTED_AFTER {
            tracing::warn!(%key, tries = REPORTED_AFTER, error, "a job fails again and again");
            if let Some(subject) = subject(key) {
                let message = format!(
                    "{REPORTED_AFTER} tries in a row have failed, and it is tried again all the \
                     same; the last error: {error}"
                );
                self.event(subject, "failing", &message).await?;
            }
        }
        Ok(backoff_ns(job.attempts, chance()))
    }
}

impl Free {
    /// Whether some lane has no room at all.
    #[must_use]
    pub fn has_none(self) -> bool {
        [self.pods, self.pulls, self.cleanup, self.plugins].contains(&0)
    }

    /// What is left when these are taken.
    #[must_use]
    pub fn without(self, claims: &[Claim]) -> Self {
        use crate::lifecycle::job::Lane;
        let mut left = self;
        for claim in claims {
            let lane = match Kind::of(&claim.key).lane() {
                Lane::Pods => &mut left.pods,
                Lane::Pulls => &mut left.pulls,
                Lane::Cleanup => &mut left.cleanup,
                Lane::Plugins => &mut left.plugins,
            };
            *lane = lane.saturating_sub(1);
        }
        left
    }
}

/// What events about a job are about. Pulls and cleanup have rows of their own that say as much,
/// and no object of theirs has events.
fn subject(key: &ObjectKey) -> Option<Subject<'_>> {
    match key {
        ObjectKey::Sandbox(id) | ObjectKey::Attachment(id) => Some(Subject::Sandbox(id)),
        ObjectKey::Container(id) => Some(Subject::Container(id)),
        ObjectKey::Image(id) => Some(Subject::Image(id)),
        ObjectKey::Pull(_) | ObjectKey::Cleanup(_) | ObjectKey::Prepared => None,
    }
}

/// A random byte. Without one all come back at the same time, which is no error.
fn chance() -> u8 {
    let mut byte = [0_u8];
    let flags = rustix::rand::GetRandomFlags::NONBLOCK;
    match rustix::rand::getrandom(&mut byte[..], flags) {
        Ok(_) => byte[0],
        Err(_) => 0,
    }
}

impl Tx {
    fn reclaim_jobs(&mut self) -> Result<usize, StateError> {
        let (now, incarnation) = (now_ns(), self.incarnation.clone());
        let filed = self.run(
            "file reclaimed jobs",
            "INSERT INTO job_history (key, kind, status, priority, attempts, created_at,
                 started_at, completed_at, queue_ns, run_ns, last_error)
             SELECT key, kind, 'failed', priority, attempts + 1, created_at,
                 coalesce(claimed_at, ?1), ?1, queued_ns, max(0, ?1 - coalesce(claimed_at, ?1)),
                 'the daemon ended while the job ran'
             FROM jobs WHERE status = 'running' AND claimed_by IS NOT ?2",
            params![now, incarnation],
        )?;
        if filed > 0 {
            self.run(
                "reclaim jobs",
                "UPDATE jobs SET status = 'pending', next_attempt_at = ?1, attempts = 0,
                     claimed_at = NULL, claimed_by = NULL, overdue_at = NULL
                 WHERE status = 'running' AND claimed_by IS NOT ?2",
                params![now, incarnation],
            )?;
            self.queued();
        }
        Ok(filed)
    }
}

impl Tx {
    /// What failed while the database could not be written need not wait any longer.
    pub(super) async fn hasten_failed_jobs(&mut self) -> Result<(), StateError> {
        self.run(
            "hasten failed jobs",
            "UPDATE jobs SET next_attempt_at = ?1
             WHERE status = 'pending' AND last_error IS NOT NULL AND next_attempt_at > ?1",
            [now_ns()],
        )?;
        self.queued();
        Ok(())
    }
}

impl ObservedWriter {
    /// Takes due jobs off the queue, of each lane as many as are free, and says when the next one
    /// is due (ns since 1970) for which there is room.
    ///
    /// # Errors
    /// When the database cannot be written, or holds an unknown key.
    pub async fn claim_jobs(&self, free: Free) -> Result<(Vec<Claim>, Option<i64>), StateError> {
        self.0
            .write("claim jobs", move |tx| {
                Box::pin(async move { tx.claim_jobs(free) })
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

    /// The same for a job that nobody waits for, unless it was asked for again: with the next
    /// transaction, whoever's it is, or one of its own some milliseconds later.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn finish_job_later(
        &self,
        key: ObjectKey,
        outcome: Outcome,
    ) -> Result<(), StateError> {
        let unless_asked = Some(key.clone());
        self.0
            .write_later("finish a job", unless_asked, move |tx| {
                Box::pin(async move { tx.finish_job(&key, outcome).await })
            })
            .await
    }

    /// A job runs longer than it should: says so in its row and among the events, once. It is not
    /// run a second time beside the first.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn job_overdue(&self, key: ObjectKey) -> Result<(), StateError> {
        self.0
            .write("report a job", move |tx| {
                Box::pin(async move {
                    let sql = "UPDATE jobs SET overdue_at = ? WHERE key = ? AND overdue_at IS NULL";
                    let params = (now_ns(), key.to_string());
                    if tx.run("report a job", sql, params)? == 0 {
                        return Ok(());
                    }
                    let Some(subject) = subject(&key) else {
                        return Ok(());
                    };
                    let message = "a step takes longer than [jobs] long_running_s";
                    tx.event(subject, "overdue", message).await
                })
            })
            .await
    }

    /// Makes jobs that another daemon had claimed due again; those of this one are left alone.
    /// Returns how many there were.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn reclaim_jobs(&self) -> Result<usize, StateError> {
        self.0
            .write_later("reclaim jobs", None, |tx| {
                Box::pin(async move { tx.reclaim_jobs() })
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
