//! What can go wrong between a reference and its layers on disk.

use std::path::PathBuf;

use super::digest::Digest;
use super::layers::LayerError;
use super::manifest::ManifestError;
use super::reference::ReferenceError;
use super::unpack::UnpackError;

/// Why an image is not there. Every text names the image; those of a registry name the host, too.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The registry has no such repository, tag, manifest or blob.
    #[error("{reference}: not found at {host}")]
    NotFound {
        /// The image.
        reference: String,
        /// Who was asked.
        host: String,
    },
    /// The registry wants credentials, or others; or the image may not be pulled with them.
    #[error("{reference}: {host} refuses access: {detail}")]
    Unauthorized {
        /// The image.
        reference: String,
        /// Who was asked.
        host: String,
        /// What it said.
        detail: String,
    },
    /// The registry cannot be reached, or failed, or stalled; a later try may succeed.
    #[error("{reference}: {host} is unavailable: {detail}")]
    Unavailable {
        /// The image.
        reference: String,
        /// Who was asked.
        host: String,
        /// What happened last.
        detail: String,
    },
    /// The registry answered something that the distribution-spec does not allow.
    #[error("{reference}: {host} answered against the protocol: {detail}")]
    Protocol {
        /// The image.
        reference: String,
        /// Who was asked.
        host: String,
        /// What was wrong.
        detail: String,
    },
    /// Content is not what its name says.
    #[error("{reference}: {what} from {host} has digest {actual}, not {expected}")]
    DigestMismatch {
        /// The image.
        reference: String,
        /// Who served it.
        host: String,
        /// Which content.
        what: String,
        /// The name.
        expected: Digest,
        /// What it hashes to.
        actual: Digest,
    },
    /// A blob does not end where its manifest says.
    #[error("{reference}: layer {layer} from {host} is longer than the {size} bytes announced")]
    TooLong {
        /// The image.
        reference: String,
        /// Who served it.
        host: String,
        /// The blob.
        layer: Digest,
        /// Bytes that the manifest says it has.
        size: u64,
    },
    /// The image is well and here, but cannot run on this node, or its manifest is no image's.
    #[error("{reference}: the image cannot be used here")]
    Unsupported {
        /// The image.
        reference: String,
        /// Why not.
        source: ManifestError,
    },
    /// A layer could not be unpacked.
    #[error("{reference}: unpacking layer {layer}")]
    Unpack {
        /// The image.
        reference: String,
        /// The blob.
        layer: Digest,
        /// What was wrong with it.
        source: Box<UnpackError>,
    },
    /// The layer store failed.
    #[error("{reference}: storing layer {layer}")]
    Store {
        /// The image.
        reference: String,
        /// The layer's chain id.
        layer: Digest,
        /// What failed.
        source: Box<LayerError>,
    },
    /// The operator's configuration for a registry host does not parse or cannot be used.
    #[error("registry configuration {}: {detail}", path.display())]
    HostConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// An archive to import is not one.
    #[error("archive {}: {detail}", path.display())]
    Archive {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A file of an archive to import cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// No room could be made for a decompressed copy of an archive.
    #[error("making room to read {}", path.display())]
    Stage {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: Box<LayerError>,
    },
    /// A name inside an archive to import is no image reference.
    #[error("archive {}", path.display())]
    Name {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with the name.
        source: ReferenceError,
    },
    /// The operator's policy does not admit the image.
    #[error("{reference}: {why}")]
    Signature {
        /// The image.
        reference: String,
        /// What is wrong with its signatures.
        why: String,
    },
    /// A layer is to be made of its kept blob, and there is none.
    #[error("{reference}: blob {layer} is not kept, or not all of it is here")]
    NotKept {
        /// The image.
        reference: String,
        /// The blob.
        layer: Digest,
    },
    /// This process is ending.
    #[error("{0}: cancelled, the daemon is shutting down")]
    ShuttingDown(String),
}

impl ImageError {
    /// Whether trying again later may help without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::ShuttingDown(_))
    }

    /// Whether a host has served something else than what it was asked for.
    pub(super) fn is_wrong_content(&self) -> bool {
        matches!(self, Self::DigestMismatch { .. } | Self::TooLong { .. })
    }
}
