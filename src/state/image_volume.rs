//! The table `image_volumes`: images that a container mounts (KEP-4639). A row keeps the image's
//! layers, and goes with the container's writable layer, by which time nothing is mounted any more.

use std::collections::{BTreeMap, BTreeSet};

use super::error::during;
use super::writer::Tx;
use super::{StateError, Store};
use crate::id::ContainerId;
use crate::lifecycle::spec::ContainerSpec;

impl Store {
    /// The images that a container mounts, by id, with the topmost layer of each; `None` for one
    /// without layers.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn image_volumes(
        &self,
        id: &ContainerId,
    ) -> Result<BTreeMap<String, Option<String>>, StateError> {
        let rows: Vec<(String, Option<String>)> = self
            .read("list a container's image volumes", || {
                sqlx::query_as(
                    "SELECT image_id, top_chain_id FROM image_volumes WHERE container_id = ?",
                )
                .bind(id.as_str())
                .fetch_all(&self.readers)
            })
            .await?;
        Ok(rows.into_iter().collect())
    }
}

impl Tx {
    /// Records the images that a container is to mount; its snapshot has its row. From here on
    /// their layers stay, whatever happens to the images.
    pub(super) async fn hold_image_volumes(
        &mut self,
        id: &ContainerId,
        spec: &ContainerSpec,
    ) -> Result<(), StateError> {
        let images: BTreeSet<_> = spec.image_mounts().map(|mount| &mount.image_id).collect();
        for image in images {
            let top: Option<Option<String>> = sqlx::query_scalar(
                "SELECT top_chain_id FROM images WHERE id = ? AND desired = 'present'",
            )
            .bind(image)
            .fetch_optional(&mut self.connection)
            .await
            .map_err(during("find the image of a volume"))?;
            let Some(top) = top else {
                return Err(StateError::NotFound {
                    noun: IMAGE_OF_A_VOLUME,
                    id: image.clone(),
                });
            };
            self.add_image_volume(id, image, top.as_deref()).await?;
        }
        Ok(())
    }

    pub(super) async fn add_image_volume(
        &mut self,
        id: &ContainerId,
        image: &str,
        top_chain_id: Option<&str>,
    ) -> Result<(), StateError> {
        sqlx::query(
            "INSERT INTO image_volumes (container_id, image_id, top_chain_id) VALUES (?, ?, ?)",
        )
        .bind(id.as_str())
        .bind(image)
        .bind(top_chain_id)
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("record an image volume"))
    }
}

/// What is not found when an image that is to be mounted went in the meantime.
pub const IMAGE_OF_A_VOLUME: &str = "image of a volume";
