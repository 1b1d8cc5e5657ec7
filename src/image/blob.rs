//! Blobs, which are large: streamed to whoever takes them, or fetched into a [`Download`] by
//! several connections.
//!
//! Distribution-spec, "Pulling blobs". A transfer that breaks off, or makes no progress for too
//! long, is taken up where it broke (RFC 9110, Range); one that is only slow is not touched. Each
//! transfer holds one of the driver's connections.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::{SemaphorePermit, mpsc};

use super::digest::{Digest, Hasher};
use super::download::{Download, Missing};
use super::error::ImageError;
use super::hosts::Endpoint;
use super::layers::LayerError;
use super::progress::LayerProgress;
use super::session::{Failure, Session, accept};
use super::sources::{Sources, Turn};

/// Bytes that must come before a broken connection counts as progress.
const PROGRESS_MIN: u64 = 64 << 10;
/// Connections for one blob.
const PARALLEL_MAX: usize = 4;
/// Pieces of an answer between the connection and the disk.
const PIECES_MAX: usize = 4;

/// What a blob is handed to, piece by piece.
pub(super) trait Sink {
    /// Takes the next piece; `false` when no more are wanted.
    async fn take(&mut self, piece: Bytes) -> bool;
}

/// How a server answers a request for a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// With that range.
    Range,
    /// With everything.
    Whole,
}

impl Sources<'_> {
    /// Streams a blob into `sink`, verified: `Ok(true)` when all of it was taken and is what its
    /// digest says, `Ok(false)` when the sink wanted no more.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mut impl Sink,
    ) -> Result<bool, ImageError> {
        let session = self.session;
        let mut transfer = Transfer {
            digest,
            size,
            received: 0,
            hasher: Hasher::new(digest.algorithm()),
        };
        let path = session.blob_path(digest);
        let mut last = None;
        for turn in self.turns() {
            let endpoint = turn.endpoint;
            let mut tried = 0;
            let outcome = loop {
                let before = transfer.received;
                tried += 1;
                let part = self.stream(&turn, &path, &mut transfer, sink).await;
                if transfer.received - before >= PROGRESS_MIN {
                    tried = 1;
                }
                match session.again(endpoint, part, tried, turn.is_last).await {
                    Some(outcome) => break outcome,
                    None => continue,
                }
            };
            match outcome {
                Ok(false) => return Ok(false),
                Ok(true) => {
                    let actual = transfer.hasher.finish();
                    return match actual == *digest {
                        true => Ok(true),
                        false => Err(session.mismatch(endpoint, &path, digest.clone(), actual)),
                    };
                }
                // It cannot be gone on with.
                Err(error) if error.is_wrong_content() => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| session.nobody()))
    }

    /// Fetches what `download` lacks, several pieces at once if the server serves ranges. The
    /// content is not verified: its reader does that.
    pub(super) async fn download(
        &self,
        download: &Arc<Download>,
        progress: &Arc<LayerProgress>,
    ) -> Result<(), ImageError> {
        let path = self.session.blob_path(download.digest());
        let mut last = None;
        for turn in self.turns() {
            let fetch = Fetch {
                sources: self,
                session: self.session,
                turn,
                path: &path,
                download,
                progress,
            };
            match fetch.all().await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_wrong_content() => return Err(error),
                Err(error) => last = Some(error),
            }
            // Transfers that were given up may still have something to write, where the next host's
            // would go.
            let download = Arc::clone(download);
            let _ended = tokio::task::spawn_blocking(move || download.await_writers()).await;
        }
        Err(last.unwrap_or_else(|| self.session.nobody()))
    }

    /// One connection's worth of a blob, from where the last one broke off.
    async fn stream(
        &self,
        turn: &Turn<'_>,
        path: &str,
        transfer: &mut Transfer<'_>,
        sink: &mut impl Sink,
    ) -> Result<bool, Failure> {
        if transfer.received == transfer.size {
            return Ok(true);
        }
        let (session, endpoint) = (self.session, turn.endpoint);
        let _connection = session.connection().await?;
        let headers = match transfer.received {
            0 => accept("*/*"),
            from => range(from, None),
        };
        let mut response = session.get(endpoint, path, &headers).await?;
        // A server that knows no ranges sends everything again: that part was digested before.
        let mut repeated = match session.served(endpoint, &response, transfer.received)? {
            Served::Range => 0,
            Served::Whole => transfer.received,
        };
        while let Some(mut piece) = session.bounded(response.chunk()).await? {
            skip(&mut piece, &mut repeated);
            if piece.is_empty() {
                continue;
            }
            // Before they are taken: who takes them may find them wrong, and drop this.
            self.gave(turn);
            transfer.received += piece.len() as u64;
            if transfer.received > transfer.size {
                return Err(session.too_long(endpoint, transfer.digest, transfer.size));
            }
            transfer.hasher.update(&piece);
            if !sink.take(piece).await {
                return Ok(false);
            }
        }
        match transfer.received == transfer.size {
            true => Ok(true),
            false => Err(broken_off(transfer.received, transfer.size)),
        }
    }
}

impl Session {
    fn blob_path(&self, digest: &Digest) -> String {
        format!("{}/blobs/{digest}", self.reference.path())
    }

    async fn connection(&self) -> Result<SemaphorePermit<'_>, Failure> {
        let permit = self.connections.acquire().await;
        permit.map_err(|_| Failure::Final(ImageError::ShuttingDown(self.reference.to_string())))
    }

    /// Whether an answer to a request for everything from `from` on is that.
    fn served(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        from: u64,
    ) -> Result<Served, Failure> {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(Served::Whole);
        }
        let range = response.headers().get(CONTENT_RANGE);
        let range = range
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        match range.starts_with(&format!("bytes {from}-")) {
            true => Ok(Served::Range),
            false => {
                let detail = format!("asked to go on at byte {from}, it sent the range {range:?}");
                Err(self.protocol(endpoint, detail))
            }
        }
    }

    fn too_long(&self, endpoint: &Endpoint, layer: &Digest, size: u64) -> Failure {
        Failure::Final(ImageError::TooLong {
            reference: self.reference.to_string(),
            host: endpoint.name.clone(),
            layer: layer.clone(),
            size,
        })
    }
}

/// One blob from one endpoint.
struct Fetch<'f> {
    sources: &'f Sources<'f>,
    session: &'f Session,
    turn: Turn<'f>,
    path: &'f str,
    download: &'f Arc<Download>,
    progress: &'f Arc<LayerProgress>,
}

impl Fetch<'_> {
    /// The first piece shows whether the server knows ranges; if so the others come side by side.
    async fn all(&self) -> Result<(), ImageError> {
        let Some(first) = self.download.missing().first().copied() else {
            return Ok(());
        };
        if self.piece(first.piece, true).await? == Served::Whole {
            return Ok(());
        }
        let rest: VecDeque<_> = self.download.missing().iter().map(|m| m.piece).collect();
        let workers = rest.len().min(PARALLEL_MAX);
        let rest = Mutex::new(rest);
        let next = || {
            rest.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        let work = async || -> Result<(), ImageError> {
            while let Some(piece) = next() {
                self.piece(piece, false).await?;
            }
            Ok(())
        };
        let all = (0..workers).map(|_| work());
        futures_util::future::try_join_all(all).await.map(drop)
    }

    /// One piece, in as many transfers as it takes. With `alone` the server may send everything
    /// from there on instead.
    async fn piece(&self, piece: usize, alone: bool) -> Result<Served, ImageError> {
        let mut served = Served::Range;
        let mut tried = 0;
        loop {
            let Some(missing) = self.gap(piece, served) else {
                return Ok(served);
            };
            tried += 1;
            let part = self.transfer(missing, alone, &mut served).await;
            // Of its own: what others get meanwhile is no reason to be patient here.
            let got = |left: Missing| left.from.saturating_sub(missing.from) >= PROGRESS_MIN;
            if self.gap(piece, served).is_none_or(got) {
                tried = 1;
            }
            let again = self
                .session
                .again(self.turn.endpoint, part, tried, self.turn.is_last)
                .await;
            if let Some(outcome) = again {
                outcome?;
            }
        }
    }

    /// What is next for who fetches `piece`.
    fn gap(&self, piece: usize, served: Served) -> Option<Missing> {
        match served {
            Served::Range => self.download.missing_of(piece),
            Served::Whole => self.download.missing().first().copied(),
        }
    }

    /// One connection's worth.
    async fn transfer(
        &self,
        missing: Missing,
        alone: bool,
        served: &mut Served,
    ) -> Result<(), Failure> {
        let (session, endpoint) = (self.session, self.turn.endpoint);
        let _connection = session.connection().await?;
        let headers = range(missing.from, Some(missing.to - 1));
        let response = session.get(endpoint, self.path, &headers).await?;
        *served = session.served(endpoint, &response, missing.from)?;
        let to = match served {
            Served::Range => missing.to,
            Served::Whole if alone => self.download.size(),
            Served::Whole => {
                let detail = "it serves ranges at one time and not at another";
                return Err(session.protocol(endpoint, detail.to_owned()));
            }
        };
        let repeated = match served {
            Served::Range => 0,
            Served::Whole => missing.from,
        };
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let writing = tokio::task::spawn_blocking({
            let writer = self.download.writer(missing.from);
            let progress = Arc::clone(self.progress);
            move || writer.run(receiver, &progress)
        });
        let received = self
            .receive(response, (missing.from, to), repeated, sender)
            .await;
        let written = writing.await;
        let digest = self.download.digest();
        match written {
            Ok(Ok(())) => received,
            Ok(Err(error)) => Err(session.not_kept(digest, error)),
            Err(_) => {
                let reference = session.reference.to_string();
                Err(Failure::Final(ImageError::ShuttingDown(reference)))
            }
        }
    }

    /// Passes the bytes `from..to` on; an answer that is longer, or ends before, is an error.
    async fn receive(
        &self,
        mut response: Response,
        (from, to): (u64, u64),
        mut repeated: u64,
        sender: mpsc::Sender<Bytes>,
    ) -> Result<(), Failure> {
        let session = self.session;
        let mut at = from;
        while let Some(mut data) = session.bounded(response.chunk()).await? {
            skip(&mut data, &mut repeated);
            if data.is_empty() {
                continue;
            }
            self.sources.gave(&self.turn);
            at += data.len() as u64;
            if at > to {
                let (blob, size) = (self.download.digest(), self.download.size());
                return Err(session.too_long(self.turn.endpoint, blob, size));
            }
            // A writer that has gone has its own error to report.
            if sender.send(data).await.is_err() {
                break;
            }
        }
        match at == to {
            true => Ok(()),
            false => Err(broken_off(at, to)),
        }
    }
}

impl Session {
    fn not_kept(&self, layer: &Digest, error: LayerError) -> Failure {
        Failure::Final(ImageError::Store {
            reference: self.reference.to_string(),
            layer: layer.clone(),
            source: Box::new(error),
        })
    }
}

/// The headers of a request for the bytes from `from` on, to `last` if it is given.
fn range(from: u64, last: Option<u64>) -> HeaderMap {
    let mut headers = accept("*/*");
    let text = match last {
        Some(last) => format!("bytes={from}-{last}"),
        None => format!("bytes={from}-"),
    };
    headers.extend(HeaderValue::try_from(text).ok().map(|value| (RANGE, value)));
    headers
}

/// Drops from the front what was received before.
fn skip(piece: &mut Bytes, repeated: &mut u64) {
    let skipped = usize::try_from(*repeated)
        .unwrap_or(usize::MAX)
        .min(piece.len());
    let _ = piece.split_to(skipped);
    *repeated -= skipped as u64;
}

fn broken_off(at: u64, to: u64) -> Failure {
    Failure::Temporary(format!("ended at byte {at}, before byte {to}"), None)
}

/// How far a streamed blob has come.
struct Transfer<'d> {
    digest: &'d Digest,
    size: u64,
    received: u64,
    hasher: Hasher,
}
