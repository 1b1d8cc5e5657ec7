//! Asking a registry for documents and blobs, again where that may help, and elsewhere where there
//! is an elsewhere.
//!
//! Distribution-spec, "Pulling manifests" and "Pulling blobs". A blob that breaks off is taken up
//! where it broke (RFC 9110, Range); every byte goes through the digest on its way.

use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};

use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::hosts::Endpoint;
use super::manifest::{ACCEPT, DOCUMENT_MAX};
use super::session::{Failure, Session, accept};

/// Bytes that must come before a broken connection counts as progress.
const PROGRESS_MIN: u64 = 64 << 10;
/// Longest wait between two tries, whatever the server asks for.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// How often and after how long to try again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) tries: u32,
    /// Before the second try; doubled for each further one.
    pub(super) first_wait: Duration,
}

impl Patience {
    /// Waits before try number `tried + 1`.
    async fn wait(&self, tried: u32, asked: Option<Duration>) {
        let own = self
            .first_wait
            .saturating_mul(1 << tried.saturating_sub(1).min(16));
        tokio::time::sleep(asked.unwrap_or(own).min(WAIT_MAX)).await;
    }
}

/// A document with the digest of its bytes.
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) media_type: String,
}

/// What a blob is handed to, piece by piece.
pub(super) trait Sink {
    /// Takes the next piece; `false` when no more are wanted.
    async fn take(&mut self, piece: Bytes) -> bool;
}

impl Session {
    /// A manifest by tag or digest.
    pub(super) async fn manifest(
        &self,
        selector: &str,
        expected: Option<&Digest>,
        patience: Patience,
    ) -> Result<Fetched, ImageError> {
        let path = format!("{}/manifests/{selector}", self.reference.path());
        // Turning a tag into a digest is a capability of its own.
        let hosts = match expected {
            None => self.endpoints.iter().filter(|each| each.resolves).collect(),
            Some(_) => self.pulling(),
        };
        self.document(&hosts, &path, expected, &accept(ACCEPT), patience)
            .await
    }

    /// A small blob by digest.
    pub(super) async fn small_blob(
        &self,
        digest: &Digest,
        patience: Patience,
    ) -> Result<Fetched, ImageError> {
        let path = format!("{}/blobs/{digest}", self.reference.path());
        let hosts = self.pulling();
        self.document(&hosts, &path, Some(digest), &accept("*/*"), patience)
            .await
    }

    async fn document(
        &self,
        hosts: &[&Endpoint],
        path: &str,
        expected: Option<&Digest>,
        headers: &HeaderMap,
        patience: Patience,
    ) -> Result<Fetched, ImageError> {
        let mut last = None;
        for (at, endpoint) in hosts.iter().enumerate() {
            let is_last = at + 1 == hosts.len();
            let mut tried = 0;
            let outcome = loop {
                tried += 1;
                let fetched = self.one_document(endpoint, path, expected, headers).await;
                match self
                    .again(endpoint, fetched, tried, is_last, patience)
                    .await
                {
                    Some(outcome) => break outcome,
                    None => continue,
                }
            };
            match outcome {
                Ok(fetched) => return Ok(fetched),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.nobody()))
    }

    /// Decides after one try: `None` is another try, after a wait.
    async fn again<T>(
        &self,
        endpoint: &Endpoint,
        outcome: Result<T, Failure>,
        tried: u32,
        is_last: bool,
        patience: Patience,
    ) -> Option<Result<T, ImageError>> {
        let (detail, asked) = match outcome {
            Ok(done) => return Some(Ok(done)),
            Err(Failure::Final(error)) => return Some(Err(error)),
            // With another place to ask, a dead one is not worth waiting for.
            Err(Failure::Unreachable(detail)) if !is_last => {
                return Some(Err(self.unavailable(endpoint, detail)));
            }
            Err(Failure::Unreachable(detail)) => (detail, None),
            Err(Failure::Temporary(detail, asked)) => (detail, asked),
        };
        if tried >= patience.tries {
            return Some(Err(self.unavailable(endpoint, detail)));
        }
        tracing::debug!(
            host = endpoint.name,
            tried,
            detail,
            "registry request will be repeated"
        );
        patience.wait(tried, asked).await;
        None
    }

    async fn one_document(
        &self,
        endpoint: &Endpoint,
        path: &str,
        expected: Option<&Digest>,
        headers: &HeaderMap,
    ) -> Result<Fetched, Failure> {
        let response = self.get(endpoint, path, headers).await?;
        let header = |name: &str| {
            let value = response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.map(str::to_owned)
        };
        let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        // The registry's own claim is checked too: a cache between us may have served another tag.
        let claimed = header("docker-content-digest").and_then(|text| text.parse().ok());
        let max = usize::try_from(DOCUMENT_MAX).unwrap_or(usize::MAX);
        let bytes = self.body(response, max).await?;
        let expected = expected.cloned().or(claimed);
        let digest = match &expected {
            None => Digest::sha256(&bytes),
            Some(expected) => {
                let mut hasher = Hasher::new(expected.algorithm());
                hasher.update(&bytes);
                hasher.finish()
            }
        };
        match expected {
            Some(expected) if expected != digest => Err(Failure::Final(
                self.mismatch(endpoint, path, expected, digest),
            )),
            _ => Ok(Fetched {
                bytes,
                digest,
                media_type,
            }),
        }
    }

    /// Streams a blob into `sink`, verified: `Ok(true)` when all of it was taken and is what its
    /// digest says, `Ok(false)` when the sink wanted no more.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mut impl Sink,
        patience: Patience,
    ) -> Result<bool, ImageError> {
        let mut transfer = Transfer {
            size,
            received: 0,
            hasher: Hasher::new(digest.algorithm()),
        };
        let path = format!("{}/blobs/{digest}", self.reference.path());
        let hosts = self.pulling();
        let mut last = None;
        for (at, endpoint) in hosts.iter().enumerate() {
            let is_last = at + 1 == hosts.len();
            let mut tried = 0;
            let outcome = loop {
                let before = transfer.received;
                tried += 1;
                let piece = self
                    .one_transfer(endpoint, &path, &mut transfer, sink)
                    .await;
                if transfer.received - before >= PROGRESS_MIN {
                    tried = 1;
                }
                match self.again(endpoint, piece, tried, is_last, patience).await {
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
                        false => Err(self.mismatch(endpoint, &path, digest.clone(), actual)),
                    };
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.nobody()))
    }

    /// One connection's worth of a blob, from where the last one broke off.
    async fn one_transfer(
        &self,
        endpoint: &Endpoint,
        path: &str,
        transfer: &mut Transfer,
        sink: &mut impl Sink,
    ) -> Result<bool, Failure> {
        if transfer.received == transfer.size {
            return Ok(true);
        }
        let mut headers = accept("*/*");
        if transfer.received > 0 {
            let range = format!("bytes={}-", transfer.received);
            headers.extend(
                HeaderValue::try_from(range)
                    .ok()
                    .map(|value| (RANGE, value)),
            );
        }
        let mut response = self.get(endpoint, path, &headers).await?;
        // A server that knows no ranges sends everything again: that part was digested before.
        let mut repeated = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE);
                let range = range
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default();
                if !range.starts_with(&format!("bytes {}-", transfer.received)) {
                    let detail = format!("asked to resume, it sent the range {range:?}");
                    return Err(self.protocol(endpoint, detail));
                }
                0
            }
            _ => transfer.received,
        };
        while let Some(mut piece) = self.bounded(response.chunk()).await? {
            let skipped = usize::try_from(repeated)
                .unwrap_or(usize::MAX)
                .min(piece.len());
            let _ = piece.split_to(skipped);
            repeated -= skipped as u64;
            if piece.is_empty() {
                continue;
            }
            transfer.received += piece.len() as u64;
            if transfer.received > transfer.size {
                let detail = format!("layer is longer than the {} bytes announced", transfer.size);
                return Err(self.protocol(endpoint, detail));
            }
            transfer.hasher.update(&piece);
            if !sink.take(piece).await {
                return Ok(false);
            }
        }
        match transfer.received == transfer.size {
            true => Ok(true),
            false => {
                let Transfer { received, size, .. } = transfer;
                Err(Failure::Temporary(
                    format!("ended after {received} of {size} bytes"),
                    None,
                ))
            }
        }
    }

    /// The endpoints that may serve content by digest, in the operator's order.
    fn pulling(&self) -> Vec<&Endpoint> {
        self.endpoints.iter().filter(|each| each.pulls).collect()
    }

    fn unavailable(&self, endpoint: &Endpoint, detail: String) -> ImageError {
        let reference = self.reference.to_string();
        ImageError::Unavailable {
            reference,
            host: endpoint.name.clone(),
            detail,
        }
    }

    fn nobody(&self) -> ImageError {
        ImageError::Unavailable {
            reference: self.reference.to_string(),
            host: self.reference.host().to_owned(),
            detail: "no configured host has the needed capability".to_owned(),
        }
    }

    fn mismatch(
        &self,
        endpoint: &Endpoint,
        what: &str,
        expected: Digest,
        actual: Digest,
    ) -> ImageError {
        ImageError::DigestMismatch {
            reference: self.reference.to_string(),
            host: endpoint.name.clone(),
            what: what.to_owned(),
            expected,
            actual,
        }
    }
}

/// How far a blob has come.
struct Transfer {
    size: u64,
    received: u64,
    hasher: Hasher,
}
