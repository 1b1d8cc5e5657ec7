//! Changes of state that a state machine does not have: refused by the triggers of the database,
//! and told as what they are.
//!
//! Two writes are silent instead, because their silence is their meaning. An exit that was recorded
//! first is not undone (`ObservedWriter::container_running`) and not recorded again
//! (`ObservedWriter::container_exited`, which says so). An address that is not there (a pod in the
//! node's network) is neither activated nor given back.

use rusqlite::Params;

use super::StateError;
use super::error::{during, is_trigger};
use super::sql::{column, run};
use super::writer::Tx;

/// A change of one row's state.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    /// What is being done, for an error.
    pub(super) operation: &'static str,
    /// The row's table.
    pub(super) of: Table,
    /// The row.
    pub(super) id: &'a str,
    /// The state it is to come to.
    pub(super) to: &'static str,
}

/// A table whose rows have a state.
#[derive(Clone, Copy)]
pub(super) enum Table {
    Sandboxes,
    Containers,
    Layers,
    Attachments,
}

impl Table {
    const fn noun(self) -> &'static str {
        match self {
            Self::Sandboxes => "sandbox",
            Self::Containers => "container",
            Self::Layers => "layer",
            Self::Attachments => "attachment",
        }
    }

    const fn present(self) -> &'static str {
        match self {
            Self::Sandboxes => "SELECT state FROM sandboxes WHERE id = ?",
            Self::Containers => "SELECT state FROM containers WHERE id = ?",
            Self::Layers => "SELECT state FROM layers WHERE chain_id = ?",
            Self::Attachments => "SELECT state FROM network_attachments WHERE sandbox_id = ?",
        }
    }
}

impl Tx {
    /// Runs the statement that changes a state: it changes one row, or the error says why not.
    pub(super) fn change(
        &mut self,
        change: Change<'_>,
        sql: &'static str,
        params: impl Params,
    ) -> Result<(), StateError> {
        let outcome = run(self.connection.direct(), sql, params);
        self.changed(change, outcome.map(|rows| rows as u64))
    }

    /// Takes the outcome of such a statement, in rows.
    pub(super) fn changed(
        &mut self,
        change: Change<'_>,
        outcome: Result<u64, sqlx::Error>,
    ) -> Result<(), StateError> {
        match outcome {
            Ok(changed) if changed > 0 => return Ok(()),
            Ok(_) => {}
            Err(error) if is_trigger(&error) => {}
            Err(error) => return Err(during(change.operation)(error)),
        }
        let present = change.of.present();
        let from: Option<String> = self.first(change.operation, present, [change.id], column)?;
        let (noun, id) = (change.of.noun(), change.id.to_owned());
        Err(match from {
            Some(from) => StateError::Transition {
                noun,
                id,
                from,
                to: change.to,
            },
            None => StateError::NotFound { noun, id },
        })
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

    use crate::lifecycle::{allocation, attachment, container, image, job, layer, sandbox};
    use crate::state::Store;

    /// Pairs of words, and whether the rules let the second come after the first.
    macro_rules! pairs {
        ($word:ty, $rule:expr) => {{
            let mut pairs = Vec::new();
            for &from in <$word>::ALL {
                for &to in <$word>::ALL {
                    pairs.push((from.as_str(), to.as_str(), $rule(from, to)));
                }
            }
            pairs
        }};
    }

    /// A column with a state machine: its table, its name, the rest of a row, and the rules.
    type Machine = (
        &'static str,
        &'static str,
        &'static str,
        Vec<(&'static str, &'static str, bool)>,
    );

    fn machines() -> Vec<Machine> {
        let sandbox = "id, name, namespace, uid, attempt, spec, created_at, ready_at, error";
        let container = "id, sandbox_id, name, attempt, image_id, image, command, environment,
             namespaces, spec, created_at, pid, started_at, exit_code, exited_at, error";
        vec![
            (
                "sandboxes (desired,",
                "state",
                sandbox,
                pairs!(sandbox::State, sandbox::may_follow),
            ),
            (
                "sandboxes (state,",
                "desired",
                sandbox,
                pairs!(sandbox::Desired, sandbox::wish_may_follow),
            ),
            (
                "containers (desired,",
                "state",
                container,
                pairs!(container::State, container::may_follow),
            ),
            (
                "containers (state,",
                "desired",
                container,
                pairs!(container::Desired, container::wish_may_follow),
            ),
            (
                "images (pinned,",
                "desired",
                "id, manifest_digest, config, size_bytes, created_at",
                pairs!(image::Desired, image::may_follow),
            ),
            (
                "layers (size_bytes,",
                "state",
                "chain_id, diff_id, digest, created_at",
                pairs!(layer::State, layer::may_follow),
            ),
            (
                "network_allocations (setup_completed_at,",
                "status",
                "sandbox_id, address, address_number, prefix_length, gateway, bridge, host_link,
                 pod_link, allocated_at",
                pairs!(allocation::State, allocation::may_follow),
            ),
            (
                "network_attachments (deletes,",
                "state",
                "sandbox_id, config, parameters, result, address, error, created_at",
                pairs!(attachment::State, attachment::may_follow),
            ),
        ]
    }

    /// Writes a row that is in `from` and takes it to `to`.
    async fn is_accepted(
        connection: &mut SqliteConnection,
        (table, column, rest, _): &Machine,
        from: &str,
        to: &str,
    ) -> bool {
        // Numbers do for all other columns: the checks of values are not what is looked at.
        let (name, other) = table.split_once(" (").expect("a table and a column");
        let other = other.trim_end_matches(',');
        let values = vec!["1"; rest.split(',').count()].join(", ");
        let insert = format!(
            "DELETE FROM {name}; INSERT INTO {name} ({other}, {column}, {rest})
             VALUES (1, '{from}', {values})"
        );
        let inserted = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut *connection);
        inserted.await.expect("a row");
        let update = format!("UPDATE {name} SET {column} = '{to}'");
        match sqlx::raw_sql(AssertSqlSafe(update))
            .execute(connection)
            .await
        {
            Ok(_) => true,
            Err(error) => {
                assert!(super::is_trigger(&error), "{name} {from} {to}: {error}");
                false
            }
        }
    }

    #[tokio::test]
    async fn the_database_takes_exactly_the_transitions_that_the_rules_have() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("quilt.db");
        drop(Store::open(&path).await.expect("a database"));
        let url = format!("sqlite://{}", path.display());
        let mut connection = SqliteConnection::connect(&url).await.expect("a database");
        let lax = "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF";
        let lax = sqlx::raw_sql(lax).execute(&mut connection).await;
        lax.expect("laxness");
        for machine in machines() {
            for (from, to, rule) in &machine.3 {
                let accepted = is_accepted(&mut connection, &machine, from, to).await;
                let (table, column) = (machine.0, machine.1);
                assert_eq!(
                    accepted,
                    from == to || *rule,
                    "{table} {column}: {from} to {to}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_job_is_claimed_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("quilt.db");
        drop(Store::open(&path).await.expect("a database"));
        let url = format!("sqlite://{}", path.display());
        let mut connection = SqliteConnection::connect(&url).await.expect("a database");
        for &from in job::State::ALL {
            for &to in job::State::ALL {
                let (from_text, to_text) = (from.as_str(), to.as_str());
                let sql = format!(
                    "DELETE FROM jobs; INSERT INTO jobs (key, status, next_attempt_at, created_at)
                     VALUES ('pull/x', '{from_text}', 1, 1);
                     UPDATE jobs SET status = '{to_text}'"
                );
                let done = sqlx::raw_sql(AssertSqlSafe(sql))
                    .execute(&mut connection)
                    .await;
                // A job that is put back may be put back again; one that runs is not claimed.
                let twice = from == job::State::Pending && to == from;
                assert_eq!(
                    done.is_ok(),
                    twice || job::may_follow(from, to),
                    "{from:?} {to:?}"
                );
            }
        }
    }
}
