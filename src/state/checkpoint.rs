//! Moves what was committed from the write-ahead log into the database file, on a connection of its
//! own: nobody's commit waits for it.
//!
//! SQLite would do it inside the commit that makes the log a thousand pages long, with two calls of
//! fsync. Here the writer says after a number of commits that it is time. The log starts from its
//! beginning again when all of it was moved and nothing was committed meanwhile; should commits
//! come so thick that this never happens, the writer itself moves the small rest between two
//! batches.

use std::sync::Arc;

use sqlx::{Connection, Executor, Sqlite, SqliteConnection};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::writer::Writer;

/// Pages in the log from which on the writer itself moves the rest: 32 MiB.
const LONG: i64 = 8192;

/// The running task.
pub(super) struct Checkpointer {
    task: JoinHandle<()>,
    end: Arc<Notify>,
}

impl Checkpointer {
    /// Starts the task; `due` says that it is time.
    pub(super) fn start(connection: SqliteConnection, due: Arc<Notify>, writer: Writer) -> Self {
        let end = Arc::new(Notify::new());
        let task = tokio::spawn(run(connection, due, Arc::clone(&end), writer));
        Self { task, end }
    }

    /// Ends the task and closes its connection.
    pub(super) async fn close(mut self) {
        self.end.notify_one();
        // It is no error when it has ended by a panic: nothing is lost with it.
        let _ = (&mut self.task).await;
    }
}

/// The task has a handle of the writer, which ends with its last one.
impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.end.notify_one();
    }
}

async fn run(mut connection: SqliteConnection, due: Arc<Notify>, end: Arc<Notify>, writer: Writer) {
    loop {
        tokio::select! {
            () = end.notified() => break,
            () = due.notified() => {}
        }
        match checkpoint(&mut connection).await {
            Ok(pages) if pages > LONG => writer.checkpoint().await,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot move the log into the database"),
        }
    }
    let _ = connection.close().await;
}

/// Moves as much as can be moved without waiting for anybody; returns how many pages the log has.
pub(super) async fn checkpoint(
    connection: impl Executor<'_, Database = Sqlite>,
) -> Result<i64, sqlx::Error> {
    let (_busy, pages, _moved): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)")
        .fetch_one(connection)
        .await?;
    Ok(pages)
}
