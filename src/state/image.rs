//! The tables `images`, `image_references` and `layers`.
//!
//! An image has a row only when all its layers are on disk, so a half-pulled one never shows.

use sqlx::FromRow;

use super::cleanup::Resource;
use super::error::{corrupt, during};
use super::event::Subject;
use super::operation::Finished;
use super::transition::{Change, Table};
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError, Store, now_ns};
use crate::id::ObjectKey;
use crate::lifecycle::image::Desired;
use crate::lifecycle::layer;
use crate::lifecycle::spec::ImageSpec;

/// An image as the database knows it.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:` and the digest of its config.
    pub id: String,
    /// Chain id of its topmost layer.
    pub top_chain_id: Option<String>,
    /// What it says of its containers.
    pub spec: ImageSpec,
    /// Bytes of its unpacked layers.
    pub size_bytes: i64,
    /// Whether it is never collected.
    pub pinned: bool,
    /// What the client wants now.
    pub desired: Desired,
    /// Names with a tag, sorted.
    pub tags: Vec<String>,
    /// Names with a digest, sorted.
    pub digests: Vec<String>,
}

#[derive(FromRow)]
struct Row {
    id: String,
    top_chain_id: Option<String>,
    config: String,
    size_bytes: i64,
    pinned: bool,
    desired: String,
    refs: Option<String>,
}

const SELECT: &str = "SELECT i.id, i.top_chain_id, i.config, i.size_bytes, i.pinned, i.desired,
     (SELECT group_concat(r.kind || ' ' || r.reference, char(10)) FROM
         (SELECT kind, reference FROM image_references WHERE image_id = i.id ORDER BY reference) r
     ) AS refs FROM images i";

impl TryFrom<Row> for Image {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        let mut tags = Vec::new();
        let mut digests = Vec::new();
        for line in row.refs.iter().flat_map(|refs| refs.lines()) {
            match line.split_once(' ') {
                Some(("tag", name)) => tags.push(name.to_owned()),
                Some((_, name)) => digests.push(name.to_owned()),
                None => {}
            }
        }
        Ok(Self {
            id: row.id,
            top_chain_id: row.top_chain_id,
            spec: serde_json::from_str(&row.config).map_err(corrupt("images.config"))?,
            size_bytes: row.size_bytes,
            pinned: row.pinned,
            desired: row.desired.parse().map_err(corrupt("images.desired"))?,
            tags,
            digests,
        })
    }
}

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

/// An image to be recorded, all of whose layers are on disk.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// `sha256:` and the digest of its config.
    pub id: String,
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// Chain id of its topmost layer.
    pub top_chain_id: Option<String>,
    /// What it says of its containers.
    pub spec: ImageSpec,
    /// Names with a tag.
    pub tags: Vec<String>,
    /// Names with a digest.
    pub digests: Vec<String>,
}

impl Store {
    /// Images that are wanted, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn images(&self) -> Result<Vec<Image>, StateError> {
        let sql = format!("{SELECT} WHERE i.desired = 'present' ORDER BY i.id");
        let rows: Vec<Row> = self
            .read("list images", || {
                sqlx::query_as(sqlx::AssertSqlSafe(sql.as_str())).fetch_all(&self.readers)
            })
            .await?;
        rows.into_iter().map(Image::try_from).collect()
    }

    /// An image by its full id, wanted or leaving.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn image(&self, id: &str) -> Result<Option<Image>, StateError> {
        let sql = format!("{SELECT} WHERE i.id = ?");
        let row: Option<Row> = self
            .read("read an image", || {
                sqlx::query_as(sqlx::AssertSqlSafe(sql.as_str()))
                    .bind(id)
                    .fetch_optional(&self.readers)
            })
            .await?;
        row.map(Image::try_from).transpose()
    }

    /// A wanted image by one of its normalised names.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn image_by_reference(&self, reference: &str) -> Result<Option<Image>, StateError> {
        let sql = format!(
            "{SELECT} JOIN image_references n ON n.image_id = i.id
             WHERE n.reference = ? AND i.desired = 'present'"
        );
        let row: Option<Row> = self
            .read("read an image", || {
                sqlx::query_as(sqlx::AssertSqlSafe(sql.as_str()))
                    .bind(reference)
                    .fetch_optional(&self.readers)
            })
            .await?;
        row.map(Image::try_from).transpose()
    }

    /// Ids of wanted images that begin with `prefix`, two at most.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn image_ids(&self, prefix: &str) -> Result<Vec<String>, StateError> {
        self.read("find an image", || {
            sqlx::query_scalar(
                "SELECT id FROM images WHERE desired = 'present'
             AND id >= ?1 AND id < ?1 || 'g' LIMIT 2",
            )
            .bind(prefix)
            .fetch_all(&self.readers)
        })
        .await
    }

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

    /// Layers that are on disk, among these.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn has_layer(&self, chain_id: &str) -> Result<bool, StateError> {
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

    /// Images that are to go, for recovery.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn leaving_images(&self) -> Result<Vec<String>, StateError> {
        self.read("list leaving images", || {
            sqlx::query_scalar("SELECT id FROM images WHERE desired = 'removed'")
                .fetch_all(&self.readers)
        })
        .await
    }

    /// The image that is to go and has this normalised name or this id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn leaving_image(
        &self,
        reference: &str,
        id: &str,
    ) -> Result<Option<String>, StateError> {
        self.read("find a leaving image", || {
            sqlx::query_scalar(
                "SELECT i.id FROM images i WHERE i.desired = 'removed' AND (i.id = ?2 OR EXISTS
                     (SELECT 1 FROM image_references r WHERE r.image_id = i.id
                         AND r.reference = ?1)) LIMIT 1",
            )
            .bind(reference)
            .bind(id)
            .fetch_optional(&self.readers)
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
}

impl DesiredWriter {
    /// Records the wish that an image be gone. `false` says that there is none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_image(&self, id: String) -> Result<bool, StateError> {
        self.0
            .write("remove an image", move |tx| {
                Box::pin(async move {
                    let known = sqlx::query("UPDATE images SET desired = 'removed' WHERE id = ?")
                        .bind(&id)
                        .execute(&mut tx.connection)
                        .await
                        .map_err(during("remove an image"))?;
                    if known.rows_affected() == 0 {
                        return Ok(false);
                    }
                    tx.enqueue(&ObjectKey::Image(id)).await?;
                    Ok(true)
                })
            })
            .await
    }
}

impl ObservedWriter {
    /// Records layers before they are fetched (invariant I5). `false` says that one of them is
    /// being removed just now, and that nothing was written: come back when it is gone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expect_layers(&self, layers: Vec<NewLayer>) -> Result<bool, StateError> {
        self.0
            .write("record layers", move |tx| {
                Box::pin(async move {
                    for layer in &layers {
                        if tx.is_leaving(&layer.chain_id).await? {
                            return Ok(false);
                        }
                    }
                    for layer in &layers {
                        tx.expect_layer(layer).await?;
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
    pub async fn layer_present(
        &self,
        chain_id: String,
        size_bytes: u64,
        inodes: u64,
    ) -> Result<(), StateError> {
        self.0
            .write("record a layer", move |tx| {
                Box::pin(async move {
                    let present = sqlx::query(
                        "UPDATE layers SET state = 'present', size_bytes = ?, inodes = ?
                         WHERE chain_id = ?",
                    )
                    .bind(i64::try_from(size_bytes).unwrap_or(i64::MAX))
                    .bind(i64::try_from(inodes).unwrap_or(i64::MAX))
                    .bind(&chain_id)
                    .execute(&mut tx.connection)
                    .await;
                    let change = Change {
                        operation: "record a layer",
                        of: Table::Layers,
                        id: &chain_id,
                        to: layer::State::Present.as_str(),
                    };
                    tx.changed(change, present.map(|done| done.rows_affected()))
                })
            })
            .await
    }

    /// An image is complete: it shows from here on, and the pull of `answers` is answered.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_present(
        &self,
        image: NewImage,
        answers: Option<String>,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("record an image", move |tx| {
                Box::pin(async move {
                    tx.upsert_image(&image).await?;
                    let tags = image.tags.iter().map(|name| (name, "tag"));
                    for (name, kind) in tags.chain(image.digests.iter().map(|n| (n, "digest"))) {
                        tx.point_reference(name, kind, &image.id).await?;
                    }
                    tx.remove_unnamed_images().await?;
                    if let Some(reference) = answers {
                        tx.pull_answered(&reference, &Ok(image.id.clone())).await?;
                    }
                    tx.operation(&done).await?;
                    tx.event(Subject::Image(&image.id), "pulled", &image.tags.join(" "))
                        .await
                })
            })
            .await
    }

    /// An image that nobody wants loses its row and its names; layers that nothing else needs are
    /// left to cleanup tasks.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_removed(&self, id: String) -> Result<(), StateError> {
        self.0
            .write("delete an image", move |tx| {
                Box::pin(async move {
                    let gone =
                        sqlx::query("DELETE FROM images WHERE id = ? AND desired = 'removed'")
                            .bind(&id)
                            .execute(&mut tx.connection)
                            .await
                            .map_err(during("delete an image"))?;
                    if gone.rows_affected() > 0 {
                        tx.release_unused_layers().await?;
                        tx.event(Subject::Image(&id), "removed", "").await?;
                    }
                    tx.touch(ObjectKey::Image(id));
                    Ok(())
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

    async fn expect_layer(&mut self, layer: &NewLayer) -> Result<(), StateError> {
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
        .map(drop)
        .map_err(during("record a layer"))
    }

    async fn upsert_image(&mut self, image: &NewImage) -> Result<(), StateError> {
        // A removal is not taken back, least of all by the back (invariant I2): the image that was
        // to go goes, with its names, and this is a new one.
        let gone = sqlx::query("DELETE FROM images WHERE id = ? AND desired = 'removed'")
            .bind(&image.id)
            .execute(&mut self.connection)
            .await
            .map_err(during("delete an image"))?;
        if gone.rows_affected() > 0 {
            self.event(Subject::Image(&image.id), "removed", "").await?;
            self.touch(ObjectKey::Image(image.id.clone()));
        }
        sqlx::query(
            "INSERT INTO images (id, manifest_digest, top_chain_id, config, size_bytes, created_at)
             VALUES (?1, ?2, ?3, ?4, (
                 WITH RECURSIVE chain (chain_id, parent, size) AS (
                     SELECT chain_id, parent_chain_id, size_bytes FROM layers WHERE chain_id = ?3
                     UNION ALL SELECT l.chain_id, l.parent_chain_id, l.size_bytes
                     FROM layers l JOIN chain ON l.chain_id = chain.parent
                 ) SELECT max(1, coalesce(sum(size), 0)) FROM chain), ?5)
             ON CONFLICT (id) DO UPDATE SET manifest_digest = ?2",
        )
        .bind(&image.id)
        .bind(&image.manifest_digest)
        .bind(&image.top_chain_id)
        .bind(serde_json::to_string(&image.spec).map_err(corrupt("images.config"))?)
        .bind(now_ns())
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("record an image"))
    }

    async fn point_reference(
        &mut self,
        reference: &str,
        kind: &'static str,
        image_id: &str,
    ) -> Result<(), StateError> {
        sqlx::query(
            "INSERT INTO image_references (reference, image_id, kind, updated_at)
             VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (reference) DO UPDATE SET image_id = ?2, updated_at = ?4",
        )
        .bind(reference)
        .bind(image_id)
        .bind(kind)
        .bind(now_ns())
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("record a reference"))
    }

    /// An image whose last name moved to another image can no longer be asked for.
    async fn remove_unnamed_images(&mut self) -> Result<(), StateError> {
        let gone = sqlx::query(
            "DELETE FROM images WHERE pinned = 0
             AND NOT EXISTS (SELECT 1 FROM image_references r WHERE r.image_id = images.id)
             AND NOT EXISTS (SELECT 1 FROM containers c WHERE c.image_id = images.id)",
        )
        .execute(&mut self.connection)
        .await
        .map_err(during("delete unnamed images"))?;
        if gone.rows_affected() > 0 {
            self.release_unused_layers().await
        } else {
            Ok(())
        }
    }

    /// Marks layers that no image, no container and no running pull needs, topmost first, and
    /// gives each to a cleanup task.
    pub(super) async fn release_unused_layers(&mut self) -> Result<(), StateError> {
        let unused: Vec<String> = sqlx::query_scalar(
            "WITH RECURSIVE used (chain_id) AS (
                 SELECT top_chain_id FROM images WHERE top_chain_id IS NOT NULL
                 UNION SELECT top_chain_id FROM snapshots WHERE top_chain_id IS NOT NULL
                 UNION SELECT l.parent_chain_id FROM layers l JOIN used USING (chain_id)
                     WHERE l.parent_chain_id IS NOT NULL
             )
             UPDATE layers SET state = 'removing'
             WHERE state <> 'removing' AND chain_id NOT IN (SELECT chain_id FROM used)
             AND NOT EXISTS (SELECT 1 FROM pulls WHERE finished < requested)
             RETURNING chain_id",
        )
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
