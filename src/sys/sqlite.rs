//! One SQLite connection for two users: sqlx, which runs each statement on a thread of its own,
//! and rusqlite, which runs it at once where it is asked for.
#![expect(
    unsafe_code,
    reason = "sqlx and rusqlite share a connection only by its raw handle"
)]

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use rusqlite::ffi;
use sqlx::sqlite::{SqliteQueryResult, SqliteRow, SqliteStatement, SqliteTypeInfo};
use sqlx::{Connection, Either, Execute, Executor, SqlStr, Sqlite, SqliteConnection};

/// A connection that sqlx opened and rusqlite uses as well. Whoever gives it to sqlx as an executor
/// waits for the answer, so both never work at the same time; SQLite's own mutex sees to it.
#[derive(Debug)]
pub struct SharedConnection {
    // Declared, and so dropped, before what it borrows from.
    direct: rusqlite::Connection,
    owner: SqliteConnection,
}

impl SharedConnection {
    /// Shares `owner`, which must have been opened as serialized; `statements` is how many compiled
    /// statements are kept for running at once.
    ///
    /// # Errors
    /// When it was not, or sqlx' thread is gone.
    pub async fn new(mut owner: SqliteConnection, statements: usize) -> Result<Self, sqlx::Error> {
        let handle = owner.lock_handle().await?.as_raw_handle().as_ptr();
        // SAFETY: the handle is open, for `owner` is. sqlite3_db_mutex(3) only reads it.
        let mutex = unsafe { ffi::sqlite3_db_mutex(handle) };
        if mutex.is_null() {
            let why = "a connection that is not serialized cannot be shared";
            return Err(sqlx::Error::Configuration(why.into()));
        }
        // SAFETY: the handle is open until `owner` is closed or dropped. Nobody else gets `owner`
        // by value or as `&mut SqliteConnection`, so it is neither moved away nor closed before
        // `direct`, which is dropped first (the order of the fields; `close`) and with that lets go
        // of its statements. It has a mutex (sqlite.org/threadsafe.html, "serialized"), so calls
        // from sqlx' thread and from ours may meet.
        let direct = unsafe { rusqlite::Connection::from_handle(handle) };
        let direct = direct.map_err(|error| sqlx::Error::Configuration(error.into()))?;
        direct.set_prepared_statement_cache_capacity(statements);
        Ok(Self { direct, owner })
    }

    /// For statements that are run at once, on this thread.
    #[must_use]
    pub fn direct(&self) -> &rusqlite::Connection {
        &self.direct
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn close(self) -> Result<(), sqlx::Error> {
        let Self { direct, owner } = self;
        drop(direct);
        owner.close().await
    }
}

/// For statements that sqlx runs.
impl<'c> Executor<'c> for &'c mut SharedConnection {
    type Database = Sqlite;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<SqliteQueryResult, SqliteRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        (&mut self.owner).fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<SqliteRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        (&mut self.owner).fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [SqliteTypeInfo],
    ) -> BoxFuture<'e, Result<SqliteStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        (&mut self.owner).prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Sqlite>, sqlx::Error>>
    where
        'c: 'e,
    {
        (&mut self.owner).describe(sql)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    async fn connection(serialized: bool) -> SqliteConnection {
        let options = SqliteConnectOptions::new()
            .in_memory(true)
            .serialized(serialized);
        options.connect().await.expect("a connection")
    }

    #[tokio::test]
    async fn both_users_see_one_transaction() {
        let shared = SharedConnection::new(connection(true).await, 1).await;
        let mut shared = shared.expect("a shared connection");
        let begin = "CREATE TABLE t (n INTEGER); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)";
        sqlx::raw_sql(begin)
            .execute(&mut shared)
            .await
            .expect("begun");
        let cached = "INSERT INTO t VALUES (?)";
        let mut insert = shared.direct().prepare_cached(cached).expect("a statement");
        insert.execute([2]).expect("a row");
        drop(insert);
        let sum: i64 = sqlx::query_scalar("SELECT sum(n) FROM t")
            .fetch_one(&mut shared)
            .await
            .expect("a sum");
        assert_eq!(sum, 3);
        shared
            .direct()
            .execute_batch("ROLLBACK")
            .expect("rolled back");
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
            .fetch_one(&mut shared)
            .await
            .expect("a count");
        assert_eq!(rows, 0);
        // A statement that is still cached does not keep it from being closed.
        shared.close().await.expect("closed");
    }

    #[tokio::test]
    async fn a_connection_without_a_mutex_is_not_shared() {
        let refused = SharedConnection::new(connection(false).await, 1).await;
        refused.expect_err("it is not serialized");
    }
}
