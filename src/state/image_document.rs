//! The table `image_documents`: manifest and configuration of an image, byte for byte; and what a
//! check of them has shown.

use super::error::during;
use super::event::Subject;
use super::image::NewImage;
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, now_ns};

/// What an image was made of. `None`: an older version pulled it and kept neither.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Documents {
    /// The manifest for this machine.
    pub manifest: Option<Vec<u8>>,
    /// The configuration.
    pub config: Option<Vec<u8>>,
}

/// Where an image came from.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Origin {
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// The name or the file it came by.
    pub pulled_as: Option<String>,
    /// How long that took, ns.
    pub pull_ns: Option<i64>,
    /// When it came, ns since 1970.
    pub created_at: i64,
    /// What the last check found wrong with its documents.
    pub damage: Option<String>,
}

impl Store {
    /// Manifest and configuration of an image.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn image_documents(&self, id: &str) -> Result<Documents, StateError> {
        let rows: Vec<(String, Vec<u8>)> = self
            .read("read an image's documents", || {
                sqlx::query_as("SELECT kind, content FROM image_documents WHERE image_id = ?")
                    .bind(id)
                    .fetch_all(&self.readers)
            })
            .await?;
        let mut documents = Documents::default();
        for (kind, content) in rows {
            match kind.as_str() {
                "manifest" => documents.manifest = Some(content),
                _ => documents.config = Some(content),
            }
        }
        Ok(documents)
    }

    /// Where an image came from.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn image_origin(&self, id: &str) -> Result<Option<Origin>, StateError> {
        self.read("read an image's origin", || {
            sqlx::query_as(
                "SELECT manifest_digest, pulled_as, pull_ns, created_at, damage FROM images
                 WHERE id = ?",
            )
            .bind(id)
            .fetch_optional(&self.readers)
        })
        .await
    }
}

impl ObservedWriter {
    /// The documents of an image were compared with their digests.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_checked(
        &self,
        id: String,
        damage: Option<String>,
    ) -> Result<(), StateError> {
        self.0
            .write("record a check", move |tx| {
                Box::pin(async move {
                    sqlx::query("UPDATE images SET checked_at = ?, damage = ? WHERE id = ?")
                        .bind(now_ns())
                        .bind(damage)
                        .bind(&id)
                        .execute(&mut tx.connection)
                        .await
                        .map(drop)
                        .map_err(during("record a check"))
                })
            })
            .await
    }

    /// Something that happened to an image, which changes nothing about its being there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_event(
        &self,
        id: String,
        kind: &'static str,
        message: String,
    ) -> Result<(), StateError> {
        self.0
            .write("record an event of an image", move |tx| {
                Box::pin(async move { tx.event(Subject::Image(&id), kind, &message).await })
            })
            .await
    }

    /// The documents of an image were fetched again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_mended(&self, image: NewImage) -> Result<(), StateError> {
        self.0
            .write("mend an image", move |tx| {
                Box::pin(async move { tx.mend_image(&image).await })
            })
            .await
    }
}

impl Tx {
    pub(super) async fn put_documents(&mut self, image: &NewImage) -> Result<(), StateError> {
        let NewImage {
            id,
            manifest,
            config,
            ..
        } = image;
        self.put_document(id, "manifest", Some(manifest)).await?;
        self.put_document(id, "config", Some(config)).await
    }

    pub(super) async fn put_document(
        &mut self,
        image_id: &str,
        kind: &'static str,
        content: Option<&[u8]>,
    ) -> Result<(), StateError> {
        let Some(content) = content else {
            return Ok(());
        };
        sqlx::query(
            "INSERT INTO image_documents (image_id, kind, content) VALUES (?1, ?2, ?3)
             ON CONFLICT (image_id, kind) DO UPDATE SET content = ?3",
        )
        .bind(image_id)
        .bind(kind)
        .bind(content)
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("record a document"))
    }

    async fn mend_image(&mut self, image: &NewImage) -> Result<(), StateError> {
        let spec = serde_json::to_string(&image.spec).map_err(super::error::corrupt("config"))?;
        let known = sqlx::query(
            "UPDATE images SET manifest_digest = ?, config = ?, damage = NULL WHERE id = ?",
        )
        .bind(&image.manifest_digest)
        .bind(spec)
        .bind(&image.id)
        .execute(&mut self.connection)
        .await
        .map_err(during("mend an image"))?;
        // It may have been removed meanwhile.
        if known.rows_affected() > 0 {
            self.put_documents(image).await?;
        }
        Ok(())
    }
}
