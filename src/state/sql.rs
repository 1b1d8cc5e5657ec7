//! Statements that run at once, on the thread that asks.
//!
//! sqlx hands each statement to a thread of its connection and the answer back: two switches of
//! threads, which cost several times what the statement does. So what every pod needs is run here,
//! through rusqlite on the same SQLite; sqlx opens, migrates, and runs what is rare. Errors are
//! sqlx's, so that one place says what they mean.

use std::borrow::Cow;
use std::error::Error as StdError;

use rusqlite::{Connection, Params, Row};
use sqlx::error::{DatabaseError, ErrorKind};

use super::StateError;
use super::error::during;
use super::writer::Tx;

/// What a statement answered that failed.
#[derive(Debug, thiserror::Error)]
#[error("(code: {code}) {message}")]
struct Failure {
    code: String,
    message: String,
}

impl DatabaseError for Failure {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.code))
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

/// The same error as sqlx would give it.
pub(super) fn failure(error: rusqlite::Error) -> sqlx::Error {
    match error {
        rusqlite::Error::SqliteFailure(failure, message) => {
            let message = message.unwrap_or_else(|| failure.to_string());
            let code = failure.extended_code.to_string();
            sqlx::Error::Database(Box::new(Failure { code, message }))
        }
        rusqlite::Error::QueryReturnedNoRows => sqlx::Error::RowNotFound,
        error => sqlx::Error::Decode(Box::new(error)),
    }
}

/// How a row becomes a value: columns by their place in the statement.
type Read<T> = fn(&Row<'_>) -> rusqlite::Result<T>;

/// Runs a statement without rows; returns how many rows it changed.
pub(super) fn run(c: &Connection, sql: &str, params: impl Params) -> Result<usize, sqlx::Error> {
    let statement = c.prepare_cached(sql);
    let changed = statement.and_then(|mut statement| statement.execute(params));
    changed.map_err(failure)
}

/// Runs a statement to its end and returns its first row, if there is one.
pub(super) fn first<T>(
    c: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, sqlx::Error> {
    let rows = c.prepare_cached(sql).and_then(|mut statement| {
        let mut rows = statement.query(params)?;
        let first = rows.next()?.map(read).transpose()?;
        // One that writes must come to its end.
        while rows.next()?.is_some() {}
        Ok(first)
    });
    rows.map_err(failure)
}

/// Runs a statement and returns all its rows.
pub(super) fn all<T>(
    c: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, sqlx::Error> {
    let rows = c
        .prepare_cached(sql)
        .and_then(|mut statement| statement.query_map(params, read)?.collect());
    rows.map_err(failure)
}

/// The first column of a row.
pub(super) fn column<T: rusqlite::types::FromSql>(row: &Row<'_>) -> rusqlite::Result<T> {
    row.get(0)
}

/// The first two columns of a row.
pub(super) fn pair<T, U>(row: &Row<'_>) -> rusqlite::Result<(T, U)>
where
    T: rusqlite::types::FromSql,
    U: rusqlite::types::FromSql,
{
    Ok((row.get(0)?, row.get(1)?))
}

/// Statements of the running transaction; an error says what was being done.
impl Tx {
    /// Runs a statement without rows; returns how many rows it changed.
    pub(super) fn run(
        &mut self,
        operation: &'static str,
        sql: &'static str,
        params: impl Params,
    ) -> Result<usize, StateError> {
        run(self.connection.direct(), sql, params).map_err(during(operation))
    }

    /// The first row of a statement.
    pub(super) fn first<T>(
        &mut self,
        operation: &'static str,
        sql: &'static str,
        params: impl Params,
        read: Read<T>,
    ) -> Result<Option<T>, StateError> {
        first(self.connection.direct(), sql, params, read).map_err(during(operation))
    }

    /// All rows of a statement.
    pub(super) fn all<T>(
        &mut self,
        operation: &'static str,
        sql: &'static str,
        params: impl Params,
        read: Read<T>,
    ) -> Result<Vec<T>, StateError> {
        all(self.connection.direct(), sql, params, read).map_err(during(operation))
    }
}
