//! The tables `images`, `image_references` and `image_documents`; `layer` has the layers.
//!
//! An image has a row only when all its layers are on disk, so a half-pulled one never shows.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::FromRow;

use super::error::{corrupt, during};
use super::event::Subject;
use super::operation::Finished;
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError, Store, now_ns};
use crate::id::ObjectKey;
use crate::lifecycle::image::{Desired, Pins};
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
    /// Whether clients are advised to keep it.
    pub pinned: bool,
    /// Annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
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
    annotations: Option<String>,
    desired: String,
    refs: Option<String>,
}

const SELECT: &str = "SELECT i.id, i.top_chain_id, i.config, i.size_bytes, i.pinned,
     i.annotations, i.desired,
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
            annotations: row
                .annotations
                .map(|json| serde_json::from_str(&json).map_err(corrupt("images.annotations")))
                .transpose()?
                .unwrap_or_default(),
            desired: row.desired.parse().map_err(corrupt("images.desired"))?,
            tags,
            digests,
        })
    }
}

/// An image to be recorded, all of whose layers are on disk.
#[derive(Debug, Clone, Default)]
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
    /// Annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
    /// The name or the file it came by.
    pub pulled_as: String,
    /// Its manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// Its configuration, byte for byte.
    pub config: Vec<u8>,
    /// Which images are pinned.
    pub pins: Pins,
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
                    tx.upsert_image(&image, done.duration_ns).await?;
                    tx.put_documents(&image).await?;
                    tx.keep_no_longer(image.top_chain_id.as_deref()).await?;
                    let tags = image.tags.iter().map(|name| (name, "tag"));
                    for (name, kind) in tags.chain(image.digests.iter().map(|n| (n, "digest"))) {
                        tx.point_reference(name, kind, &image.id).await?;
                    }
                    tx.pin_images(&image.pins).await?;
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

    /// Pins what the configuration says, at start.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pin_images(&self, pins: Pins) -> Result<(), StateError> {
        self.0
            .write("pin images", move |tx| {
                Box::pin(async move { tx.pin_images(&pins).await })
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
    async fn upsert_image(&mut self, image: &NewImage, pull_ns: i64) -> Result<(), StateError> {
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
            "INSERT INTO images (id, manifest_digest, top_chain_id, config, size_bytes, created_at,
                 annotations, pulled_as, pull_ns)
             VALUES (?1, ?2, ?3, ?4, (
                 WITH RECURSIVE chain (chain_id, parent, size) AS (
                     SELECT chain_id, parent_chain_id, size_bytes FROM layers WHERE chain_id = ?3
                     UNION ALL SELECT l.chain_id, l.parent_chain_id, l.size_bytes
                     FROM layers l JOIN chain ON l.chain_id = chain.parent
                 ) SELECT max(1, coalesce(sum(size), 0)) FROM chain), ?5,
                 ?6, ?7, ?8)
             ON CONFLICT (id) DO UPDATE SET manifest_digest = ?2, annotations = ?6,
                 pulled_as = ?7, pull_ns = ?8, damage = NULL",
        )
        .bind(&image.id)
        .bind(&image.manifest_digest)
        .bind(&image.top_chain_id)
        .bind(serde_json::to_string(&image.spec).map_err(corrupt("images.config"))?)
        .bind(now_ns())
        .bind(serde_json::to_string(&image.annotations).map_err(corrupt("images.annotations"))?)
        .bind(&image.pulled_as)
        .bind(pull_ns)
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
             AND NOT EXISTS (SELECT 1 FROM containers c WHERE c.image_id = images.id)
             AND NOT EXISTS (SELECT 1 FROM image_volumes v WHERE v.image_id = images.id)",
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

    /// Pins the images one of whose names fits a pattern, and no others.
    pub(super) async fn pin_images(&mut self, pins: &Pins) -> Result<(), StateError> {
        let pinned: Vec<String> = sqlx::query_scalar("SELECT id FROM images WHERE pinned")
            .fetch_all(&mut self.connection)
            .await
            .map_err(during("list pinned images"))?;
        let was: BTreeSet<String> = pinned.into_iter().collect();
        let mut is = BTreeSet::new();
        if !pins.is_empty() {
            let names: Vec<(String, String)> =
                sqlx::query_as("SELECT image_id, reference FROM image_references")
                    .fetch_all(&mut self.connection)
                    .await
                    .map_err(during("list names of images"))?;
            let fitting = names.into_iter().filter(|(_, name)| pins.fit(name));
            is.extend(fitting.map(|(id, _)| id));
        }
        for id in was.symmetric_difference(&is) {
            sqlx::query("UPDATE images SET pinned = NOT pinned WHERE id = ?")
                .bind(id)
                .execute(&mut self.connection)
                .await
                .map_err(during("pin an image"))?;
        }
        Ok(())
    }
}
