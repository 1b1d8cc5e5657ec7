//! Hashes of the files that were written, taken while their bytes went by: whoever lists a layer's
//! entries need not read them again.
//!
//! By inode, so names do not matter; a file that was removed gives its inode back, and with it all
//! that is known here goes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

/// Files remembered; of others the content has to be read. This bounds memory at some ten megabytes
/// for each layer that is being unpacked.
const FILES_MAX: usize = 200_000;

/// What has been written, by inode number: XXH3 with 128 bits.
#[derive(Debug, Default)]
pub(crate) struct Contents(HashMap<u64, u128>);

impl Contents {
    /// The hash of a file's content, if it is known.
    pub(crate) fn of(&self, inode: u64) -> Option<u128> {
        self.0.get(&inode).copied()
    }

    /// A file was written from its first byte to its last.
    pub(super) fn written(&mut self, file: &OwnedFd, hasher: &Xxh3) -> Result<(), Errno> {
        if self.0.len() < FILES_MAX {
            let inode = rustix::fs::fstat(file)?.st_ino;
            self.0.insert(inode, hasher.digest128());
        }
        Ok(())
    }

    /// Something was removed, and its inode may come back as another file.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}
