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

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::archive::Archive;
use super::blob::Sink;
use super::channel::{ChannelReader, Feed};
use super::download::{Download, Downloads, Follower};
use super::error::ImageError;
use super::layers::{Blob, LayerError, StagedLayer, Staging};
use super::manifest::LayerDescriptor;
use super::progress::LayerProgress;
use super::pull::{ImageDriver, ResolvedImage, Source};
use super::sources::Sources;
use super::unpack::{UnpackError, Unpacked, unpack};

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
        let ((staging, unpacked), blob) = match &image.source {
            Source::Registry(session) => {
                let download = self.download_of(image, layer).await?;
                let sources = Sources::new(session);
                let fetched = self
                    .by_registry(image, layer, sources, download.as_ref(), progress)
                    .await?;
                (fetched, download.map_or(Blob::Streamed, Blob::Download))
            }
            Source::Archive(archive) => self.by_archive(image, layer, archive, progress).await?,
            Source::Kept => self.by_kept(image, layer, progress).await?,
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
            contents: unpacked.contents,
            blob,
        })
    }

    /// Where a blob is kept while it comes, if it is worth it and nobody else is fetching it; or if
    /// blobs are kept for good.
    async fn download_of(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
    ) -> Result<Option<Arc<Download>>, ImageError> {
        let keeps = self.config.keep_blobs;
        if layer.size < self.config.keep_from_bytes && !keeps {
            return Ok(None);
        }
        let (downloads, store) = (Arc::clone(&self.downloads), Arc::clone(&self.store));
        let (digest, size) = (layer.digest.clone(), layer.size);
        let take = move || match downloads.take(&digest, size)? {
            None if keeps => Downloads::aside(store.unused("blob"), &digest, size).map(Some),
            taken => Ok(taken),
        };
        let taken = tokio::task::spawn_blocking(take).await;
        let taken = taken.map_err(|_| ImageError::ShuttingDown(image.reference.to_string()))?;
        taken.map_err(|error| stored(image, layer, error))
    }

    /// Brings a blob from whoever serves what its digest says. What an earlier process has kept of
    /// it may have been spoilt by a power failure, which counts as one more who had a part in it.
    async fn by_registry(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        mut sources: Sources<'_>,
        download: Option<&Arc<Download>>,
        progress: &Arc<LayerProgress>,
    ) -> Result<Unpacking, ImageError> {
        let mut first = None;
        loop {
            let kept = download.map_or(0, |download| download.received());
            progress.begins_with(kept);
            let fetched = match download {
                Some(download) => {
                    let coming = sources.download(download, progress);
                    self.follow(image, layer, download, coming).await
                }
                None => {
                    let stream = Stream::Registry(&sources);
                    self.by_channel(image, layer, stream, progress).await
                }
            };
            let (goes_on, error) = match fetched {
                Ok(done) => return Ok(done),
                // More may come of what is here at the next try.
                Err(Failed::Source(error)) if !sources.failed() => {
                    return Err(first.unwrap_or(error));
                }
                Err(Failed::Source(error)) => (true, error),
                Err(Failed::Content(error)) => (sources.wrong(kept > 0, &error), error),
                Err(Failed::Image(error)) => (false, error),
                // It says nothing about what is here.
                Err(Failed::Node(error)) => return Err(error),
            };
            if let Some(download) = download {
                let again = Arc::clone(download);
                let forgotten = tokio::task::spawn_blocking(move || again.reopen()).await;
                if let Ok(Err(error)) = forgotten {
                    return Err(stored(image, layer, error));
                }
            }
            if !goes_on {
                return Err(error);
            }
            let (reference, blob) = (&image.reference, &layer.digest);
            tracing::debug!(%reference, %blob, %error, "fetching it anew");
            first.get_or_insert(error);
        }
    }

    async fn by_archive(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        archive: &Archive,
        progress: &Arc<LayerProgress>,
    ) -> Result<(Unpacking, Blob), ImageError> {
        if !self.config.keep_blobs {
            let stream = Stream::Archive(archive);
            let fetched = self.by_channel(image, layer, stream, progress).await;
            return Ok((fetched.map_err(Failed::into_error)?, Blob::Streamed));
        }
        let directory = self.store.unused("blob");
        let download = Downloads::aside(directory, &layer.digest, layer.size)
            .map_err(|error| stored(image, layer, error))?;
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let writer = download.writer(0);
        let progress = Arc::clone(progress);
        let writing = tokio::task::spawn_blocking(move || writer.run(receiver, &progress));
        let coming = async {
            let mut pieces = Pieces(sender);
            let sent = archive.blob(&image.reference, layer, &mut pieces).await;
            drop(pieces);
            match writing.await {
                Ok(Ok(())) => sent.map(drop),
                Ok(Err(error)) => Err(stored(image, layer, error)),
                Err(_) => Err(ImageError::ShuttingDown(image.reference.to_string())),
            }
        };
        let fetched = self.follow(image, layer, &download, coming).await;
        let fetched = fetched.map_err(Failed::into_error)?;
        Ok((fetched, Blob::Download(download)))
    }

    /// Makes a layer of its kept blob.
    async fn by_kept(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        progress: &Arc<LayerProgress>,
    ) -> Result<(Unpacking, Blob), ImageError> {
        let directory = self.store.blob(&layer.chain_id, &layer.digest);
        let download = Downloads::stored(directory.clone(), &layer.digest, layer.size)
            .map_err(|error| stored(image, layer, error))?;
        if !download.missing().is_empty() {
            return Err(ImageError::NotKept {
                reference: image.reference.to_string(),
                layer: layer.digest.clone(),
            });
        }
        progress.begins_with(layer.size);
        let coming = std::future::ready(Ok(()));
        let fetched = self.follow(image, layer, &download, coming).await;
        let fetched = fetched.map_err(Failed::into_error)?;
        Ok((fetched, Blob::Kept(layer.digest.clone(), directory)))
    }

    /// Streams the blob through a channel.
    async fn by_channel(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        stream: Stream<'_>,
        progress: &LayerProgress,
    ) -> Result<Unpacking, Failed> {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let taken = Arc::new(AtomicU64::new(0));
        let source = ChannelReader::new(receiver, Arc::clone(&taken));
        let (give_up, given_up) = oneshot::channel();
        let unpacking = self.spawn_unpack(image, layer, source, taken, give_up);
        let fed = {
            let mut feed = Feed::new(sender, progress);
            tokio::select! {
                biased;
                fed = stream.feed(image, layer, &mut feed) => fed,
                // The layer is bad: do not wait for a slow server to send the rest.
                Ok(()) = given_up => Ok(false),
            }
        };
        let unpacked = joined(image, unpacking).await;
        // A source that failed shows as a cancelled unpacking: its own error says more.
        let whole = fed.map_err(Failed::of_source)?;
        let unpacked = unpacked.map_err(|error| Failed::of_unpacking(error, whole))?;
        self.check_diff_id(image, layer, unpacked)
    }

    /// Follows the blob on the disk while it comes there.
    async fn follow(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        download: &Arc<Download>,
        coming: impl Future<Output = Result<(), ImageError>>,
    ) -> Result<Unpacking, Failed> {
        let taken = Arc::new(AtomicU64::new(0));
        let source = Follower::new(Arc::clone(download), Arc::clone(&taken));
        let (give_up, given_up) = oneshot::channel();
        let unpacking = self.spawn_unpack(image, layer, source, taken, give_up);
        let fetched = {
            let _no_more = Closing(download);
            tokio::select! {
                biased;
                fetched = coming => fetched,
                Ok(()) = given_up => Ok(()),
            }
        };
        let unpacked = joined(image, unpacking).await;
        fetched.map_err(Failed::of_source)?;
        // The decompressor may have stumbled over what the digest explains.
        let whole = download.missing().is_empty();
        if unpacked.is_err() && whole {
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
        let unpacked = unpacked.map_err(|error| Failed::of_unpacking(error, whole))?;
        self.check_diff_id(image, layer, unpacked)
    }

    /// Of a blob that is what its own digest says.
    fn check_diff_id(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        (staging, unpacked): Unpacking,
    ) -> Result<Unpacking, Failed> {
        if unpacked.diff_id == layer.diff_id {
            return Ok((staging, unpacked));
        }
        Err(Failed::Image(ImageError::DigestMismatch {
            reference: image.reference.to_string(),
            host: image.reference.host().to_owned(),
            what: format!("content of layer {}", layer.digest),
            expected: layer.diff_id.clone(),
            actual: unpacked.diff_id,
        }))
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

/// Why a blob became no layer.
enum Failed {
    /// It did not come.
    Source(ImageError),
    /// It is not what it should be, or could not be unpacked and may not be.
    Content(ImageError),
    /// Whoever served it, it would be the same.
    Image(ImageError),
    /// This node could not take it.
    Node(ImageError),
}

impl Failed {
    fn of_source(error: ImageError) -> Self {
        match error.is_wrong_content() {
            true => Self::Content(error),
            false => Self::Source(error),
        }
    }

    /// `is_right` says that all of the blob has come and is what its digest says.
    fn of_unpacking(error: ImageError, is_right: bool) -> Self {
        match &error {
            // A bomb is not set off once more.
            ImageError::Unpack { source, .. }
                if !is_right && !matches!(**source, UnpackError::Limit { .. }) =>
            {
                Self::Content(error)
            }
            ImageError::Store { .. } | ImageError::ShuttingDown(_) => Self::Node(error),
            _ => Self::Image(error),
        }
    }

    fn into_error(self) -> ImageError {
        match self {
            Self::Source(error) | Self::Content(error) | Self::Image(error) | Self::Node(error) => {
                error
            }
        }
    }
}

/// Takes what an archive brings to the disk.
struct Pieces(mpsc::Sender<Bytes>);

impl Sink for Pieces {
    async fn take(&mut self, piece: Bytes) -> bool {
        self.0.send(piece).await.is_ok()
    }
}

/// Where a blob comes from that is not kept on disk.
enum Stream<'b> {
    Registry(&'b Sources<'b>),
    Archive(&'b Archive),
}

impl Stream<'_> {
    /// Sends the blob through `feed`, and marks its end once its digest is right.
    async fn feed(
        &self,
        image: &ResolvedImage,
        layer: &LayerDescriptor,
        feed: &mut Feed<'_>,
    ) -> Result<bool, ImageError> {
        let whole = match self {
            Self::Registry(sources) => sources.blob(&layer.digest, layer.size, feed).await?,
            Self::Archive(archive) => archive.blob(&image.reference, layer, feed).await?,
        };
        if whole {
            feed.end().await;
        }
        Ok(whole)
    }
}

/// Wakes the follower when no more will come, however the fetching ended.
struct Closing<'d>(&'d Download);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
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
