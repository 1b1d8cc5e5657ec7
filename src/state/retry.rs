//! Trying again while somebody else holds a lock of the database: five times, with pauses that
//! double. Whoever drops the future ends it, also in the middle of a pause.

use std::future::Future;
use std::time::Duration;

use super::error::is_busy;
use crate::metrics::Metrics;

/// Tries, and the first and the longest pause between them.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The tries of one operation.
pub(super) struct Retry<'m> {
    operation: &'static str,
    metrics: &'m Metrics,
    attempts: u32,
    pause: Duration,
}

impl<'m> Retry<'m> {
    /// Before the first try.
    pub(super) fn new(operation: &'static str, metrics: &'m Metrics) -> Self {
        Self {
            operation,
            metrics,
            attempts: 0,
            pause: PAUSE,
        }
    }

    /// How often it was tried.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A try has failed: whether another one follows, after the pause.
    pub(super) async fn again(&mut self, error: &sqlx::Error) -> bool {
        self.attempts += 1;
        if !is_busy(error) {
            if matches!(error, sqlx::Error::PoolTimedOut) {
                self.metrics
                    .database_timeouts
                    .get([self.operation])
                    .increment();
            }
            return false;
        }
        if self.attempts >= ATTEMPTS {
            self.metrics
                .database_timeouts
                .get([self.operation])
                .increment();
            return false;
        }
        self.metrics
            .database_retries
            .get([self.operation])
            .increment();
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

/// Runs `attempt` until it does not find a lock in its way, or has been tried often enough. An
/// error comes with the number of tries.
pub(super) async fn while_busy<T, F, R>(
    operation: &'static str,
    metrics: &Metrics,
    attempt: F,
) -> Result<T, (u32, sqlx::Error)>
where
    F: Fn() -> R,
    R: Future<Output = Result<T, sqlx::Error>>,
{
    let mut retry = Retry::new(operation, metrics);
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if retry.again(&error).await => {}
            Err(error) => return Err((retry.attempts(), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
    use sqlx::{ConnectOptions, Executor};
    use tokio::sync::Mutex;

    use super::*;

    async fn connect(dir: &tempfile::TempDir) -> SqliteConnection {
        let options = SqliteConnectOptions::new()
            .filename(dir.path().join("t.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // SQLite itself does not wait: each try is one of ours.
            .busy_timeout(Duration::ZERO);
        options.connect().await.expect("a connection")
    }

    #[tokio::test]
    async fn a_lock_that_goes_away_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let holder = Mutex::new(connect(&dir).await);
        let ours = Mutex::new(connect(&dir).await);
        holder
            .lock()
            .await
            .execute("BEGIN IMMEDIATE")
            .await
            .expect("the lock");
        let metrics = Metrics::default();
        let tries = std::sync::atomic::AtomicU32::new(0);
        let begun = while_busy("begin", &metrics, || async {
            if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2 {
                holder.lock().await.execute("ROLLBACK").await?;
            }
            ours.lock().await.execute("BEGIN IMMEDIATE").await
        });
        begun.await.expect("the lock is free at the third try");
        assert_eq!(metrics.database_retries.get(["begin"]).get(), 2);
        assert_eq!(metrics.database_timeouts.get(["begin"]).get(), 0);
    }

    #[tokio::test]
    async fn a_lock_that_stays_is_given_up_with_the_number_of_tries() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut holder = connect(&dir).await;
        let ours = Mutex::new(connect(&dir).await);
        holder.execute("BEGIN IMMEDIATE").await.expect("the lock");
        let metrics = Metrics::default();
        let begun = while_busy("begin", &metrics, || async {
            ours.lock().await.execute("BEGIN IMMEDIATE").await
        });
        let (attempts, error) = begun.await.expect_err("the lock is held");
        assert_eq!(attempts, ATTEMPTS);
        assert!(is_busy(&error), "{error}");
        assert_eq!(metrics.database_retries.get(["begin"]).get(), 4);
        assert_eq!(metrics.database_timeouts.get(["begin"]).get(), 1);
    }

    #[tokio::test]
    async fn what_is_no_lock_is_not_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = Mutex::new(connect(&dir).await);
        let metrics = Metrics::default();
        let failed = while_busy("read", &metrics, || async {
            ours.lock().await.execute("SELECT * FROM nothing").await
        });
        assert_eq!(failed.await.expect_err("no such table").0, 1);
    }
}
