//! The daemon's database as another process would meet it: with its lock taken.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Executor};

use super::Node;

/// The write lock of a node's database, held by us until it is let go or dropped.
pub(crate) struct WriteLock(SqliteConnection);

impl WriteLock {
    /// Takes it; the daemon must let go within its usual time.
    pub(crate) async fn take(node: &Node) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(node.names.root().join("quilt.db"))
            .busy_timeout(Duration::from_secs(20));
        let mut connection = options.connect().await.expect("the daemon's database");
        let begun = connection.execute("BEGIN IMMEDIATE").await;
        begun.expect("the write lock");
        Self(connection)
    }

    /// Lets go.
    pub(crate) async fn release(mut self) {
        self.0.execute("ROLLBACK").await.expect("the lock is ours");
        self.0.close().await.expect("a clean end");
    }
}
