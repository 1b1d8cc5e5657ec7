//! Layers on disk: `layers/<chain id>/fs` under the root directory, each with its list of entries
//! beside it (`seal`), and what is being made of them in `staging/`.
//!
//! ```text
//!   (nothing) ──stage──► staging/layer-N/fs ──`commit`: settle, seal, sync, rename─► layers/<hex>
//!                              │ dropped, or found at start          remove: rename    │
//!                              ▼                                                       ▼
//!                           deleted                      deleted ◄── staging/trash-N ◄─┘
//! ```
//! A directory under `layers/` is whole and on disk, at any moment, after any crash: that is what
//! its name means. Which layers are wanted is not known here.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::digest::{Algorithm, Digest};
use super::download::Download;
use super::seal::{self, Seal};
use super::settle::SettleError;
use super::unpack::{Contents, Unsettled};
use crate::fault::Fault;
use crate::sys::tree;

/// What went wrong with the layer store, and where.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file system refused something.
    #[error("{action} {}", path.display())]
    Storage {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A layer is committed before one that it lies on.
    #[error("layer {layer} lies on layer {parent}, which is not there")]
    ParentMissing {
        /// The layer to commit.
        layer: Digest,
        /// The first missing one below it.
        parent: Digest,
    },
    /// Hard links or directory attributes could not be taken over from the layers below.
    #[error("fitting layer {layer} onto the layers below")]
    Settle {
        /// The layer to commit.
        layer: Digest,
        /// The entry, and what was wrong.
        source: SettleError,
    },
    /// A point made the step fail (`crate::fault`).
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The layers under one root directory.
#[derive(Debug)]
pub(super) struct LayerStore {
    pub(super) layers: PathBuf,
    staging: PathBuf,
    /// What was taken out of `layers/` while containers stood on it (`check`).
    pub(super) retired: PathBuf,
    next: AtomicU64,
}

/// A directory that is deleted unless it is renamed away.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) path: PathBuf,
    pub(super) renamed: bool,
}

/// An unpacked layer, both its digests verified; nothing refers to it yet, and dropping it deletes
/// it.
#[derive(Debug)]
pub struct StagedLayer {
    /// For messages.
    pub(super) reference: String,
    pub(super) chain_id: Digest,
    /// The layers below it, bottom first.
    pub(super) parents: Vec<Digest>,
    pub(super) staging: Staging,
    pub(super) unsettled: Unsettled,
    pub(super) contents: Contents,
    pub(super) blob: Blob,
}

/// What a layer was made of.
#[derive(Debug)]
pub(super) enum Blob {
    /// It went by.
    Streamed,
    /// It was kept on its way.
    Download(Arc<Download>),
    /// It was here, in this directory.
    Kept(Digest, PathBuf),
}

impl StagedLayer {
    /// The name it will have.
    pub fn chain_id(&self) -> &Digest {
        &self.chain_id
    }
}

/// A layer that is whole and on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedLayer {
    /// Its name.
    pub chain_id: Digest,
    /// Bytes allocated on disk, its own directory and its list of entries included.
    pub size_bytes: u64,
    /// Inodes, those two included.
    pub inodes: u64,
    /// Its list of entries.
    pub seal: Seal,
}

impl LayerStore {
    /// Makes `layers/` and `staging/` under `root`, for root alone: they hold other people's
    /// set-uid programs.
    pub(super) fn open(root: &Path) -> Result<Self, LayerError> {
        let store = Self {
            layers: root.join("layers"),
            staging: root.join("staging"),
            retired: root.join("retired"),
            next: AtomicU64::new(0),
        };
        for path in [&store.layers, &store.staging, &store.retired] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(failed("making", path))?;
        }
        Ok(store)
    }

    /// The directory of a layer: its files, its list, its blob.
    pub(super) fn home(&self, chain_id: &Digest) -> PathBuf {
        self.layers.join(chain_id.hex())
    }

    pub(super) fn path(&self, chain_id: &Digest) -> PathBuf {
        self.home(chain_id).join("fs")
    }

    pub(super) fn has(&self, chain_id: &Digest) -> bool {
        self.path(chain_id).is_dir()
    }

    /// A new directory with an empty `fs` in it.
    pub(super) fn stage(&self) -> Result<Staging, LayerError> {
        let path = self.unused("layer");
        let builder = DirBuilder::new();
        builder.create(&path).map_err(failed("making", &path))?;
        let staging = Staging {
            path,
            renamed: false,
        };
        let fs = staging.fs();
        let made = DirBuilder::new().mode(0o755).create(&fs);
        made.map_err(failed("making", &fs))?;
        // The umask must not decide what containers see as `/`.
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::chmod(&fs, mode).map_err(|errno| failed("opening up", &fs)(errno.into()))?;
        Ok(staging)
    }

    /// What a layer in its place takes, and its list of entries; one that was put there by a
    /// version without lists gets its own now. Blocks on the disk.
    pub(super) fn measure(&self, chain_id: &Digest) -> Result<CommittedLayer, LayerError> {
        let list = self.home(chain_id).join(seal::NAME);
        let seal = match seal::digest_of(&list) {
            Ok(seal) => seal,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.seal(chain_id)?,
            Err(error) => return Err(failed("reading", &list)(error)),
        };
        self.measured(chain_id.clone(), seal)
    }

    /// Lists a layer's entries as they are now.
    pub(super) fn seal(&self, chain_id: &Digest) -> Result<Seal, LayerError> {
        let fs = self.path(chain_id);
        let new = self.unused("seal");
        let made = seal::write(&fs, &new, &Contents::default());
        let sealed = made.map_err(failed("listing", &fs)).and_then(|seal| {
            sync_file(&new)?;
            let list = self.home(chain_id).join(seal::NAME);
            fs::rename(&new, &list).map_err(failed("putting in place", &list))?;
            Ok(seal)
        });
        if sealed.is_err() {
            // What stays is cleared at the next start.
            let _ = fs::remove_file(&new);
        }
        sealed
    }

    pub(super) fn measured(
        &self,
        chain_id: Digest,
        seal: Seal,
    ) -> Result<CommittedLayer, LayerError> {
        let home = self.home(&chain_id);
        let usage = tree::usage(&home).map_err(failed("measuring", &home))?;
        Ok(CommittedLayer {
            chain_id,
            size_bytes: usage.bytes,
            inodes: usage.inodes,
            seal,
        })
    }

    /// Deletes a layer; one that is not there is no error. Blocks on the disk.
    pub(super) fn remove(&self, chain_id: &Digest) -> Result<(), LayerError> {
        let home = self.home(chain_id);
        let trash = self.unused("trash");
        match rename_new(&home, &trash) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("removing", &home)(errno.into())),
        }
        sync_directory(&self.layers)?;
        tree::remove_tree(&trash).map_err(failed("deleting", &trash))
    }

    /// Chain ids of all layers, in no order.
    pub(super) fn list(&self) -> Result<Vec<Digest>, LayerError> {
        let failed = |source| failed("listing", &self.layers)(source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.layers).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let digest = name
                .to_str()
                .and_then(|hex| format!("sha256:{hex}").parse().ok());
            found.extend(digest.filter(|digest| self.has(digest)));
        }
        Ok(found)
    }

    /// Deletes everything that was being made or deleted when the last process ended.
    pub(super) fn clear_staging(&self) -> Result<(), LayerError> {
        let failed = |source| failed("clearing", &self.staging)(source);
        for entry in fs::read_dir(&self.staging).map_err(failed)? {
            tree::remove_tree(&entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn unused(&self, kind: &str) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.staging
            .join(format!("{kind}-{}-{number}", std::process::id()))
    }
}

impl Staging {
    /// The layer's own root directory.
    pub(super) fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.renamed {
            return;
        }
        // Deleting a large tree takes a while, and this may run on a thread that must not wait.
        // What fails here is found by `clear_staging`.
        let path = std::mem::take(&mut self.path);
        let again = path.clone();
        let delete = move || drop(tree::remove_tree(&path));
        if std::thread::Builder::new()
            .name("staging".to_owned())
            .spawn(delete)
            .is_err()
        {
            drop(tree::remove_tree(&again));
        }
    }
}

pub(super) fn failed<'p>(
    action: &'static str,
    path: &'p Path,
) -> impl Fn(io::Error) -> LayerError + 'p {
    move |source| LayerError::Storage {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn rename_new(from: &Path, to: &Path) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

/// One `syncfs` costs less than an `fsync` for each of the thousands of files of a layer.
pub(super) fn sync_file_system(path: &Path) -> Result<(), LayerError> {
    let failed = |errno: Errno| failed("writing out", path)(errno.into());
    rustix::fs::syncfs(open_dir(path).map_err(failed)?).map_err(failed)
}

pub(super) fn sync_directory(path: &Path) -> Result<(), LayerError> {
    let failed = |errno: Errno| failed("writing out", path)(errno.into());
    rustix::fs::fsync(open_dir(path).map_err(failed)?).map_err(failed)
}

fn sync_file(path: &Path) -> Result<(), LayerError> {
    let synced = fs::File::open(path).and_then(|file| file.sync_all());
    synced.map_err(failed("writing out", path))
}

fn open_dir(path: &Path) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Chain ids are SHA-256 whatever algorithm the layers use, so their hex alone names a directory.
pub(super) const CHAIN_ALGORITHM: Algorithm = Algorithm::Sha256;
