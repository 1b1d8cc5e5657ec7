//! What an export needs of an image that was pulled before: its manifest as it is kept, and the
//! blobs that only its registry has.

use bytes::Bytes;
use serde::Deserialize;

use super::blob::Sink;
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{Document, ManifestError, OCI_MANIFEST};
use super::pull::Lookup;
use super::sources::Sources;

/// A manifest that was accepted when the image came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its media type.
    pub media_type: String,
    /// Digests and sizes (bytes) of the blobs of its layers, bottom first.
    pub layers: Vec<(Digest, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
}

impl StoredManifest {
    /// Understands the bytes of a manifest.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let Document::Manifest(manifest) = Document::parse(bytes, "")? else {
            let text = "it is an index, not a manifest".to_owned();
            return Err(ManifestError::Inconsistent(text));
        };
        let kind: Kind = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
            what: "manifest",
            source,
        })?;
        let layers = manifest.layers.into_iter();
        Ok(Self {
            media_type: kind.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned()),
            layers: layers.map(|layer| (layer.digest, layer.size)).collect(),
        })
    }
}

impl Lookup {
    /// Fetches a blob and hands it to `take`, piece by piece, until that wants no more (`false`).
    /// It is what its digest says only when this has returned `true`.
    ///
    /// # Errors
    /// Any [`ImageError`] of a registry.
    pub async fn copy_blob(
        &self,
        digest: &Digest,
        size: u64,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<bool, ImageError> {
        let sources = Sources::new(&self.session);
        sources.blob(digest, size, &mut Taker(take)).await
    }
}

struct Taker<'t>(&'t mut dyn FnMut(&[u8]) -> bool);

impl Sink for Taker<'_> {
    async fn take(&mut self, piece: Bytes) -> bool {
        (self.0)(&piece)
    }
}
