//! The image driver: from a reference to verified layers on disk.
//!
//! ```text
//!   resolve ──► ResolvedImage ──fetch_layer (any order, in parallel)──► StagedLayer
//!                                                                          │ prepare_layer
//!        layers/<chain id>/fs ◄──place_layers (all at once)── PreparedLayer ◄┘ (bottom to top)
//! ```
//! `fetch` brings the layers. Knows no database: what was pulled, and what may
//! be removed, is remembered by the caller.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::archive::Archive;
use super::auth::{Credentials, Given};
use super::clients::{Clients, Proxies};
use super::digest::Digest;
use super::download::Downloads;
use super::error::ImageError;
use super::hosts;
use super::keyring::Keyring;
use super::layers::{CHAIN_ALGORITHM, LayerError, LayerStore};
use super::manifest::{
    self, Document, ImageConfigSummary, LayerDescriptor, Manifest, ManifestError,
};
use super::reference::Reference;
use super::registry::Patience;
use super::session::{Manners, Offer, Session};
use super::signature::Policy;
use super::unpack::Limits;
use crate::sys::tree::Usage;

/// Indexes may name indexes; not deeper than this.
const INDEX_DEPTH_MAX: usize = 3;
/// A blob smaller than this is fetched again sooner than it would be found on the disk.
const KEEP_FROM_BYTES: u64 = 16 << 20;

/// How images are pulled.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// The directory with `<host>/hosts.toml`.
    pub certs_d: PathBuf,
    /// Layers downloaded and unpacked at once, over all pulls.
    pub parallel_layers: usize,
    /// Transfers of blobs at once, over all pulls.
    pub parallel_connections: usize,
    /// A file of credentials as `docker login` writes it, for pulls that bring none.
    pub credentials_file: Option<PathBuf>,
    /// How registries are reached that are not on this machine.
    pub proxies: Proxies,
    /// Blobs from this many bytes on are kept on disk while they come (see `download`).
    pub keep_from_bytes: u64,
    /// Whether blobs stay beside the layers made of them.
    pub keep_blobs: bool,
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
    /// Which images may be pulled.
    pub policy: Policy,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            certs_d: PathBuf::from("/etc/quilt/certs.d"),
            parallel_layers: 4,
            parallel_connections: 8,
            credentials_file: None,
            proxies: Proxies::default(),
            keep_from_bytes: KEEP_FROM_BYTES,
            keep_blobs: false,
            connect_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            tries: 5,
            first_wait: Duration::from_millis(200),
            limits: Limits::default(),
            policy: Policy::default(),
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
    /// Blobs that are kept beside their layers.
    Kept,
}

/// Pulls images and keeps their layers under one root directory.
#[derive(Debug)]
pub struct ImageDriver {
    pub(super) config: ImageConfig,
    pub(super) store: Arc<LayerStore>,
    pub(super) downloads: Arc<Downloads>,
    pub(super) slots: Arc<Semaphore>,
    manners: Manners,
}

impl ImageDriver {
    /// A driver that keeps its layers under `root`.
    ///
    /// # Errors
    /// mkdir(2)'s on `layers/`, `staging/` and `downloads/`.
    pub fn new(root: &Path, config: ImageConfig) -> Result<Self, LayerError> {
        Ok(Self {
            store: Arc::new(LayerStore::open(root)?),
            downloads: Arc::new(Downloads::open(root)?),
            slots: Arc::new(Semaphore::new(config.parallel_layers.max(1))),
            manners: Manners {
                clients: Arc::new(Clients::new(config.connect_timeout, config.proxies.clone())),
                connections: Arc::new(Semaphore::new(config.parallel_connections.max(1))),
                stall_timeout: config.stall_timeout,
                patience: Patience {
                    tries: config.tries.max(1),
                    first_wait: config.first_wait,
                },
            },
            config,
        })
    }

    /// Begins to look for an image; nothing has been asked yet.
    ///
    /// # Errors
    /// A configuration of the host, or a file of credentials, that does not parse; `Signature` if
    /// the policy rejects the image.
    pub fn lookup(&self, reference: &Reference, given: &Given) -> Result<Lookup, ImageError> {
        let mut offer = Offer {
            given: given.clone(),
            ..Offer::default()
        };
        // Both are read anew each time, so a change needs no restart.
        if let Some(path) = &self.config.credentials_file
            && given.credentials == Credentials::Anonymous
        {
            offer.keyring = Keyring::read(path)?;
        }
        let endpoints = hosts::endpoints(&self.config.certs_d, reference.host())?;
        let session = Session::new(reference.clone(), offer, endpoints, self.manners.clone());
        let policy = self.config.policy.clone();
        policy.refuse_rejected(&session)?;
        let session = Arc::new(session);
        Ok(Lookup { session, policy })
    }

    /// Asks the registry what a reference is: manifest, configuration, and the list of layers.
    ///
    /// # Errors
    /// Those of [`ImageDriver::lookup`] and [`Lookup::resolve`].
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<ResolvedImage, ImageError> {
        let lookup = self.lookup(reference, &credentials.clone().into())?;
        lookup.resolve().await
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

    /// Bytes of a layer's blob that an earlier try has left here. Blocks on the disk.
    pub fn kept_bytes(&self, layer: &LayerDescriptor) -> u64 {
        self.downloads.kept(&layer.digest)
    }

    /// What unfinished downloads take on the disk. Blocks on it.
    ///
    /// # Errors
    /// readdir(3)'s and stat(2)'s.
    pub fn downloads_usage(&self) -> Result<Usage, LayerError> {
        self.downloads.usage()
    }

    /// Digests of the blobs of which something is kept for a later try, in no order.
    ///
    /// # Errors
    /// readdir(3)'s.
    pub fn list_downloads(&self) -> Result<Vec<Digest>, LayerError> {
        self.downloads.list()
    }

    /// Deletes what is kept of a blob, unless it is being fetched; idempotent. Blocks on the disk.
    ///
    /// # Errors
    /// unlink(2)'s.
    pub fn remove_download(&self, digest: &Digest) -> Result<(), LayerError> {
        self.downloads.remove(digest)
    }
}

/// An image that is being looked for at a registry and its mirrors; it remembers what they have
/// granted.
#[derive(Debug, Clone)]
pub struct Lookup {
    pub(super) session: Arc<Session>,
    policy: Policy,
}

impl Lookup {
    /// What the registry says that the reference is now: the digest alone, and whether it may be
    /// had with these credentials at all. `None` asks for [`Lookup::resolve`].
    pub async fn digest(&self) -> Option<Digest> {
        let reference = &self.session.reference;
        if self.policy.wants_signature(reference) {
            // What was signed is not what a digest alone shows.
            return None;
        }
        let claimed = self.session.digest_of(&reference.selector()).await?;
        // A registry that answers something else than what was asked for is not believed.
        let asked = reference.digest().is_none_or(|digest| *digest == claimed);
        asked.then_some(claimed)
    }

    /// Requests to registries that had to be made again so far.
    pub fn repeated(&self) -> u64 {
        self.session.repeated.load(Ordering::Relaxed)
    }

    /// Hosts that have served something else than what they were asked for while others were left,
    /// and what that was.
    pub fn wrong_hosts(&self) -> Vec<(String, String)> {
        self.session.wrong_hosts()
    }

    /// Asks the registry what the reference is: manifest, configuration, and the list of layers.
    ///
    /// # Errors
    /// Any [`ImageError`] of a registry, and `Unsupported` for what this node cannot run.
    pub async fn resolve(&self) -> Result<ResolvedImage, ImageError> {
        let session = &self.session;
        let reference = &session.reference;
        let unsupported = |source| ImageError::Unsupported {
            reference: reference.to_string(),
            source,
        };
        let selector = reference.selector();
        let mut fetched = session.manifest(&selector, reference.digest()).await?;
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
                return Err(unsupported(ManifestError::Unsupported(text)));
            }
            let chosen = index.choose().map_err(unsupported)?;
            let digest = &chosen.digest;
            fetched = session.manifest(&digest.to_string(), Some(digest)).await?;
            chosen
                .check_size("manifest", &fetched.bytes)
                .map_err(unsupported)?;
        };
        let chosen = &fetched.digest;
        self.policy.check(session, &top, chosen).await?;
        let config = session.small_blob(&manifest.config.digest).await?;
        let image = Parts {
            manifest,
            manifest_digest: fetched.digest,
            bytes: fetched.bytes,
        };
        let source = Source::Registry(Arc::clone(session));
        image.join(reference.clone(), top, config.bytes, source)
    }
}

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
        let described = &self.manifest.config;
        described
            .check_size("configuration", &config)
            .map_err(unsupported)?;
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
