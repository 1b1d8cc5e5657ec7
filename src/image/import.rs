//! Images from a file: an OCI image layout (a directory or a tar of one), or what `docker save`
//! writes; each perhaps compressed.
//!
//! Yields the same [`ResolvedImage`] as a registry does, so that its layers are fetched and
//! committed the same way, with the same checks. Image-spec, "Image Layout"; Docker image-spec
//! v1.2, "Combined Image JSON + Filesystem Changeset Format".

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::archive::Archive;
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{
    DOCUMENT_MAX, Descriptor, Document, Index, ManifestError, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};
use super::pull::{ImageDriver, Parts, ResolvedImage, Source};
use super::reference::Reference;

/// Images in one archive.
const IMAGES_MAX: usize = 1000;
/// As in a registry.
const INDEX_DEPTH_MAX: usize = 3;

/// An image found in an archive.
#[derive(Debug)]
pub struct ImportedImage {
    /// What it is. Where the archive gives it no name, its reference is
    /// `localhost/imported@<manifest digest>`, good for messages only.
    pub image: ResolvedImage,
    /// The names that the archive gives it; may be none.
    pub references: Vec<Reference>,
}

/// One element of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct DiffIds {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// An image before the archive may be shared.
struct Found {
    parts: Parts,
    top: Digest,
    config: Vec<u8>,
    references: Vec<Reference>,
}

impl ImageDriver {
    /// Opens an archive and reads what images it holds; their layers are then fetched with
    /// [`ImageDriver::fetch_layer`].
    ///
    /// # Errors
    /// `Archive` and `Read` for a file that is none, `Name`, `DigestMismatch`, `Unsupported`.
    pub async fn open_archive(&self, path: &Path) -> Result<Vec<ImportedImage>, ImageError> {
        let (store, limits) = (Arc::clone(&self.store), self.config.limits.clone());
        let path = path.to_owned();
        let shown = path.display().to_string();
        let work = move || {
            let stage = || {
                let failed = |source| ImageError::Stage {
                    path: path.clone(),
                    source,
                };
                store.stage().map_err(Box::new).map_err(failed)
            };
            let mut archive = Archive::open(&path, &limits, stage)?;
            let found = find(&mut archive)?;
            let archive = Arc::new(archive);
            found
                .into_iter()
                .map(|found| found.resolve(&archive))
                .collect()
        };
        let joined = tokio::task::spawn_blocking(work).await;
        joined.map_err(|_| ImageError::ShuttingDown(shown))?
    }
}

impl Found {
    fn resolve(self, archive: &Arc<Archive>) -> Result<ImportedImage, ImageError> {
        let Self {
            parts,
            top,
            config,
            references,
        } = self;
        let reference = match references.first() {
            Some(first) => first.clone(),
            None => {
                let name = format!("localhost/imported@{top}");
                name.parse().map_err(|source| name_error(archive, source))?
            }
        };
        let image = parts.join(reference, top, config, Source::Archive(Arc::clone(archive)))?;
        Ok(ImportedImage { image, references })
    }
}

fn name_error(archive: &Archive, source: super::reference::ReferenceError) -> ImageError {
    ImageError::Name {
        path: archive.path.clone(),
        source,
    }
}

fn find(archive: &mut Archive) -> Result<Vec<Found>, ImageError> {
    // New Dockers write both; the layout keeps the original manifests, and so the digests.
    if archive.read(b"oci-layout", DOCUMENT_MAX)?.is_some()
        && let Some(index) = archive.read(b"index.json", DOCUMENT_MAX)?
    {
        return oci_images(archive, &index);
    }
    match archive.read(b"manifest.json", DOCUMENT_MAX)? {
        Some(list) => docker_images(archive, &list),
        None => {
            let detail = "has neither oci-layout with index.json nor manifest.json".to_owned();
            Err(archive.bad(detail))
        }
    }
}

fn oci_images(archive: &mut Archive, index: &[u8]) -> Result<Vec<Found>, ImageError> {
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| archive.bad(format!("index.json does not parse: {error}")))?;
    if index.manifests.len() > IMAGES_MAX {
        return Err(archive.bad(format!("more than {IMAGES_MAX} images")));
    }
    let mut found: Vec<Found> = Vec::new();
    for descriptor in index.manifests.iter().filter(|each| each.fits()) {
        let references = oci_names(archive, descriptor)?;
        // The same image under several names has a descriptor for each.
        if let Some(same) = found.iter_mut().find(|same| same.top == descriptor.digest) {
            same.references.extend(references);
            continue;
        }
        let parts = oci_manifest(archive, descriptor)?;
        let config = verified(archive, &parts.manifest.config.digest, "configuration")?;
        for layer in &parts.manifest.layers {
            let name = blob_name(&layer.digest);
            archive
                .blobs
                .insert(layer.digest.clone(), name.into_bytes());
        }
        found.push(Found {
            parts,
            top: descriptor.digest.clone(),
            config,
            references,
        });
    }
    match found.is_empty() {
        true => Err(archive.bad("has no image for this platform".to_owned())),
        false => Ok(found),
    }
}

/// Follows nested indexes down to the manifest for this machine.
fn oci_manifest(archive: &Archive, descriptor: &Descriptor) -> Result<Parts, ImageError> {
    let unsupported = |source| ImageError::Unsupported {
        reference: archive.path.display().to_string(),
        source,
    };
    let mut digest = descriptor.digest.clone();
    let mut media_type = descriptor.media_type.clone();
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = verified(archive, &digest, "manifest")?;
        match Document::parse(&bytes, &media_type).map_err(unsupported)? {
            Document::Manifest(manifest) => {
                return Ok(Parts {
                    manifest,
                    manifest_digest: digest,
                    bytes,
                });
            }
            Document::Index(index) => {
                let chosen = index.choose().map_err(unsupported)?;
                digest = chosen.digest.clone();
                media_type.clone_from(&chosen.media_type);
            }
        }
    }
    let text = format!("indexes are nested more than {INDEX_DEPTH_MAX} deep");
    Err(unsupported(ManifestError::Unsupported(text)))
}

/// The names in a descriptor's annotations. A bare tag names nothing without a repository.
fn oci_names(archive: &Archive, descriptor: &Descriptor) -> Result<Vec<Reference>, ImageError> {
    let annotation = |key: &str| descriptor.annotations.as_ref().and_then(|all| all.get(key));
    let name = annotation("io.containerd.image.name").or_else(|| {
        let name = annotation("org.opencontainers.image.ref.name");
        name.filter(|name| name.contains(['/', ':']))
    });
    name.map(|name| name.parse().map_err(|source| name_error(archive, source)))
        .into_iter()
        .collect()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

/// A document of the layout, which must be what its name says.
fn verified(archive: &Archive, digest: &Digest, what: &str) -> Result<Vec<u8>, ImageError> {
    let bytes = archive.read(blob_name(digest).as_bytes(), DOCUMENT_MAX)?;
    let bytes = bytes.ok_or_else(|| archive.bad(format!("{what} {digest} is missing")))?;
    match digest.matches(&bytes) {
        true => Ok(bytes),
        false => {
            let reference = archive.path.display().to_string();
            Err(archive.mismatch(reference, what, digest, Digest::sha256(&bytes)))
        }
    }
}

fn docker_images(archive: &mut Archive, list: &[u8]) -> Result<Vec<Found>, ImageError> {
    let images: Vec<DockerImage> = serde_json::from_slice(list)
        .map_err(|error| archive.bad(format!("manifest.json does not parse: {error}")))?;
    if images.is_empty() || images.len() > IMAGES_MAX {
        return Err(archive.bad(format!("has {} images", images.len())));
    }
    images
        .iter()
        .map(|image| docker_image(archive, image))
        .collect()
}

/// Writes the manifest that a docker archive lacks.
fn docker_image(archive: &mut Archive, image: &DockerImage) -> Result<Found, ImageError> {
    let config = archive.read(image.config.as_bytes(), DOCUMENT_MAX)?;
    let config = config.ok_or_else(|| archive.bad(format!("{:?} is missing", image.config)))?;
    let diff_ids: DiffIds = serde_json::from_slice(&config)
        .map_err(|error| archive.bad(format!("{:?} does not parse: {error}", image.config)))?;
    let diff_ids = diff_ids.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        let (layers, diffs) = (image.layers.len(), diff_ids.len());
        return Err(archive.bad(format!("image has {layers} layers and {diffs} diff ids")));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in image.layers.iter().zip(diff_ids) {
        let missing = || archive.bad(format!("layer {name:?} is missing"));
        let span = archive.find(name.as_bytes())?.ok_or_else(missing)?;
        let compressed = archive.digest_if_compressed(&span);
        let compressed = compressed.map_err(|source| archive.unreadable(source))?;
        let digest = compressed.unwrap_or(diff_id);
        let size = span.size;
        layers.push(json!({ "mediaType": OCI_LAYER, "digest": digest, "size": size }));
        archive.blobs.insert(digest, name.clone().into_bytes());
    }
    let (digest, size) = (Digest::sha256(&config), config.len());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": digest, "size": size },
        "layers": layers,
    });
    let bytes = manifest.to_string().into_bytes();
    let unsupported = |source| ImageError::Unsupported {
        reference: archive.path.display().to_string(),
        source,
    };
    let Document::Manifest(manifest) = Document::parse(&bytes, "").map_err(unsupported)? else {
        return Err(archive.bad("manifest.json makes no image".to_owned()));
    };
    let names = image.repo_tags.iter().flatten().map(|tag| tag.parse());
    let references = names
        .collect::<Result<_, _>>()
        .map_err(|error| name_error(archive, error))?;
    let manifest_digest = Digest::sha256(&bytes);
    let top = manifest_digest.clone();
    Ok(Found {
        parts: Parts {
            manifest,
            manifest_digest,
            bytes,
        },
        top,
        config,
        references,
    })
}
