//! The image driver: from a reference to verified layers on disk.
//!
//! ```text
//!   resolve ──► ResolvedImage ──fetch_layer (any order, in parallel)──► StagedLayer
//!                                                                          │
//!                       layers/<chain id>/fs ◄──commit_layer (bottom to top)
//! ```
//! Each layer is one pipeline: network → digest → bounded channel → decompress → digest → files.
//! Nothing counts before both digests are right. Knows no database: what was pulled, and what may
//! be removed, is remembered by the caller.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::archive::Archive;
use super::auth::Credentials;
use super::channel::{ChannelReader, Feed, Piece};
use super::clients::Clients;
use super::digest::Digest;
use super::error::ImageError;
use super::hosts;
use super::layers::{CHAIN_ALGORITHM, CommittedLayer, LayerError, LayerStore, StagedLayer};
use super::manifest::{self, Document, ImageConfigSummary, LayerDescriptor, Manifest};
use super::reference::Reference;
use super::registry::Patience;
use super::session::Session;
use super::unpack::{Limits, unpack};

/// Indexes may name indexes; not deeper than this.
const INDEX_DEPTH_MAX: usize = 3;
/// Pieces of a blob between network and unpacker: with pieces of up to some hundred kilobytes this
/// keeps both busy without holding much.
const PIECES_MAX: usize = 16;

/// How images are pulled.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// The directory with `<host>/hosts.toml`.
    pub certs_d: PathBuf,
    /// Layers downloaded and unpacked at once, over all pulls.
    pub parallel_layers: usize,
    /// Bound on making a connection.
    pub connect_timeout: Duration,
    /// Bound on the silence of a server in the middle of something.
    pub stall_timeout: Duration,
    /// Tries of one request, the first included.
    pub tries: u32,
    /// Wait before the second try; doubled for each further one.
    pub first_wait: Duration,
    /// Bounds on one layer.
    pub limits: Limits,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            certs_d: PathBuf::from("/etc/quilt/certs.d"),
            parallel_layers: 4,
            connect_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            tries: 5,
            first_wait: Duration::from_millis(200),
            limits: Limits::default(),
        }
    }
}

/// What a reference turned out to be.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The reference that was resolved.
    pub reference: Reference,
    /// Digest of the configuration: the image id of CRI.
    pub image_id: Digest,
    /// Digest of the manifest for this machine.
    pub manifest_digest: Digest,
    /// Digest of what the tag named, an index or a manifest: it makes the repo digest.
    pub repo_digest_of_index: Digest,
    /// How to run the image.
    pub config: ImageConfigSummary,
    /// Bottom first.
    pub layers: Vec<LayerDescriptor>,
    /// The manifest for this machine, as it was served.
    pub manifest: Vec<u8>,
    pub(super) source: Source,
}

impl ResolvedImage {
    /// `repository@digest`, by which the same content can be pulled again.
    pub fn repo_digest(&self) -> Reference {
        self.reference.with_digest(&self.repo_digest_of_index)
    }

    /// The annotations of its manifest, 16 KiB of them at most.
    pub fn annotations(&self) -> std::collections::BTreeMap<String, String> {
        super::annotations::of(&self.manifest)
    }
}

/// Where the layers come from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Registry(Arc<Session>),
    Archive(Arc<Archive>),
}

/// Pulls images and keeps their layers under one root directory.
#[derive(Debug)]
pub struct ImageDriver {
    pub(super) config: ImageConfig,
    pub(super) store: Arc<LayerStore>,
    clients: Arc<Clients>,
    slots: Arc<Semaphore>,
}

impl ImageDriver {
    /// A driver that keeps its layers under `root`.
    ///
    /// # Errors
    /// mkdir(2)'s on `layers/` and `staging/`.
    pub fn new(root: &Path, config: ImageConfig) -> Result<Self, LayerError> {
        Ok(Self {
            store: Arc::new(LayerStore::open(root)?),
            clients: Arc::new(Clients::new(config.connect_timeout)),
            slots: Arc::new(Semaphore::new(config.parallel_layers.max(1))),
            config,
        })
    }

    /// Asks the registry what a reference is: manifest, configuration, and the list of layers.
    ///
    /// # Errors
    /// Any [`ImageError`] of a registry, and `Unsupported` for what this node cannot run.
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<ResolvedImage, ImageError> {
        let session = Arc::new(Session::new(
            reference.clone(),
            credentials.clone(),
            hosts::endpoints(&self.config.certs_d, reference.host())?,
            Arc::clone(&self.clients),
            self.config.stall_timeout,
        ));
        let patience = self.patience();
        let unsupported = |source| ImageError::Unsupported {
            reference: reference.to_string(),
            source,
        };
        let selector = reference.selector();
        let mut fetched = session
            .manifest(&selector, reference.digest(), patience)
            .await?;
        let top = fetched.digest.clone();
        let mut depth = 0;
        let manifest = loop {
            let parsed = Document::parse(&fetched.bytes, &fetched.media_type);
            let index = match parsed.map_err(unsupported)? {
                Document::Manifest(manifest) => break manifest,
                Document::Index(index) => index,
            };
            depth += 1;
            if depth > INDEX_DEPTH_MAX {
                let text = format!("indexes are nested more than {INDEX_DEPTH_MAX} deep");
                return Err(unsupported(manifest::ManifestError::Unsupported(text)));
            }
            let chosen = &index.choose().map_err(unsupported)?.digest;
            fetched = session
                .manifest(&chosen.to_string(), Some(chosen), patience)
                .await?;
        };
        let config = session
            .small_blob(&manifest.config.digest, patience)
            .await?;
        let image = Parts {
            manifest,
            manifest_digest: fetched.digest,
            bytes: fetched.bytes,
        };
        image.join(
            reference.clone(),
            top,
            config.bytes,
            Source::Registry(session),
        )
    }

    /// Downloads, verifies and unpacks layer `index` of an image into staging.
    ///
    /// `progress` is told of every piece that arrived, in bytes. Dropping the future abandons the
    /// layer and deletes what was unpacked.
    ///
    /// # Errors
    /// Any [`ImageError`] of a registry or archive, `DigestMismatch`, `Unpack`, `Store`.
    ///
    /// # Panics
    /// If the image has no layer `index`.
    pub async fn fetch_layer(
        &self,
        image: &ResolvedImage,
        index: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<StagedLayer, ImageError> {
        let layer = &image.layers[index];
        let reference = image.reference.to_string();
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(ImageError::ShuttingDown(reference));
        };
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let (give_up, given_up) = oneshot::channel();
        let unpacking = self.spawn_unpack(image, layer, receiver, give_up);
        let fed = {
            let mut feed = Feed::new(sender, progress);
            tokio::select! {
                biased;
                fed = self.feed(image, layer, &mut feed) => fed,
                // The layer is bad: do not wait for a slow server to send the rest.
                Ok(()) = given_up => Ok(()),
            }
        };
        let unpacked = unpacking
            .await
            .map_err(|_| ImageError::ShuttingDown(reference));
        // A source that failed shows as a cancelled unpacking: its own error says more.
        fed?;
        let (staging, unpacked) = unpacked??;
        if unpacked.diff_id != layer.diff_id {
            return Err(ImageError::DigestMismatch {
                reference: image.reference.to_string(),
                host: image.reference.host().to_owned(),
                what: format!("content of layer {}", layer.digest),
                expected: layer.diff_id.clone(),
                actual: unpacked.diff_id,
            });
        }
        Ok(StagedLayer {
            reference: image.reference.to_string(),
            chain_id: layer.chain_id.clone(),
            parents: image.layers[..index]
                .iter()
                .map(|each| each.chain_id.clone())
                .collect(),
            staging,
            unsettled: unpacked.unsettled,
        })
    }

    /// Sends the blob through `feed`, and marks its end once its digest is right.
    async fn feed(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        feed: &mut Feed<'_>,
    ) -> Result<(), ImageError> {
        let whole = match &image.source {
            Source::Registry(session) => {
                session
                    .blob(&layer.digest, layer.size, feed, self.patience())
                    .await?
            }
            Source::Archive(archive) => archive.blob(&image.reference, layer, feed).await?,
        };
        if whole {
            feed.end().await;
        }
        Ok(())
    }

    fn spawn_unpack(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        receiver: mpsc::Receiver<Piece>,
        give_up: oneshot::Sender<()>,
    ) -> tokio::task::JoinHandle<Result<Unpacking, ImageError>> {
        let (store, limits) = (Arc::clone(&self.store), self.config.limits.clone());
        let (reference, layer) = (image.reference.to_string(), layer.clone());
        tokio::task::spawn_blocking(move || {
            let staging = store.stage().map_err(|error| ImageError::Store {
                reference: reference.clone(),
                layer: layer.chain_id.clone(),
                source: Box::new(error),
            })?;
            let taken = Arc::new(AtomicU64::new(0));
            let source = ChannelReader::new(receiver, Arc::clone(&taken));
            let algorithm = layer.diff_id.algorithm();
            let given_up = || {
                // Nobody may be listening any more, and that is as good.
                let _ = give_up.send(());
            };
            let unpacked = unpack(source, &taken, &staging.fs(), algorithm, &limits, given_up);
            match unpacked {
                Ok(unpacked) => Ok((staging, unpacked)),
                Err(error) => {
                    let (layer, source) = (layer.digest, Box::new(error));
                    Err(ImageError::Unpack {
                        reference,
                        layer,
                        source,
                    })
                }
            }
        })
    }

    /// Makes a staged layer count; the layers below it must have been committed. A layer that is
    /// there already, perhaps from another image, is left as it is. Blocks on the disk.
    ///
    /// # Errors
    /// `Store`: the file system's, or a missing layer below.
    pub fn commit_layer(&self, staged: StagedLayer) -> Result<CommittedLayer, ImageError> {
        let (reference, layer) = (staged.reference.clone(), staged.chain_id.clone());
        self.store.commit(staged).map_err(|error| {
            let source = Box::new(error);
            ImageError::Store {
                reference,
                layer,
                source,
            }
        })
    }

    /// Where a committed layer's files are: a lower directory for overlayfs.
    pub fn layer_path(&self, chain_id: &Digest) -> PathBuf {
        self.store.path(chain_id)
    }

    /// Whether a layer is whole and on disk.
    pub fn has_layer(&self, chain_id: &Digest) -> bool {
        chain_id.algorithm() == CHAIN_ALGORITHM && self.store.has(chain_id)
    }

    /// Deletes a layer that nothing uses any more; idempotent. Blocks on the disk.
    ///
    /// # Errors
    /// rename(2)'s and unlink(2)'s; what is left is under `staging/` then.
    pub fn remove_layer(&self, chain_id: &Digest) -> Result<(), LayerError> {
        self.store.remove(chain_id)
    }

    /// Chain ids of all layers on disk, in no order.
    ///
    /// # Errors
    /// readdir(3)'s.
    pub fn list_layers(&self) -> Result<Vec<Digest>, LayerError> {
        self.store.list()
    }

    /// Deletes what an earlier process left half done. Only before anything is pulled or removed.
    ///
    /// # Errors
    /// unlink(2)'s.
    pub fn clear_staging(&self) -> Result<(), LayerError> {
        self.store.clear_staging()
    }

    fn patience(&self) -> Patience {
        Patience {
            tries: self.config.tries.max(1),
            first_wait: self.config.first_wait,
        }
    }
}

type Unpacking = (super::layers::Staging, super::unpack::Unpacked);

/// A parsed manifest with its bytes, before its configuration is known.
pub(super) struct Parts {
    pub(super) manifest: Manifest,
    pub(super) manifest_digest: Digest,
    pub(super) bytes: Vec<u8>,
}

impl Parts {
    /// Checks manifest and configuration against each other.
    pub(super) fn join(
        self,
        reference: Reference,
        repo_digest_of_index: Digest,
        config: Vec<u8>,
        source: Source,
    ) -> Result<ResolvedImage, ImageError> {
        let unsupported = |source| ImageError::Unsupported {
            reference: reference.to_string(),
            source,
        };
        let (config, diff_ids) = manifest::parse_config(config).map_err(unsupported)?;
        let layers = manifest::layers(&self.manifest, diff_ids).map_err(unsupported)?;
        Ok(ResolvedImage {
            image_id: self.manifest.config.digest,
            manifest_digest: self.manifest_digest,
            repo_digest_of_index,
            config,
            layers,
            manifest: self.bytes,
            source,
            reference,
        })
    }
}
