//! Asking a registry for documents, again where that may help, and elsewhere where there is an
//! elsewhere. `blob` does the same for what is large.
//!
//! Distribution-spec, "Pulling manifests".

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap};

use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::hosts::Endpoint;
use super::manifest::{ACCEPT, DOCUMENT_MAX};
use super::session::{Failure, Session, accept};

/// Longest wait between two tries, whatever the server asks for.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Tries of one request while there is another place to ask.
const ELSEWHERE_TRIES: u32 = 2;

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

impl Session {
    /// A manifest by tag or digest.
    pub(super) async fn manifest(
        &self,
        selector: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, ImageError> {
        let path = format!("{}/manifests/{selector}", self.reference.path());
        // Turning a tag into a digest is a capability of its own.
        let hosts = match expected {
            None => self.endpoints.iter().filter(|each| each.resolves).collect(),
            Some(_) => self.pulling(),
        };
        self.document(&hosts, &path, expected, &accept(ACCEPT))
            .await
    }

    /// A small blob by digest.
    pub(super) async fn small_blob(&self, digest: &Digest) -> Result<Fetched, ImageError> {
        let path = format!("{}/blobs/{digest}", self.reference.path());
        let hosts = self.pulling();
        self.document(&hosts, &path, Some(digest), &accept("*/*"))
            .await
    }

    /// What a tag, or a digest, is now: only its digest is asked for. `None` when the registry does
    /// not say, or not at once: then the manifest itself must be fetched.
    pub(super) async fn digest_of(&self, selector: &str) -> Option<Digest> {
        let path = format!("{}/manifests/{selector}", self.reference.path());
        let endpoint = self.endpoints.iter().find(|each| each.resolves)?;
        let headers = accept(ACCEPT);
        let asked = self.request(Method::HEAD, endpoint, &path, &headers);
        let answer = asked.await.ok()?;
        let claimed = answer.headers().get("docker-content-digest")?;
        claimed.to_str().ok()?.parse().ok()
    }

    async fn document(
        &self,
        hosts: &[&Endpoint],
        path: &str,
        expected: Option<&Digest>,
        headers: &HeaderMap,
    ) -> Result<Fetched, ImageError> {
        let mut last = None;
        for (at, endpoint) in hosts.iter().enumerate() {
            let is_last = at + 1 == hosts.len();
            let mut tried = 0;
            let outcome = loop {
                tried += 1;
                let fetched = self.one_document(endpoint, path, expected, headers).await;
                match self.again(endpoint, fetched, tried, is_last).await {
                    Some(outcome) => break outcome,
                    None => continue,
                }
            };
            match outcome {
                Ok(fetched) => return Ok(fetched),
                Err(error) => {
                    if error.is_wrong_content() && !is_last {
                        self.served_wrong(endpoint, &error);
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.nobody()))
    }

    /// Decides after one try: `None` is another try, after a wait.
    pub(super) async fn again<T>(
        &self,
        endpoint: &Endpoint,
        outcome: Result<T, Failure>,
        tried: u32,
        is_last: bool,
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
        // Nor is a failing one, for long.
        let tries = match is_last {
            true => self.patience.tries,
            false => self.patience.tries.min(ELSEWHERE_TRIES),
        };
        if tried >= tries {
            return Some(Err(self.unavailable(endpoint, detail)));
        }
        tracing::debug!(
            host = endpoint.name,
            tried,
            detail,
            "registry request will be repeated"
        );
        self.repeated.fetch_add(1, Ordering::Relaxed);
        self.patience.wait(tried, asked).await;
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

    /// The endpoints that may serve content by digest, in the operator's order.
    pub(super) fn pulling(&self) -> Vec<&Endpoint> {
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

    pub(super) fn nobody(&self) -> ImageError {
        ImageError::Unavailable {
            reference: self.reference.to_string(),
            host: self.reference.host().to_owned(),
            detail: "no configured host has the needed capability".to_owned(),
        }
    }

    pub(super) fn mismatch(
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
