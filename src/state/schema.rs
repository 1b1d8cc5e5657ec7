//! Versions of the schema: which ones this program knows, and that it keeps its hands off newer
//! ones. A version is the number of the newest migration that was applied.

use std::path::Path;

use sqlx::SqliteConnection;
use sqlx::migrate::Migrator;

use super::StateError;

/// All migrations, oldest first; each released one stays as it is for ever.
pub(super) static MIGRATOR: Migrator = sqlx::migrate!("src/state/migrations");

/// The newest version that this program knows.
#[must_use]
pub fn newest_known() -> i64 {
    MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0)
}

/// The version of a database; 0 when no migration was ever applied to it.
pub(super) async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let books: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'",
    )
    .fetch_one(&mut *connection)
    .await?;
    if books == 0 {
        return Ok(0);
    }
    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success")
        .fetch_one(connection)
        .await
}

/// The version of a database that this program may work with.
///
/// # Errors
/// When the database is newer than this program, or cannot be read.
pub(super) async fn refuse_newer(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<i64, StateError> {
    let found = version(connection)
        .await
        .map_err(|source| StateError::Open {
            path: path.to_owned(),
            source,
        })?;
    let known = newest_known();
    if found > known {
        return Err(StateError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
