//! Images that a container mounts: which layers they stand on, and whether what is asked for is in
//! them. Rows keep the layers for as long as the container's writable one.

use std::path::PathBuf;

use super::{Back, ReconcileError, blocking, image};
use crate::lifecycle::record::{ContainerRecord, VolumeRecord};
use crate::runtime::image_volume;
use crate::runtime::plan::ImageVolume;
use crate::snapshot;
use crate::state::container::Container;

/// Directories of layers, topmost first, whether they are there or not.
pub(super) fn paths(back: &Back, chain: &[String]) -> Result<Vec<PathBuf>, ReconcileError> {
    let of = |chain_id: &String| Ok(back.images.layer_path(&image::chain_id(chain_id)?));
    chain.iter().map(of).collect()
}

/// Directories of layers, topmost first. When one is gone from the disk, its images are forgotten
/// as by the sweep, so that the client's next pull brings it back.
pub(super) async fn directories(
    back: &Back,
    chain: &[String],
) -> Result<Vec<PathBuf>, ReconcileError> {
    for name in chain {
        let chain_id = image::chain_id(name)?;
        if !back.images.has_layer(&chain_id) {
            back.observed.layer_lost(name.clone()).await?;
            back.image_records.notify_one();
            return Err(ReconcileError::LayerGone(name.clone()));
        }
    }
    paths(back, chain)
}

/// What the launch plan says of the images among the container's mounts, in the order of the
/// request.
pub(super) async fn plan(
    back: &Back,
    container: &Container,
) -> Result<Vec<ImageVolume>, ReconcileError> {
    let mut volumes = Vec::new();
    if container.spec.image_mounts().next().is_none() {
        return Ok(volumes);
    }
    let tops = back.store.image_volumes(&container.id).await?;
    for mount in container.spec.image_mounts() {
        let Some(top) = tops.get(&mount.image_id) else {
            let why = format!("it has no hold on the image {}", mount.image_id);
            return Err(ReconcileError::Plan(why));
        };
        let (root, id) = (&back.paths.root, container.id.as_str());
        let copy = snapshot::volume(root, id, hex(&mount.image_id))?;
        let chain = match top {
            Some(top) if copy.is_none() => back.store.layer_chain(top).await?,
            _ => Vec::new(),
        };
        volumes.push(ImageVolume {
            lower: directories(back, &chain).await?,
            copy,
            sub_path: mount.sub_path.clone(),
        });
    }
    Ok(volumes)
}

/// Copies the images that a container mounts, where there can be no overlays. Idempotent; blocks on
/// the disk.
pub(super) fn copy(back: &Back, record: &ContainerRecord) -> Result<(), ReconcileError> {
    for volume in &record.volumes {
        let layers = volume.layers.iter().rev();
        let chain: Vec<String> = layers.map(|layer| layer.chain_id.clone()).collect();
        let lower = paths(back, &chain)?;
        let (root, id) = (&back.paths.root, record.id.as_str());
        snapshot::ensure_volume(root, id, hex(&volume.image_id), &lower)?;
    }
    Ok(())
}

/// The digits of an image id.
fn hex(image_id: &str) -> &str {
    image_id
        .split_once(':')
        .map_or(image_id, |(_, digits)| digits)
}

/// Looks whether directories that are asked for are in their images: the client is to hear of it
/// now, and not when the container starts.
pub(super) async fn check(back: &Back, container: &Container) -> Result<(), ReconcileError> {
    let volumes = plan(back, container).await?;
    let mounts = container.spec.mounts.iter();
    let places = mounts.filter(|mount| mount.image.is_some());
    let asked: Vec<_> = places
        .map(|mount| mount.container_path.clone())
        .zip(volumes)
        .filter(|(_, volume)| !volume.sub_path.is_empty())
        .collect();
    if asked.is_empty() {
        return Ok(());
    }
    let mount_point = back.paths.mount_point();
    blocking(move || {
        for (destination, volume) in &asked {
            image_volume::check(volume, &mount_point).map_err(|source| {
                let destination = destination.clone();
                ReconcileError::ImageVolume {
                    destination,
                    source,
                }
            })?;
        }
        Ok(())
    })
    .await
}

/// The images as the container's record on disk has them.
pub(super) async fn records(
    back: &Back,
    container: &Container,
) -> Result<Vec<VolumeRecord>, ReconcileError> {
    let mut records = Vec::new();
    if container.spec.image_mounts().next().is_none() {
        return Ok(records);
    }
    for (image_id, top) in back.store.image_volumes(&container.id).await? {
        records.push(VolumeRecord {
            image_id,
            layers: back.store.layer_records(top.as_deref()).await?,
        });
    }
    Ok(records)
}
