//! The table `network_state`: small facts of the node, by name.

use rusqlite::params;

use super::sql::column;
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError, Store, now_ns};

/// The last address given out.
pub(super) const LAST_ADDRESS: &str = "last_address";
/// The boot of the node in which the daemon last started.
pub(super) const BOOT_ID: &str = "boot_id";
/// When the last trial write of a file in trouble was committed.
pub(super) const LAST_TRIAL: &str = "last_trial";
/// What the last rebuild of the database brought back and what was lost.
pub const LAST_REBUILD: &str = "last_rebuild";
/// How writable layers are made.
pub const SNAPSHOTS: &str = "snapshots";
/// Who makes cgroups.
pub const CGROUP_DRIVER: &str = "cgroup_driver";
/// The pod range that kubelet told us.
pub const POD_CIDR: &str = "pod_cidr";

impl Tx {
    pub(super) async fn fact(&mut self, key: &'static str) -> Result<Option<String>, StateError> {
        let sql = "SELECT value FROM network_state WHERE key = ?";
        self.first("read a fact", sql, [key], column)
    }

    pub(super) async fn set_fact(
        &mut self,
        key: &'static str,
        value: &str,
    ) -> Result<(), StateError> {
        self.run(
            "record a fact",
            "INSERT INTO network_state (key, value, updated_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET value = ?2, updated_at = ?3",
            params![key, value, now_ns()],
        )
        .map(drop)
    }
}

impl Store {
    /// A fact by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn fact(&self, key: &str) -> Result<Option<String>, StateError> {
        self.read("read a fact", || {
            sqlx::query_scalar("SELECT value FROM network_state WHERE key = ?")
                .bind(key)
                .fetch_optional(&self.readers)
        })
        .await
    }
}

impl DesiredWriter {
    /// Remembers the pod range that kubelet told us.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_pod_cidr(&self, cidr: String) -> Result<(), StateError> {
        self.0
            .write("record the pod range", move |tx| {
                Box::pin(async move { tx.set_fact(POD_CIDR, &cidr).await })
            })
            .await
    }
}

impl ObservedWriter {
    /// Remembers who makes cgroups.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_cgroup_driver(&self, driver: &'static str) -> Result<(), StateError> {
        self.0
            .write("record who makes cgroups", move |tx| {
                Box::pin(async move { tx.set_fact(CGROUP_DRIVER, driver).await })
            })
            .await
    }

    /// Remembers how writable layers are made.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_snapshots(&self, kind: &'static str) -> Result<(), StateError> {
        self.0
            .write("record how writable layers are made", move |tx| {
                Box::pin(async move { tx.set_fact(SNAPSHOTS, kind).await })
            })
            .await
    }
}
