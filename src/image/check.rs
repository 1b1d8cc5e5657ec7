//! Layers against their lists of entries, and whole ones in the place of broken ones.
//!
//! ```text
//!   staging/layer-N ──► retired/<hex>-<ns> ◄──exchanged, in one step──► layers/<hex>
//! ```
//! A container that runs goes on with the directories it was started on: the kernel holds them
//! open, under whatever name. So what was taken out stays in `retired/` for as long as the caller
//! says that somebody may stand on it. Its name says all there is to know: which layer it was, and
//! when it was taken out.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::digest::Digest;
use super::kept;
use super::layers::{CommittedLayer, LayerError, LayerStore, failed};
use super::pull::ImageDriver;
use super::seal::{self, Compared, Depth, Seal};
use super::unpack::Contents;
use crate::sys::tree;

/// What a look at a layer has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCheck {
    /// How it compares with its list.
    pub compared: Compared,
    /// The list that it was given, because it had none.
    pub sealed: Option<Seal>,
}

/// A broken layer that was taken out of its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiredLayer {
    /// Which one it was.
    pub chain_id: Digest,
    /// When it was taken out, ns since 1970.
    pub at_ns: i64,
    path: PathBuf,
}

impl ImageDriver {
    /// Compares a layer with its list of entries, whose digest is `seal`; without one the layer is
    /// believed and listed as it is. Reads the whole layer and blocks, so it belongs on a thread
    /// that may.
    ///
    /// # Errors
    /// When a list cannot be written. What cannot be read of the layer is a difference.
    pub fn check_layer(
        &self,
        chain_id: &Digest,
        seal: Option<&Digest>,
        depth: Depth,
    ) -> Result<LayerCheck, LayerError> {
        self.store.check(chain_id, seal, depth)
    }

    /// A layer that is in its place, as [`ImageDriver::place_layers`] gives it. Blocks on the disk.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn measure_layer(&self, chain_id: &Digest) -> Result<CommittedLayer, LayerError> {
        self.store.measure(chain_id)
    }

    /// Layers that were taken out of their places and still lie on the disk.
    ///
    /// # Errors
    /// readdir(3)'s.
    pub fn retired_layers(&self) -> Result<Vec<RetiredLayer>, LayerError> {
        self.store.list_retired()
    }

    /// Deletes one of them. Blocks on the disk.
    ///
    /// # Errors
    /// unlink(2)'s.
    pub fn remove_retired(&self, layer: &RetiredLayer) -> Result<(), LayerError> {
        tree::remove_tree(&layer.path).map_err(failed("deleting", &layer.path))
    }
}

impl LayerStore {
    fn check(
        &self,
        chain_id: &Digest,
        seal: Option<&Digest>,
        depth: Depth,
    ) -> Result<LayerCheck, LayerError> {
        let mut compared = Compared::default();
        if !self.has(chain_id) {
            compared.differs("the layer is gone from the disk".to_owned());
            return Ok(LayerCheck::of(compared));
        }
        let Some(expected) = seal else {
            let seal = self.seal(chain_id)?;
            compared.entries = seal.entries;
            let sealed = Some(seal);
            return Ok(LayerCheck { compared, sealed });
        };
        let list = self.home(chain_id).join(seal::NAME);
        let fs = self.path(chain_id);
        let is_sound = seal::digest_of(&list).is_ok_and(|found| found.digest == *expected);
        let seen = match is_sound {
            true => seal::compare(&fs, &list, depth),
            false => self.without_list(chain_id, expected),
        };
        let mut compared = seen.unwrap_or_else(|error| {
            compared.differs(format!("the layer cannot be read: {error}"));
            compared
        });
        if depth == Depth::Whole
            && let Err(error) = self.check_blobs(chain_id, &mut compared)
        {
            compared.differs(format!("its kept blob cannot be read: {error}"));
        }
        Ok(LayerCheck::of(compared))
    }

    fn check_blobs(&self, chain_id: &Digest, compared: &mut Compared) -> io::Result<()> {
        for (digest, path) in self.blobs(chain_id)? {
            let Some(found) = kept::read(&path, &digest, &mut |_| true)? else {
                continue;
            };
            compared.bytes_read += found.bytes;
            if found.digest != digest {
                let text = format!("its kept blob {digest} has digest {}", found.digest);
                compared.differs(text);
            }
        }
        Ok(())
    }

    /// The list is broken or gone. If listing the layer gives the same digest, nothing else is.
    fn without_list(&self, chain_id: &Digest, expected: &Digest) -> io::Result<Compared> {
        let mut compared = Compared::default();
        let new = self.unused("seal");
        let seal = seal::write(&self.path(chain_id), &new, &Contents::default());
        let removed = fs::remove_file(&new);
        let seal = seal?;
        removed?;
        compared.entries = seal.entries;
        if seal.digest == *expected {
            self.seal(chain_id).map_err(io::Error::other)?;
        } else {
            let text = "its list of entries is gone or broken, and something else has changed too";
            compared.differs(text.to_owned());
        }
        Ok(compared)
    }

    fn list_retired(&self) -> Result<Vec<RetiredLayer>, LayerError> {
        let failed = |source| failed("listing", &self.retired)(source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.retired).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let parsed = name.to_str().and_then(|name| {
                let (hex, at) = name.split_once('-')?;
                let chain_id = format!("sha256:{hex}").parse().ok()?;
                Some((chain_id, at.parse().ok()?))
            });
            found.extend(parsed.map(|(chain_id, at_ns)| RetiredLayer {
                chain_id,
                at_ns,
                path: entry.path(),
            }));
        }
        Ok(found)
    }
}

impl LayerCheck {
    fn of(compared: Compared) -> Self {
        Self {
            compared,
            sealed: None,
        }
    }
}

/// The name in `retired/` of what is taken out now.
pub(super) fn retired_name(chain_id: &Digest) -> String {
    format!("{}-{}", chain_id.hex(), now_ns())
}

fn now_ns() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos())
}
