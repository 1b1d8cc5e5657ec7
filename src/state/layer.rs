//! The tables `layers` and `pull_layers`: what lies unpacked on the disk, and who holds it.
//!
//! A layer stays for as long as an image, a container's writable layer, or a pull or import under
//! way stands on it, or a failed pull's layers wait for a retry. Who needs one and whether it goes
//! is decided in one transaction, so no pull ever loses a layer that it has counted on.

use sqlx::FromRow;

use super::cleanup::Resource;
use super::error::during;
use super::transition::{Change, Table};
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, now_ns};
use crate::lifecycle::layer;

/// A layer to be recorded before it is fetched.
#[derive(Debug, Clone)]
pub struct NewLayer {
    /// Its chain id.
    pub chain_id: String,
    /// The chain id below it.
    pub parent: Option<String>,
    /// Digest of its uncompressed tar.
    pub diff_id: String,
    /// Digest of the blob it comes from.
    pub digest: String,
}

/// A layer on the disk, as a driver has measured it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PresentLayer {
    /// Its chain id.
    pub chain_id: String,
    /// Bytes allocated on disk.
    pub size_bytes: i64,
    /// Inodes.
    pub inodes: i64,
    /// Entries of its tree.
    pub entries: i64,
    /// SHA-256 of the list of them.
    pub seal: String,
}

/// A layer as the database knows it.
#[derive(Debug, Clone, FromRow)]
pub struct Layer {
    /// Its chain id.
    pub chain_id: String,
    /// Digest of its uncompressed tar.
    pub diff_id: String,
    /// Digest of the blob it came from.
    pub digest: String,
    /// Bytes allocated on disk.
    pub size_bytes: i64,
    /// Inodes.
    pub inodes: i64,
    /// Digest of the list of its entries; `None` for one of an older version.
    pub seal: Option<String>,
    /// When it was last compared with its list, ns since 1970.
    pub checked_at: Option<i64>,
    /// What was wrong then.
    pub damage: Option<String>,
}

impl Store {
    /// Chain ids from `top` down to the base: the order of an overlay's lower directories.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn layer_chain(&self, top: &str) -> Result<Vec<String>, StateError> {
        self.read("read an image's layers", || {
            sqlx::query_scalar(
                "WITH RECURSIVE chain (chain_id, parent, depth) AS (
                 SELECT chain_id, parent_chain_id, 0 FROM layers WHERE chain_id = ?
                 UNION ALL
                 SELECT l.chain_id, l.parent_chain_id, depth + 1
                 FROM layers l JOIN chain ON l.chain_id = chain.parent
             ) SELECT chain_id FROM chain ORDER BY depth",
            )
            .bind(top)
            .fetch_all(&self.readers)
        })
        .await
    }

    /// Whether a layer is on disk, and no check has found it damaged.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn has_layer(&self, chain_id: &str) -> Result<bool, StateError> {
        let found: Option<i64> = self
            .read("find a layer", || {
                sqlx::query_scalar(
                    "SELECT 1 FROM layers WHERE chain_id = ? AND state = 'present'
                     AND damage IS NULL",
                )
                .bind(chain_id)
                .fetch_optional(&self.readers)
            })
            .await?;
        Ok(found.is_some())
    }

    /// Whether the last check of a layer has found it damaged.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn is_layer_damaged(&self, chain_id: &str) -> Result<bool, StateError> {
        let found: Option<i64> = self
            .read("find a layer", || {
                sqlx::query_scalar("SELECT 1 FROM layers WHERE chain_id = ? AND damage NOT NULL")
                    .bind(chain_id)
                    .fetch_optional(&self.readers)
            })
            .await?;
        Ok(found.is_some())
    }

    /// Whether a layer is on disk, damaged or not.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn is_layer_present(&self, chain_id: &str) -> Result<bool, StateError> {
        let found: Option<i64> = self
            .read("find a layer", || {
                sqlx::query_scalar("SELECT 1 FROM layers WHERE chain_id = ? AND state = 'present'")
                    .bind(chain_id)
                    .fetch_optional(&self.readers)
            })
            .await?;
        Ok(found.is_some())
    }

    /// Every layer with a row, for the sweep.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn all_layers(&self) -> Result<Vec<String>, StateError> {
        self.read("list layers", || {
            sqlx::query_scalar("SELECT chain_id FROM layers").fetch_all(&self.readers)
        })
        .await
    }

    /// Bytes and inodes of all unpacked layers.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn layer_usage(&self) -> Result<(i64, i64), StateError> {
        self.read("add up layers", || {
            sqlx::query_as(
                "SELECT coalesce(sum(size_bytes), 0), coalesce(sum(inodes), 0) FROM layers",
            )
            .fetch_one(&self.readers)
        })
        .await
    }

    /// The layers from the base up to `top` that are on the disk, whole or not.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn layers_of(&self, top: &str) -> Result<Vec<Layer>, StateError> {
        self.read("read an image's layers", || {
            sqlx::query_as(
                "WITH RECURSIVE chain (chain_id, parent, depth) AS (
                     SELECT chain_id, parent_chain_id, 0 FROM layers WHERE chain_id = ?
                     UNION ALL
                     SELECT l.chain_id, l.parent_chain_id, depth + 1
                     FROM layers l JOIN chain ON l.chain_id = chain.parent
                 ) SELECT l.chain_id, l.diff_id, l.digest, l.size_bytes, l.inodes, l.seal,
                     l.checked_at, l.damage
                 FROM layers l JOIN chain USING (chain_id) WHERE l.state = 'present'
                 ORDER BY chain.depth DESC",
            )
            .bind(top)
            .fetch_all(&self.readers)
        })
        .await
    }

    /// When the first of the layers that wait for a retry has waited long enough, ns since 1970.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn next_unused_layer(&self) -> Result<Option<i64>, StateError> {
        self.read("look for unused layers", || {
            sqlx::query_scalar(
                "SELECT min(kept_until) FROM layers
                 WHERE kept_until IS NOT NULL AND state <> 'removing'",
            )
            .fetch_one(&self.readers)
        })
        .await
    }

    /// Whether a container that was started before `at` (ns since 1970), or is just starting,
    /// stands on a layer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn is_stood_on(&self, chain_id: &str, at: i64) -> Result<bool, StateError> {
        let found: Option<i64> = self
            .read("look for who stands on a layer", || {
                sqlx::query_scalar(
                    "WITH RECURSIVE above (chain_id) AS (
                         SELECT ?1
                         UNION SELECT l.chain_id FROM layers l JOIN above
                             ON l.parent_chain_id = above.chain_id
                     )
                     SELECT 1 FROM (
                         SELECT container_id, top_chain_id FROM snapshots
                         UNION ALL SELECT container_id, top_chain_id FROM image_volumes
                     ) s JOIN containers c ON c.id = s.container_id
                     WHERE s.top_chain_id IN (SELECT chain_id FROM above)
                         AND (c.state = 'starting' OR c.state = 'running'
                              AND coalesce(c.started_at, 0) < ?2)
                     LIMIT 1",
                )
                .bind(chain_id)
                .bind(at)
                .fetch_optional(&self.readers)
            })
            .await?;
        Ok(found.is_some())
    }
}

impl ObservedWriter {
    /// Records layers before they are fetched (invariant I5), and that `holder`, a row of `pulls`,
    /// needs them and no others. `false` says that one of them is being removed just now, and that
    /// nothing was written: come back when it is gone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expect_layers(
        &self,
        holder: String,
        layers: Vec<NewLayer>,
    ) -> Result<bool, StateError> {
        self.0
            .write("record layers", move |tx| {
                Box::pin(async move {
                    for layer in &layers {
                        if tx.is_leaving(&layer.chain_id).await? {
                            return Ok(false);
                        }
                    }
                    tx.let_go_of_layers(&holder).await?;
                    for layer in &layers {
                        tx.expect_layer(&holder, layer).await?;
                    }
                    Ok(true)
                })
            })
            .await
    }

    /// A layer is on disk, synced and in its place.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn layer_present(&self, layer: PresentLayer) -> Result<(), StateError> {
        self.0
            .write("record a layer", move |tx| {
                Box::pin(async move {
                    let present = sqlx::query(
                        "UPDATE layers SET state = 'present', size_bytes = ?, inodes = ?,
                             entries = ?, seal = ?, damage = NULL
                         WHERE chain_id = ?",
                    )
                    .bind(layer.size_bytes)
                    .bind(layer.inodes)
                    .bind(layer.entries)
                    .bind(&layer.seal)
                    .bind(&layer.chain_id)
                    .execute(&mut tx.connection)
                    .await;
                    let change = Change {
                        operation: "record a layer",
                        of: Table::Layers,
                        id: &layer.chain_id,
                        to: layer::State::Present.as_str(),
                    };
                    tx.changed(change, present.map(|done| done.rows_affected()))
                })
            })
            .await
    }

    /// A layer was compared with its list of entries: `damage` says what was wrong, if anything,
    /// and `sealed` has the list that it was given because it had none, with its entries.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn layer_checked(
        &self,
        chain_id: String,
        damage: Option<String>,
        sealed: Option<(String, i64)>,
    ) -> Result<(), StateError> {
        self.0
            .write("record a check", move |tx| {
                Box::pin(async move {
                    let (seal, entries) = sealed.unzip();
                    sqlx::query(
                        "UPDATE layers SET checked_at = ?2, damage = ?3,
                             seal = coalesce(?4, seal), entries = coalesce(?5, entries)
                         WHERE chain_id = ?1",
                    )
                    .bind(&chain_id)
                    .bind(now_ns())
                    .bind(damage)
                    .bind(seal)
                    .bind(entries)
                    .execute(&mut tx.connection)
                    .await
                    .map(drop)
                    .map_err(during("record a check"))
                })
            })
            .await
    }

    /// Layers whose wait for a retry is over are left to cleanup tasks, if nothing has come to need
    /// them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn collect_layers(&self) -> Result<(), StateError> {
        self.0
            .write("collect unused layers", move |tx| {
                Box::pin(async move {
                    sqlx::query("UPDATE layers SET kept_until = NULL WHERE kept_until <= ?")
                        .bind(now_ns())
                        .execute(&mut tx.connection)
                        .await
                        .map_err(during("collect unused layers"))?;
                    tx.release_unused_layers().await
                })
            })
            .await
    }
}

impl Tx {
    async fn is_leaving(&mut self, chain_id: &str) -> Result<bool, StateError> {
        let leaving: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM layers WHERE chain_id = ? AND state = 'removing'")
                .bind(chain_id)
                .fetch_optional(&mut self.connection)
                .await
                .map_err(during("find a layer"))?;
        Ok(leaving.is_some())
    }

    async fn expect_layer(&mut self, holder: &str, layer: &NewLayer) -> Result<(), StateError> {
        sqlx::query(
            "INSERT INTO layers (chain_id, parent_chain_id, diff_id, digest, state, created_at)
             VALUES (?, ?, ?, ?, 'fetching', ?) ON CONFLICT (chain_id) DO NOTHING",
        )
        .bind(&layer.chain_id)
        .bind(&layer.parent)
        .bind(&layer.diff_id)
        .bind(&layer.digest)
        .bind(now_ns())
        .execute(&mut self.connection)
        .await
        .map_err(during("record a layer"))?;
        sqlx::query("INSERT INTO pull_layers (reference, chain_id) VALUES (?, ?)")
            .bind(holder)
            .bind(&layer.chain_id)
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(during("hold a layer"))
    }

    /// The pull or import has ended, or needs other layers.
    pub(super) async fn let_go_of_layers(&mut self, holder: &str) -> Result<(), StateError> {
        sqlx::query("DELETE FROM pull_layers WHERE reference = ?")
            .bind(holder)
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(during("let go of layers"))
    }

    /// What a failed pull has got waits for a retry.
    pub(super) async fn keep_layers_for_retry(
        &mut self,
        holder: &str,
        until: i64,
    ) -> Result<(), StateError> {
        sqlx::query(
            "UPDATE layers SET kept_until = ?2 WHERE state = 'present'
                 AND chain_id IN (SELECT chain_id FROM pull_layers WHERE reference = ?1)",
        )
        .bind(holder)
        .bind(until)
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("keep layers for a retry"))
    }

    /// An image has come that these layers belong to: they wait for nothing any more.
    pub(super) async fn keep_no_longer(&mut self, top: Option<&str>) -> Result<(), StateError> {
        sqlx::query(
            "WITH RECURSIVE chain (chain_id) AS (
                 SELECT ?1
                 UNION SELECT l.parent_chain_id FROM layers l JOIN chain USING (chain_id)
             )
             UPDATE layers SET kept_until = NULL
             WHERE kept_until IS NOT NULL AND chain_id IN (SELECT chain_id FROM chain)",
        )
        .bind(top)
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("keep layers"))
    }

    /// Marks layers that nothing needs, and gives each to a cleanup task.
    pub(super) async fn release_unused_layers(&mut self) -> Result<(), StateError> {
        let unused: Vec<String> = sqlx::query_scalar(
            "WITH RECURSIVE used (chain_id) AS (
                 SELECT top_chain_id FROM images WHERE top_chain_id IS NOT NULL
                 UNION SELECT top_chain_id FROM snapshots WHERE top_chain_id IS NOT NULL
                 UNION SELECT top_chain_id FROM image_volumes WHERE top_chain_id IS NOT NULL
                 UNION SELECT h.chain_id FROM pull_layers h JOIN pulls p USING (reference)
                     WHERE p.finished < p.requested
                 UNION SELECT chain_id FROM layers WHERE kept_until > ?
                 UNION SELECT l.parent_chain_id FROM layers l JOIN used USING (chain_id)
                     WHERE l.parent_chain_id IS NOT NULL
             )
             UPDATE layers SET state = 'removing'
             WHERE state <> 'removing' AND chain_id NOT IN (SELECT chain_id FROM used)
             RETURNING chain_id",
        )
        .bind(now_ns())
        .fetch_all(&mut self.connection)
        .await
        .map_err(during("find unused layers"))?;
        for chain_id in unused {
            self.add_cleanup(Resource::Layer, &chain_id, &chain_id)
                .await?;
        }
        Ok(())
    }

    /// The layer is gone from the disk; its row goes, unless a new pull wants it again.
    pub(super) async fn delete_layer(&mut self, chain_id: &str) -> Result<(), StateError> {
        sqlx::query("DELETE FROM layers WHERE chain_id = ? AND state = 'removing'")
            .bind(chain_id)
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(during("delete a layer"))
    }
}
