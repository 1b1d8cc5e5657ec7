//! One layer: from a blob to an unpacked directory in staging.
//!
//! ```text
//!   small, or an archive's: source ─► digest ─► bounded channel ─┐
//!                                                                ├─► decompress, digest ─► files
//!   large, a registry's:    connections ─► download ─► digest ───┘
//! ```
//! One pipeline either way: nothing waits for the whole blob. Nothing counts before both digests
//! are right. A large blob stays on disk, compressed, until its layer is committed, and for a while
//! when that does not come to be: whoever tries again goes on from there.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::channel::{ChannelReader, Feed};
use super::download::{Download, Follower};
use super::error::ImageError;
use super::layers::{LayerError, StagedLayer, Staging};
use super::manifest::LayerDescriptor;
use super::progress::LayerProgress;
use super::pull::{ImageDriver, ResolvedImage, Source};
use super::session::Session;
use super::unpack::{Unpacked, unpack};

/// Pieces of a blob between network and unpacker: with pieces of up to some hundred kilobytes this
/// keeps both busy without holding much.
const PIECES_MAX: usize = 16;

type Unpacking = (Staging, Unpacked);

impl ImageDriver {
    /// Downloads, verifies and unpacks layer `index` of an image into staging.
    ///
    /// `progress` is kept up to date meanwhile. Dropping the future abandons the layer and deletes
    /// what was unpacked.
    ///
    /// # Errors
    /// Any [`ImageError`] of a registry or archive, `DigestMismatch`, `Unpack`, `Store`.
    ///
    /// # Panics
    /// If the image has no layer `index`.
    pub async fn fetch_layer(
        &self,
        image: &ResolvedImage,
        index: usize,
        progress: &Arc<LayerProgress>,
    ) -> Result<StagedLayer, ImageError> {
        let layer = &image.layers[index];
        let reference = image.reference.to_string();
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(ImageError::ShuttingDown(reference));
        };
        let download = self.download_of(image, layer).await?;
        let (staging, unpacked) = match (&image.source, &download) {
            (Source::Registry(session), Some(download)) => {
                self.by_download(image, layer, session, download, progress)
                    .await?
            }
            _ => {
                let streamed = self.by_channel(image, layer, progress).await?;
                self.check_diff_id(image, layer, streamed)?
            }
        };
        Ok(StagedLayer {
            reference,
            chain_id: layer.chain_id.clone(),
            parents: image.layers[..index]
                .iter()
                .map(|each| each.chain_id.clone())
                .collect(),
            staging,
            unsettled: unpacked.unsettled,
            download,
        })
    }

    /// Where a blob is kept while it comes, if it is worth it and nobody else is fetching it.
    async fn download_of(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
    ) -> Result<Option<Arc<Download>>, ImageError> {
        if matches!(image.source, Source::Archive(_)) || layer.size < self.config.keep_from_bytes {
            return Ok(None);
        }
        let downloads = Arc::clone(&self.downloads);
        let (digest, size) = (layer.digest.clone(), layer.size);
        let taken = tokio::task::spawn_blocking(move || downloads.take(&digest, size)).await;
        let taken = taken.map_err(|_| ImageError::ShuttingDown(image.reference.to_string()))?;
        taken.map_err(|error| stored(image, layer, error))
    }

    /// Streams the blob through a channel.
    async fn by_channel(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        progress: &LayerProgress,
    ) -> Result<Unpacking, ImageError> {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let taken = Arc::new(AtomicU64::new(0));
        let source = ChannelReader::new(receiver, Arc::clone(&taken));
        let (give_up, given_up) = oneshot::channel();
        let unpacking = self.spawn_unpack(image, layer, source, taken, give_up);
        let fed = {
            let mut feed = Feed::new(sender, progress);
            tokio::select! {
                biased;
                fed = feed_from(image, layer, &mut feed) => fed,
                // The layer is bad: do not wait for a slow server to send the rest.
                Ok(()) = given_up => Ok(()),
            }
        };
        let unpacked = joined(image, unpacking).await;
        // A source that failed shows as a cancelled unpacking: its own error says more.
        fed?;
        unpacked
    }

    /// Follows the blob on the disk. What an earlier process has kept may have been spoilt by a
    /// power failure: then it is fetched again from nothing, once.
    async fn by_download(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        session: &Session,
        download: &Arc<Download>,
        progress: &Arc<LayerProgress>,
    ) -> Result<Unpacking, ImageError> {
        loop {
            let kept = download.received();
            progress.begins_with(kept);
            match self.follow(image, layer, session, download, progress).await {
                Ok(done) => return Ok(done),
                // More may come of it at the next try.
                Err(Failed::Source(error)) => return Err(error),
                Err(Failed::Content(error)) => {
                    let again = Arc::clone(download);
                    let forgotten = tokio::task::spawn_blocking(move || again.reopen()).await;
                    match forgotten {
                        Ok(Ok(())) if kept > 0 => {
                            let (reference, blob) = (&image.reference, &layer.digest);
                            tracing::warn!(%reference, %blob, %error, "fetching it anew");
                        }
                        Ok(Err(error)) => return Err(stored(image, layer, error)),
                        _ => return Err(error),
                    }
                }
            }
        }
    }

    async fn follow(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        session: &Session,
        download: &Arc<Download>,
        progress: &Arc<LayerProgress>,
    ) -> Result<Unpacking, Failed> {
        let taken = Arc::new(AtomicU64::new(0));
        let source = Follower::new(Arc::clone(download), Arc::clone(&taken));
        let (give_up, given_up) = oneshot::channel();
        let unpacking = self.spawn_unpack(image, layer, source, taken, give_up);
        let fetched = {
            let _no_more = Closing(download);
            tokio::select! {
                biased;
                fetched = session.download(download, progress) => fetched,
                Ok(()) = given_up => Ok(()),
            }
        };
        let unpacked = joined(image, unpacking).await;
        fetched.map_err(Failed::Source)?;
        // The decompressor may have stumbled over what the digest explains.
        if unpacked.is_err() && download.missing().is_empty() {
            let whole = Arc::clone(download);
            let verified = tokio::task::spawn_blocking(move || whole.verify()).await;
            if let Ok(Err(error)) = verified {
                tracing::debug!(%error, "a blob that could not be unpacked cannot be read again");
            }
        }
        if let Some(actual) = download.wrong() {
            return Err(Failed::Content(ImageError::DigestMismatch {
                reference: image.reference.to_string(),
                host: image.reference.host().to_owned(),
                what: format!("layer {}", layer.digest),
                expected: layer.digest.clone(),
                actual,
            }));
        }
        let unpacked = unpacked.map_err(|error| match error {
            // No directory could be made: that says nothing about the blob.
            ImageError::Store { .. } | ImageError::ShuttingDown(_) => Failed::Source(error),
            error => Failed::Content(error),
        })?;
        self.check_diff_id(image, layer, unpacked)
            .map_err(Failed::Content)
    }

    fn check_diff_id(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        (staging, unpacked): Unpacking,
    ) -> Result<Unpacking, ImageError> {
        if unpacked.diff_id == layer.diff_id {
            return Ok((staging, unpacked));
        }
        Err(ImageError::DigestMismatch {
            reference: image.reference.to_string(),
            host: image.reference.host().to_owned(),
            what: format!("content of layer {}", layer.digest),
            expected: layer.diff_id.clone(),
            actual: unpacked.diff_id,
        })
    }

    fn spawn_unpack(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        source: impl BufRead + Send + 'static,
        taken: Arc<AtomicU64>,
        give_up: oneshot::Sender<()>,
    ) -> JoinHandle<Result<Unpacking, ImageError>> {
        let (store, limits) = (Arc::clone(&self.store), self.config.limits.clone());
        let (reference, layer) = (image.reference.to_string(), layer.clone());
        tokio::task::spawn_blocking(move || {
            let staging = store.stage().map_err(|error| ImageError::Store {
                reference: reference.clone(),
                layer: layer.chain_id.clone(),
                source: Box::new(error),
            })?;
            let algorithm = layer.diff_id.algorithm();
            let given_up = || {
                // Nobody may be listening any more, and that is as good.
                let _ = give_up.send(());
            };
            let unpacked = unpack(source, &taken, &staging.fs(), algorithm, &limits, given_up);
            match unpacked {
                Ok(unpacked) => Ok((staging, unpacked)),
                Err(error) => {
                    let (layer, source) = (layer.digest, Box::new(error));
                    Err(ImageError::Unpack {
                        reference,
                        layer,
                        source,
                    })
                }
            }
        })
    }
}

/// Why a blob that was kept on disk became no layer.
enum Failed {
    /// It did not come.
    Source(ImageError),
    /// It is not what it should be, or could not be unpacked.
    Content(ImageError),
}

/// Wakes the follower when no more will come, however the fetching ended.
struct Closing<'d>(&'d Download);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Sends the blob through `feed`, and marks its end once its digest is right.
async fn feed_from(
    image: &ResolvedImage,
    layer: &LayerDescriptor,
    feed: &mut Feed<'_>,
) -> Result<(), ImageError> {
    let whole = match &image.source {
        Source::Registry(session) => session.blob(&layer.digest, layer.size, feed).await?,
        Source::Archive(archive) => archive.blob(&image.reference, layer, feed).await?,
    };
    if whole {
        feed.end().await;
    }
    Ok(())
}

async fn joined(
    image: &ResolvedImage,
    unpacking: JoinHandle<Result<Unpacking, ImageError>>,
) -> Result<Unpacking, ImageError> {
    let joined = unpacking.await;
    joined.map_err(|_| ImageError::ShuttingDown(image.reference.to_string()))?
}

fn stored(image: &ResolvedImage, layer: &LayerDescriptor, error: LayerError) -> ImageError {
    ImageError::Store {
        reference: image.reference.to_string(),
        layer: layer.chain_id.clone(),
        source: Box::new(error),
    }
}
