//! Rows as the records that are kept of them on disk (`lifecycle::record`).

use sqlx::FromRow;

use super::error::{corrupt, during};
use super::{StateError, Store};
use crate::lifecycle::record::{ImageRecord, LayerRecord, ReferenceRecord};

#[derive(FromRow)]
struct ImageRow {
    id: String,
    manifest_digest: String,
    top_chain_id: Option<String>,
    config: String,
    size_bytes: i64,
    pinned: bool,
    created_at: i64,
    annotations: Option<String>,
    pulled_as: Option<String>,
}

#[derive(FromRow)]
struct LayerRow {
    chain_id: String,
    diff_id: String,
    digest: String,
    size_bytes: i64,
    inodes: i64,
    created_at: i64,
    seal: Option<String>,
    entries: Option<i64>,
}

impl From<LayerRow> for LayerRecord {
    fn from(row: LayerRow) -> Self {
        Self {
            chain_id: row.chain_id,
            diff_id: row.diff_id,
            digest: row.digest,
            size_bytes: row.size_bytes,
            inodes: row.inodes,
            created_at: row.created_at,
            seal: row.seal,
            entries: row.entries,
        }
    }
}

impl Store {
    /// The layers from the base up to `top`; none for an image without layers.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn layer_records(&self, top: Option<&str>) -> Result<Vec<LayerRecord>, StateError> {
        let rows: Vec<LayerRow> = sqlx::query_as(
            "WITH RECURSIVE chain (chain_id, parent, depth) AS (
                 SELECT chain_id, parent_chain_id, 0 FROM layers WHERE chain_id = ?
                 UNION ALL
                 SELECT l.chain_id, l.parent_chain_id, depth + 1
                 FROM layers l JOIN chain ON l.chain_id = chain.parent
             ) SELECT l.chain_id, l.diff_id, l.digest, l.size_bytes, l.inodes, l.created_at,
                 l.seal, l.entries
             FROM layers l JOIN chain USING (chain_id) ORDER BY chain.depth DESC",
        )
        .bind(top)
        .fetch_all(&self.readers)
        .await
        .map_err(during("read an image's layers"))?;
        Ok(rows.into_iter().map(LayerRecord::from).collect())
    }

    /// Every image that is wanted, with its layers and names.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn image_records(&self) -> Result<Vec<ImageRecord>, StateError> {
        let rows: Vec<ImageRow> = sqlx::query_as(
            "SELECT id, manifest_digest, top_chain_id, config, size_bytes, pinned, created_at,
                 annotations, pulled_as
             FROM images WHERE desired = 'present'",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list images"))?;
        let names: Vec<(String, String, String, i64)> = sqlx::query_as(
            "SELECT image_id, reference, kind, updated_at FROM image_references
             ORDER BY reference",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list names of images"))?;
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            let layers = self.layer_records(row.top_chain_id.as_deref()).await?;
            let documents = self.image_documents(&row.id).await?;
            let text = |bytes: Option<Vec<u8>>| bytes.and_then(|b| String::from_utf8(b).ok());
            let own = names.iter().filter(|(image, ..)| *image == row.id);
            records.push(ImageRecord {
                references: own
                    .map(|(_, name, kind, updated_at)| ReferenceRecord {
                        name: name.clone(),
                        is_digest: kind == "digest",
                        updated_at: *updated_at,
                    })
                    .collect(),
                id: row.id,
                manifest_digest: row.manifest_digest,
                spec: serde_json::from_str(&row.config).map_err(corrupt("images.config"))?,
                size_bytes: row.size_bytes,
                pinned: row.pinned,
                created_at: row.created_at,
                layers,
                annotations: row
                    .annotations
                    .and_then(|json| serde_json::from_str(&json).ok())
                    .unwrap_or_default(),
                pulled_as: row.pulled_as,
                manifest: text(documents.manifest),
                config: text(documents.config),
            });
        }
        Ok(records)
    }
}
