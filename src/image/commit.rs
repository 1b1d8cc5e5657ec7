//! From unpacked layers to layers that count.
//!
//! ```text
//!   staged ──prepare: settle, list──► prepared ┐
//!   staged ──prepare────────────────► prepared ┼─ place: written out together, then one after
//!   …  each on those below                     ┘  the other renamed, or exchanged ─► layers/<hex>
//! ```
//! Preparing a layer needs those below it prepared, and can be done while those above still come.
//! Writing out is for the whole file system and costs about the same for one layer as for all.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::digest::Digest;
use super::download::directory_name;
use super::error::ImageError;
use super::layers::{
    Blob, CommittedLayer, LayerError, LayerStore, StagedLayer, Staging, failed, rename_new,
    sync_directory, sync_file_system,
};
use super::pull::ImageDriver;
use super::seal::{self, Seal};
use super::settle::settle;
use super::{check, kept};
use crate::fault;

/// A layer that is complete, fits onto the ones below it, and has its list of entries; nothing
/// refers to it yet, and dropping it deletes it.
#[derive(Debug)]
pub struct PreparedLayer {
    /// For messages.
    reference: String,
    chain_id: Digest,
    made: Made,
    blob: Blob,
}

#[derive(Debug)]
enum Made {
    /// It waits in staging for its place, or for that of the one that is there.
    New {
        staging: Staging,
        seal: Seal,
        replaces: bool,
    },
    /// Another pull was faster: theirs has the same content.
    Present,
}

/// Where a layer is before it is in its place, for those that lie on it.
#[derive(Debug, Clone)]
pub struct Below {
    chain_id: Digest,
    fs: PathBuf,
}

impl PreparedLayer {
    /// Where it is now; `None` is in its place.
    #[must_use]
    pub fn below(&self) -> Option<Below> {
        let Made::New { staging, .. } = &self.made else {
            return None;
        };
        let chain_id = self.chain_id.clone();
        let fs = staging.fs();
        Some(Below { chain_id, fs })
    }
}

impl PreparedLayer {
    /// Keeps what the layer was made of in its directory, or deletes it.
    fn bring_blob(&self, keeps: bool) -> Result<(), LayerError> {
        match (&self.blob, &self.made) {
            (Blob::Download(download), Made::New { staging, .. }) if keeps => {
                let place = staging.path.join(directory_name(download.digest()));
                match download.move_to(&place) {
                    // Of an empty blob there is nothing.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed("keeping", &place)(errno.into())),
                }
                Ok(fault::blocking_point("image.blob_kept")?)
            }
            // It is not known yet whether the layer that is there has one.
            (Blob::Download(_), Made::Present) if keeps => Ok(()),
            (Blob::Download(download), _) => download.discard(),
            (Blob::Kept(digest, from), Made::New { staging, .. }) => {
                let place = staging.path.join(directory_name(digest));
                kept::link(from, &place).map_err(failed("keeping", &place))?;
                Ok(fault::blocking_point("image.blob_kept")?)
            }
            (Blob::Kept(..), Made::Present) | (Blob::Streamed, _) => Ok(()),
        }
    }
}

impl ImageDriver {
    /// Completes a staged layer. The layers below it are in their places, or else among `below`.
    /// `replaces` says that it is for the place of one that is there. Blocks on the disk.
    ///
    /// # Errors
    /// `Store`: the file system's, a missing layer below, or one that does not fit.
    pub fn prepare_layer(
        &self,
        staged: StagedLayer,
        below: &[Below],
        replaces: bool,
    ) -> Result<PreparedLayer, ImageError> {
        let (reference, layer) = (staged.reference.clone(), staged.chain_id.clone());
        let prepared = self.store.prepare(staged, below, replaces);
        prepared.map_err(store_error(&reference, &layer))
    }

    /// Makes prepared layers count, bottom first; those below them must. A layer that is there
    /// already, perhaps from another image, is left as it is, unless it is to be replaced. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// `Store`: the file system's. Then some of the layers may be in their places.
    pub fn place_layers(
        &self,
        layers: Vec<PreparedLayer>,
    ) -> Result<Vec<CommittedLayer>, ImageError> {
        let Some(last) = layers.last() else {
            return Ok(Vec::new());
        };
        let failed = store_error(&last.reference, &last.chain_id);
        let keeps = self.config.keep_blobs;
        self.store.place(layers, keeps).map_err(failed)
    }
}

fn store_error(reference: &str, layer: &Digest) -> impl FnOnce(LayerError) -> ImageError + use<> {
    let (reference, layer) = (reference.to_owned(), layer.clone());
    move |error| ImageError::Store {
        reference,
        layer,
        source: Box::new(error),
    }
}

impl LayerStore {
    fn prepare(
        &self,
        staged: StagedLayer,
        below: &[Below],
        replaces: bool,
    ) -> Result<PreparedLayer, LayerError> {
        let StagedLayer {
            reference,
            chain_id,
            parents,
            staging,
            unsettled,
            contents,
            blob,
        } = staged;
        let made = if self.has(&chain_id) && !replaces {
            Made::Present
        } else {
            let mut directories = Vec::with_capacity(parents.len());
            for parent in parents.iter().rev() {
                directories.push(self.directory(parent, below).ok_or_else(|| {
                    let (layer, parent) = (chain_id.clone(), parent.clone());
                    LayerError::ParentMissing { layer, parent }
                })?);
            }
            settle(&staging.fs(), &unsettled, &directories).map_err(|source| {
                let layer = chain_id.clone();
                LayerError::Settle { layer, source }
            })?;
            fault::blocking_point("image.layer_settled")?;
            let list = staging.path.join(seal::NAME);
            let seal = seal::write(&staging.fs(), &list, &contents);
            let seal = seal.map_err(failed("listing", &list))?;
            fault::blocking_point("image.layer_sealed")?;
            Made::New {
                staging,
                seal,
                replaces,
            }
        };
        Ok(PreparedLayer {
            reference,
            chain_id,
            made,
            blob,
        })
    }

    fn directory(&self, chain_id: &Digest, below: &[Below]) -> Option<PathBuf> {
        let prepared = below.iter().find(|layer| layer.chain_id == *chain_id);
        let prepared = prepared.map(|layer| layer.fs.clone());
        prepared.or_else(|| self.has(chain_id).then(|| self.path(chain_id)))
    }

    fn place(
        &self,
        layers: Vec<PreparedLayer>,
        keeps: bool,
    ) -> Result<Vec<CommittedLayer>, LayerError> {
        let replaces =
            |layer: &PreparedLayer| matches!(layer.made, Made::New { replaces: true, .. });
        let replaces = layers.iter().any(replaces);
        // Before everything is written out, or what is deleted would be, too.
        for layer in &layers {
            layer.bring_blob(keeps)?;
        }
        fault::blocking_point("image.download_removed")?;
        sync_file_system(&self.layers)?;
        fault::blocking_point("image.layer_synced")?;
        let mut placed = Vec::with_capacity(layers.len());
        for layer in layers {
            placed.push(self.put(layer)?);
            fault::blocking_point("image.layer_in_place")?;
        }
        sync_directory(&self.layers)?;
        if replaces {
            sync_directory(&self.retired)?;
        }
        let measured = placed.into_iter().map(|(chain_id, seal)| match seal {
            Some(seal) => self.measured(chain_id, seal),
            None => self.measure(&chain_id),
        });
        measured.collect()
    }

    /// Gives one layer its name, which is not on the disk yet.
    fn put(&self, layer: PreparedLayer) -> Result<(Digest, Option<Seal>), LayerError> {
        let PreparedLayer {
            reference: _,
            chain_id,
            made,
            blob,
        } = layer;
        let Made::New {
            mut staging,
            seal,
            replaces,
        } = made
        else {
            self.adopt(&chain_id, &blob)?;
            return Ok((chain_id, None));
        };
        if replaces {
            self.exchange(&mut staging, &chain_id)?;
            return Ok((chain_id, Some(seal)));
        }
        let home = self.home(&chain_id);
        match rename_new(&staging.path, &home) {
            Ok(()) => staging.renamed = true,
            // Another pull of the same layer was faster.
            Err(Errno::EXIST | Errno::NOTEMPTY) => return Ok((chain_id, None)),
            Err(errno) => return Err(failed("putting in place", &home)(errno.into())),
        }
        Ok((chain_id, Some(seal)))
    }

    /// Another pull of the same layer was faster. Its blob, if it is kept, is for the layer that is
    /// there, should that have none.
    fn adopt(&self, chain_id: &Digest, blob: &Blob) -> Result<(), LayerError> {
        // One that was not to be kept has gone already, and one of which there are two goes now.
        let Blob::Download(download) = blob else {
            return Ok(());
        };
        let place = self.blob(chain_id, download.digest());
        match download.move_to(&place) {
            Ok(()) => sync_directory(&self.home(chain_id)),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOENT) => download.discard(),
            Err(errno) => Err(failed("keeping", &place)(errno.into())),
        }
    }

    /// Puts a layer in the place of a broken one, in one step. It lies beside that first, under a
    /// name that says what it is, so that a crash leaves the one or the other there.
    fn exchange(&self, staging: &mut Staging, chain_id: &Digest) -> Result<(), LayerError> {
        let home = self.home(chain_id);
        let retired = self.retired.join(check::retired_name(chain_id));
        rename_new(&staging.path, &retired)
            .map_err(|errno| failed("putting aside", &retired)(errno.into()))?;
        staging.renamed = true;
        fault::blocking_point("image.layer_beside")?;
        match exchange(&retired, &home) {
            Ok(()) => {}
            Err(Errno::NOENT) => rename_new(&retired, &home)
                .map_err(|errno| failed("putting in place", &home)(errno.into()))?,
            Err(errno) => return Err(failed("putting in place", &home)(errno.into())),
        }
        fault::blocking_point("image.layer_exchanged")?;
        Ok(())
    }
}

fn exchange(one: &Path, other: &Path) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
}
