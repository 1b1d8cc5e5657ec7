//! What can be counted in the database, for the metrics: one indexed or small read each.

use super::{StateError, Store};

/// Numbers of rows by what they are about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Jobs by kind of object and status.
    pub jobs: Vec<(String, String, i64)>,
    /// Mean number of failures of the jobs that are there; 0 without jobs.
    pub job_attempts_mean: f64,
    /// Containers by state.
    pub containers: Vec<(String, i64)>,
    /// Sandboxes by state.
    pub sandboxes: Vec<(String, i64)>,
    /// Cleanup tasks that are not done, by type of resource and status.
    pub cleanups: Vec<(String, String, i64)>,
    /// By type of resource, when the oldest task that is not done was made, ns since 1970.
    pub oldest_cleanups: Vec<(String, i64)>,
    /// Images and layers in which the last check has found damage, by kind.
    pub damaged: Vec<(String, i64)>,
    /// Addresses given out.
    pub addresses_used: i64,
    /// Networks that wait for a pod, by whether they are complete: `ready`, `making`.
    pub prepared: Vec<(String, i64)>,
}

impl Store {
    /// Counts everything once. Not one moment's picture: each figure is from a read of its own.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn figures(&self) -> Result<Figures, StateError> {
        Ok(Figures {
            jobs: self
                .read("count jobs", || {
                    sqlx::query_as(
                        "SELECT substr(key, 1, instr(key, '/') - 1) AS kind, status, count(*)
                         FROM jobs GROUP BY kind, status ORDER BY kind, status",
                    )
                    .fetch_all(&self.readers)
                })
                .await?,
            job_attempts_mean: self
                .read("count jobs", || {
                    sqlx::query_scalar("SELECT coalesce(avg(attempts), 0.0) FROM jobs")
                        .fetch_one(&self.readers)
                })
                .await?,
            containers: self
                .read("count containers", || {
                    sqlx::query_as("SELECT state, count(*) FROM containers GROUP BY state")
                        .fetch_all(&self.readers)
                })
                .await?,
            sandboxes: self
                .read("count sandboxes", || {
                    sqlx::query_as("SELECT state, count(*) FROM sandboxes GROUP BY state")
                        .fetch_all(&self.readers)
                })
                .await?,
            cleanups: self
                .read("count cleanup tasks", || {
                    sqlx::query_as(
                        "SELECT resource_type, status, count(*) FROM cleanup_tasks
                         WHERE status <> 'completed' GROUP BY resource_type, status",
                    )
                    .fetch_all(&self.readers)
                })
                .await?,
            oldest_cleanups: self
                .read("count cleanup tasks", || {
                    sqlx::query_as(
                        "SELECT resource_type, min(created_at) FROM cleanup_tasks
                         WHERE status <> 'completed' GROUP BY resource_type",
                    )
                    .fetch_all(&self.readers)
                })
                .await?,
            prepared: self.prepared_figures().await?,
            damaged: self
                .read("count what is damaged", || {
                    sqlx::query_as(
                        "SELECT 'image', count(*) FROM images WHERE damage NOT NULL
                         UNION ALL SELECT 'layer', count(*) FROM layers WHERE damage NOT NULL",
                    )
                    .fetch_all(&self.readers)
                })
                .await?,
            addresses_used: self
                .read("count addresses", || {
                    sqlx::query_scalar("SELECT count(*) FROM network_allocations")
                        .fetch_one(&self.readers)
                })
                .await?,
        })
    }

    async fn prepared_figures(&self) -> Result<Vec<(String, i64)>, StateError> {
        self.read("count prepared networks", || {
            sqlx::query_as(
                "SELECT 'ready', count(ready_at) FROM prepared_networks
                 UNION ALL SELECT 'making', count(*) - count(ready_at) FROM prepared_networks",
            )
            .fetch_all(&self.readers)
        })
        .await
    }
}
