//! The table `pull_progress`: how far the layers of a pull have come, for whoever watches.
//!
//! Also what justifies the blobs that are kept on disk while they come (invariant I5).

use super::error::during;
use super::event::Subject;
use super::pull::reference_of;
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, now_ns};
use crate::lifecycle::stored_as_text;

stored_as_text! {
    /// What a layer of a pull does.
    LayerStage {
        /// It waits for its turn.
        Waiting = "waiting",
        /// Its blob is coming, and is unpacked meanwhile.
        Fetching = "fetching",
        /// It is unpacked and verified, and waits for the others.
        Fetched = "fetched",
        /// It is in its place.
        Present = "present",
    }
}

/// A layer of a pull, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerAt {
    /// 0 is the bottom layer.
    pub position: i64,
    /// Digest of its blob.
    pub digest: String,
    /// Bytes of its blob.
    pub size_bytes: i64,
    /// Bytes of it that are here.
    pub received_bytes: i64,
    /// Of those, bytes that an earlier try has left here.
    pub kept_bytes: i64,
    /// How fast it comes.
    pub bytes_per_second: i64,
    /// What it does.
    pub state: LayerStage,
}

impl Store {
    /// Digests of the blobs of all pulls that are remembered.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn pulled_blobs(&self) -> Result<Vec<String>, StateError> {
        self.read("list blobs of pulls", || {
            sqlx::query_scalar("SELECT DISTINCT digest FROM pull_progress").fetch_all(&self.readers)
        })
        .await
    }
}

impl ObservedWriter {
    /// The layers of a pull are known; those of an earlier try are forgotten.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pull_begins(&self, key: String, layers: Vec<LayerAt>) -> Result<(), StateError> {
        self.0
            .write("begin a pull", move |tx| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM pull_progress WHERE reference = ?")
                        .bind(&key)
                        .execute(&mut tx.connection)
                        .await
                        .map_err(during("begin a pull"))?;
                    for layer in &layers {
                        tx.layer_at(&key, layer).await?;
                    }
                    let size: i64 = layers.iter().map(|layer| layer.size_bytes).sum();
                    let kept: i64 = layers.iter().map(|layer| layer.kept_bytes).sum();
                    let (kind, kept) = match kept {
                        0 => ("pull_started", String::new()),
                        kept => ("pull_resumed", format!(", {kept} of them here already")),
                    };
                    let message = format!("{} layers, {size} bytes{kept}", layers.len());
                    tx.event(Subject::Image(reference_of(&key)), kind, &message)
                        .await
                })
            })
            .await
    }

    /// Some layers of a pull have come further.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pull_moves(&self, key: String, layers: Vec<LayerAt>) -> Result<(), StateError> {
        self.0
            .write("note the progress of a pull", move |tx| {
                Box::pin(async move {
                    for layer in &layers {
                        tx.layer_at(&key, layer).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

impl Tx {
    async fn layer_at(&mut self, key: &str, layer: &LayerAt) -> Result<(), StateError> {
        sqlx::query(
            "INSERT INTO pull_progress (reference, position, digest, size_bytes, received_bytes,
                 kept_bytes, bytes_per_second, state, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (reference, position) DO UPDATE SET received_bytes = ?5,
                 kept_bytes = ?6, bytes_per_second = ?7, state = ?8, updated_at = ?9",
        )
        .bind(key)
        .bind(layer.position)
        .bind(&layer.digest)
        .bind(layer.size_bytes)
        .bind(layer.received_bytes)
        .bind(layer.kept_bytes)
        .bind(layer.bytes_per_second)
        .bind(layer.state.as_str())
        .bind(now_ns())
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("note the progress of a pull"))
    }

    /// A pull is over: nothing moves any more, and if it went well all of it is here.
    pub(super) async fn pull_rests(&mut self, key: &str, well: bool) -> Result<(), StateError> {
        sqlx::query(
            "UPDATE pull_progress SET bytes_per_second = 0, updated_at = ?3,
                 state = CASE WHEN ?2 THEN 'present' ELSE state END,
                 received_bytes = CASE WHEN ?2 THEN size_bytes ELSE received_bytes END
             WHERE reference = ?1",
        )
        .bind(key)
        .bind(well)
        .bind(now_ns())
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("note the end of a pull"))
    }
}
