//! What a damaged file still tells of wishes and exits: read row by row until SQLite gives up.
//!
//! Only facts about objects that are known from elsewhere count: that they exist is shown by their
//! records, so a row that was deleted since, in pages that are lost, brings nothing back to life.

use std::path::Path;
use std::str::FromStr;

use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{FromRow, SqliteConnection};

use super::StateError;
use super::error::during;
use super::writer::Tx;
use crate::id::{ContainerId, SandboxId};
use crate::lifecycle::{container, sandbox};

/// Rows read of a table at most.
const ROWS_MAX: usize = 100_000;

/// What was read.
#[derive(Debug, Clone, Default)]
pub struct Salvage {
    sandboxes: Vec<(SandboxId, sandbox::Desired)>,
    containers: Vec<Container>,
}

#[derive(Debug, Clone)]
struct Container {
    id: ContainerId,
    desired: container::Desired,
    stop_at: Option<i64>,
    exit: Option<ExitRow>,
}

#[derive(Debug, Clone)]
struct ExitRow {
    code: i64,
    at: i64,
    started_at: Option<i64>,
    reason: String,
    error: Option<String>,
    oom_killed: bool,
}

#[derive(FromRow)]
struct Row {
    id: String,
    desired: String,
    stop_at: Option<i64>,
    state: String,
    exit_code: Option<i64>,
    exited_at: Option<i64>,
    started_at: Option<i64>,
    reason: String,
    error: Option<String>,
    oom_killed: bool,
}

impl Salvage {
    /// Number of rows that were read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sandboxes.len() + self.containers.len()
    }

    /// Whether nothing was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads what can be read of a file that was set aside, and changes nothing in it.
pub async fn read(file: &Path) -> Salvage {
    let mut salvage = Salvage::default();
    let options = SqliteConnectOptions::from_str("sqlite://")
        .map(|options| options.filename(file).read_only(true));
    let connected = match options {
        Ok(options) => sqlx::ConnectOptions::connect(&options).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(mut connection) => {
            read_sandboxes(&mut connection, &mut salvage).await;
            read_containers(&mut connection, &mut salvage).await;
        }
        Err(error) => tracing::debug!(%error, "nothing of the damaged file can be read"),
    }
    salvage
}

async fn read_sandboxes(connection: &mut SqliteConnection, salvage: &mut Salvage) {
    let mut rows = sqlx::query_as::<_, (String, String)>("SELECT id, desired FROM sandboxes")
        .fetch(connection);
    while let Ok(Some((id, desired))) = rows.try_next().await {
        if let (Ok(id), Ok(desired)) = (id.try_into(), desired.parse())
            && salvage.sandboxes.len() < ROWS_MAX
        {
            salvage.sandboxes.push((id, desired));
        }
    }
}

async fn read_containers(connection: &mut SqliteConnection, salvage: &mut Salvage) {
    let mut rows = sqlx::query_as::<_, Row>(
        "SELECT id, desired, stop_at, state, exit_code, exited_at, started_at, reason, error,
         oom_killed FROM containers",
    )
    .fetch(connection);
    while let Ok(Some(row)) = rows.try_next().await {
        let (Ok(id), Ok(desired)) = (ContainerId::try_from(row.id), row.desired.parse()) else {
            continue;
        };
        let exit = match (row.state.as_str(), row.exit_code, row.exited_at) {
            ("exited", Some(code), Some(at)) if (0..=255).contains(&code) && at > 0 => {
                Some(ExitRow {
                    code,
                    at,
                    started_at: row.started_at,
                    reason: row.reason,
                    error: row.error,
                    oom_killed: row.oom_killed,
                })
            }
            _ => None,
        };
        if salvage.containers.len() < ROWS_MAX {
            salvage.containers.push(Container {
                id,
                desired,
                stop_at: row.stop_at,
                exit,
            });
        }
    }
}

impl Tx {
    /// Applies what was salvaged to the objects that were brought back. A wish only ever moves
    /// down, and an exit only replaces one of which nothing is known.
    pub(super) async fn bring_salvage(&mut self, salvage: &Salvage) -> Result<(), StateError> {
        for (id, desired) in &salvage.sandboxes {
            sqlx::query(
                "UPDATE sandboxes SET desired = ?2 WHERE id = ?1 AND
                 (desired = 'ready' OR (desired = 'stopped' AND ?2 = 'removed'))",
            )
            .bind(id.as_str())
            .bind(desired.as_str())
            .execute(&mut self.connection)
            .await
            .map_err(during("bring back a wish"))?;
        }
        for container in &salvage.containers {
            self.bring_container_facts(container).await?;
        }
        Ok(())
    }

    async fn bring_container_facts(&mut self, salvaged: &Container) -> Result<(), StateError> {
        sqlx::query(
            "UPDATE containers SET desired = ?2, stop_at = ?3
             WHERE id = ?1 AND instr('created running stopped removed', ?2)
                 > instr('created running stopped removed', desired)",
        )
        .bind(salvaged.id.as_str())
        .bind(salvaged.desired.as_str())
        .bind(salvaged.stop_at)
        .execute(&mut self.connection)
        .await
        .map_err(during("bring back a wish"))?;
        let Some(exit) = &salvaged.exit else {
            return Ok(());
        };
        sqlx::query(
            "UPDATE containers SET exit_code = ?2, exited_at = ?3,
             started_at = coalesce(?4, started_at), reason = ?5, error = ?6, oom_killed = ?7
             WHERE id = ?1 AND state = 'exited' AND reason = 'Unknown'",
        )
        .bind(salvaged.id.as_str())
        .bind(exit.code)
        .bind(exit.at)
        .bind(exit.started_at)
        .bind(&exit.reason)
        .bind(&exit.error)
        .bind(exit.oom_killed)
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("bring back an exit"))
    }
}
