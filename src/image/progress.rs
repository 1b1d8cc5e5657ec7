//! How far a layer has come, for whoever watches: the pipeline writes, anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one layer's blob. Costs the pipeline an atomic store per piece.
#[derive(Debug, Default)]
pub struct LayerProgress {
    received: AtomicU64,
    kept: AtomicU64,
}

impl LayerProgress {
    /// Bytes of the blob that are here.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Of these, bytes that an earlier try had left here.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    pub(super) fn arrived(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn has(&self, bytes: u64) {
        self.received.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn begins_with(&self, kept: u64) {
        self.kept.store(kept, Ordering::Relaxed);
        self.has(kept);
    }
}
