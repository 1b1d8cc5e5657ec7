//! Writing down how far a pull has come, for those who watch: what has changed, about once a
//! second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Back, ReconcileError, blocking};
use crate::image::{LayerProgress, ResolvedImage};
use crate::state::pull_progress::{LayerAt, LayerStage};

/// Between two notes of one pull.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// The layers of one pull.
pub(super) struct Watch {
    key: String,
    layers: Vec<Watched>,
    looked: Instant,
}

struct Watched {
    progress: Arc<LayerProgress>,
    /// As the database has it.
    written: LayerAt,
    state: LayerStage,
    /// At the last look.
    received: u64,
}

impl Watch {
    /// Of the layers of an image, before any is fetched. Blocks on the disk.
    pub(super) fn new(key: &str, back: &Back, image: &ResolvedImage) -> Self {
        let watched = |(position, layer): (usize, &crate::image::LayerDescriptor)| Watched {
            progress: Arc::default(),
            written: LayerAt {
                position: signed(position as u64),
                digest: layer.digest.to_string(),
                size_bytes: signed(layer.size),
                received_bytes: 0,
                kept_bytes: signed(back.images.kept_bytes(layer).min(layer.size)),
                bytes_per_second: 0,
                state: LayerStage::Waiting,
            },
            state: LayerStage::Waiting,
            received: 0,
        };
        Self {
            key: key.to_owned(),
            layers: image.layers.iter().enumerate().map(watched).collect(),
            looked: Instant::now(),
        }
    }

    /// Where the pipeline of a layer tells how far it is.
    pub(super) fn progress(&self, layer: usize) -> Arc<LayerProgress> {
        Arc::clone(&self.layers[layer].progress)
    }

    /// A layer is unpacked, or was there from the beginning.
    pub(super) fn reached(&mut self, layer: usize, state: LayerStage) {
        let layer = &mut self.layers[layer];
        layer.state = state;
        if state == LayerStage::Present {
            let size = u64::try_from(layer.written.size_bytes).unwrap_or(0);
            layer.received = size;
        }
    }

    /// Bytes that have come over the network.
    pub(super) fn fetched_bytes(&self) -> u64 {
        let of = |layer: &Watched| {
            let progress = &layer.progress;
            progress.received().saturating_sub(progress.kept())
        };
        self.layers.iter().map(of).sum()
    }

    /// Writes the layers down for the first time.
    pub(super) async fn begin(&mut self, back: &Back) -> Result<(), ReconcileError> {
        let mut rows = Vec::with_capacity(self.layers.len());
        for layer in &mut self.layers {
            layer.written.state = layer.state;
            let kept = layer.written.kept_bytes;
            layer.written.received_bytes = signed(layer.received).max(kept);
            rows.push(layer.written.clone());
        }
        Ok(back.observed.pull_begins(self.key.clone(), rows).await?)
    }

    /// Writes down what has changed.
    pub(super) async fn note(&mut self, back: &Back) {
        measure_downloads(back).await;
        let rows = self.changed();
        if rows.is_empty() {
            return;
        }
        if let Err(error) = back.observed.pull_moves(self.key.clone(), rows).await {
            tracing::debug!(%error, "the progress of a pull is not noted");
        }
    }

    fn changed(&mut self) -> Vec<LayerAt> {
        let now = Instant::now();
        let passed = now.duration_since(self.looked).as_secs_f64().max(0.001);
        self.looked = now;
        let mut rows = Vec::new();
        for layer in &mut self.layers {
            let received = layer.progress.received().max(match layer.state {
                LayerStage::Present => layer.received,
                _ => 0,
            });
            let before = layer.received.max(layer.progress.kept());
            let speed = received.saturating_sub(before) as f64 / passed;
            if layer.state == LayerStage::Waiting && received > 0 {
                layer.state = LayerStage::Fetching;
            }
            layer.received = received;
            if layer.state == LayerStage::Waiting {
                continue;
            }
            let row = LayerAt {
                received_bytes: signed(received),
                kept_bytes: signed(layer.progress.kept()),
                bytes_per_second: speed as i64,
                state: layer.state,
                ..layer.written.clone()
            };
            if row != layer.written {
                layer.written = row.clone();
                rows.push(row);
            }
        }
        rows
    }
}

/// Takes note of what unfinished downloads take on the disk.
pub(super) async fn measure_downloads(back: &Back) {
    let too = back.clone();
    let measured = blocking(move || {
        let usage = too.images.downloads_usage()?;
        too.store.samples().put_downloads(usage.bytes, usage.inodes);
        Ok(())
    });
    if let Err(error) = measured.await {
        tracing::debug!(%error, "cannot measure unfinished downloads");
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
