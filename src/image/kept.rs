//! Compressed blobs that are kept beside the layers made of them (`[image] keep_blobs`).
//!
//! ```text
//!   layers/<chain id>/<algorithm>-<hex>/<offset in hex>     in pieces, as in downloads/
//! ```
//! A blob is in its layer's directory before that gets its name (`commit`), is counted with it,
//! goes with it, and is whole for the same reason. It is a copy of what its registry has: whoever
//! reads it holds it against its digest, and goes elsewhere if it is wrong.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::digest::{Digest, Hasher};
use super::download::{self, PIECE_BYTES};
use super::error::ImageError;
use super::layers::{LayerError, LayerStore, failed};
use super::manifest::{Document, ManifestError};
use super::pull::{ImageDriver, Parts, ResolvedImage, Source};
use super::reference::Reference;

/// Read at once.
const READ_BYTES: usize = 128 << 10;

impl ImageDriver {
    /// An image that is here, made of its manifest and configuration as they were accepted. Its
    /// layers can be fetched where their blobs are kept.
    ///
    /// # Errors
    /// When these are no manifest and configuration that belong together.
    pub fn kept_image(
        &self,
        reference: &Reference,
        manifest: Vec<u8>,
        config: Vec<u8>,
    ) -> Result<ResolvedImage, ImageError> {
        let unsupported = |source| ImageError::Unsupported {
            reference: reference.to_string(),
            source,
        };
        let Document::Manifest(parsed) = Document::parse(&manifest, "").map_err(unsupported)?
        else {
            let text = "it is an index, not a manifest".to_owned();
            return Err(unsupported(ManifestError::Inconsistent(text)));
        };
        if !parsed.config.digest.matches(&config) {
            let text = "its configuration is another one".to_owned();
            return Err(unsupported(ManifestError::Inconsistent(text)));
        }
        let digest = Digest::sha256(&manifest);
        let parts = Parts {
            manifest: parsed,
            manifest_digest: digest.clone(),
            bytes: manifest,
        };
        parts.join(reference.clone(), digest, config, Source::Kept)
    }

    /// Whether something is kept of the blob that layer `index` of an image is made of.
    #[must_use]
    pub fn has_blob(&self, image: &ResolvedImage, index: usize) -> bool {
        let layer = &image.layers[index];
        self.store.blob(&layer.chain_id, &layer.digest).is_dir()
    }

    /// Hands the kept blob of a layer to `take`, piece by piece, until that wants no more
    /// (`false`); `None` when it is not kept, or is not what its digest says, and nothing was
    /// handed out. Blocks on the disk.
    ///
    /// # Errors
    /// When it changes or goes while it is being read.
    pub fn copy_kept_blob(
        &self,
        image: &ResolvedImage,
        index: usize,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<bool>, LayerError> {
        let layer = &image.layers[index];
        let path = self.store.blob(&layer.chain_id, &layer.digest);
        match read(&path, &layer.digest, &mut |_| true) {
            Ok(Some(found)) if found.digest == layer.digest && found.bytes == layer.size => {}
            Ok(_) => return Ok(None),
            Err(error) => {
                tracing::warn!(blob = %layer.digest, %error, "a kept blob cannot be read");
                return Ok(None);
            }
        }
        let copied = read(&path, &layer.digest, take).map_err(failed("reading", &path))?;
        match copied {
            None => Ok(Some(false)),
            Some(found) if found.digest == layer.digest => Ok(Some(true)),
            Some(_) => {
                let changed = io::Error::other("it has changed meanwhile");
                Err(failed("reading", &path)(changed))
            }
        }
    }
}

impl LayerStore {
    /// Where the blob of a layer is, if it is kept.
    pub(super) fn blob(&self, chain_id: &Digest, blob: &Digest) -> PathBuf {
        let home = self.home(chain_id);
        home.join(download::directory_name(blob))
    }

    /// The blobs that are kept of a layer: as a rule one or none.
    pub(super) fn blobs(&self, chain_id: &Digest) -> io::Result<Vec<(Digest, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.home(chain_id))? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(download::digest_in);
            found.extend(digest.map(|digest| (digest, entry.path())));
        }
        Ok(found)
    }
}

/// What a blob was found to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
}

/// Reads a blob in its pieces and hands them to `take` until that wants no more: then `None`.
/// Blocks on the disk.
pub(super) fn read(
    path: &Path,
    digest: &Digest,
    take: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<Option<Found>> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        let mut file = match File::open(path.join(download::piece_name(bytes))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let begin = bytes;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let part = buffer.get(..read).unwrap_or_default();
            hasher.update(part);
            bytes += read as u64;
            if !take(part) {
                return Ok(None);
            }
        }
        // Only the last piece is shorter.
        if bytes - begin != PIECE_BYTES {
            break;
        }
    }
    let digest = hasher.finish();
    Ok(Some(Found { digest, bytes }))
}

/// Gives the blob at `from` a second home at `to`, with the same files.
pub(super) fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for piece in fs::read_dir(from)? {
        let piece = piece?;
        fs::hard_link(piece.path(), to.join(piece.file_name()))?;
    }
    Ok(())
}
