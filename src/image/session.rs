//! One pull's conversation with a registry host and its mirrors: single requests.
//!
//! A request here is one logical GET: answering a challenge, following redirects, and classifying
//! the outcome. Trying again, and going on to the next endpoint, is the business of `registry`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::Semaphore;

use super::auth::{self, Challenge, Credentials, Given, TokenRequest};
use super::clients::Clients;
use super::error::ImageError;
use super::hosts::{Endpoint, authority, canonical, host_of, is_loopback};
use super::keyring::Keyring;
use super::reference::Reference;
use super::registry::Patience;
use crate::causes::{add_causes, with_causes};

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;
/// Of a token server's answer, in bytes.
const TOKEN_MAX: usize = 256 << 10;
/// Of an error page that is shown to the user, in bytes.
const ERROR_MAX: usize = 4 << 10;

/// How one request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing answers there.
    Unreachable(String),
    /// It may work in a moment; the server may have said in how long.
    Temporary(String, Option<Duration>),
    /// Asking again changes nothing.
    Final(ImageError),
}

/// Everything a pull needs to ask for documents and blobs.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) reference: Reference,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) patience: Patience,
    /// Transfers of blobs under way, over all pulls.
    pub(super) connections: Arc<Semaphore>,
    /// Requests that were made again.
    pub(super) repeated: AtomicU64,
    stall_timeout: Duration,
    offer: Offer,
    clients: Arc<Clients>,
    /// By endpoint name: what it accepted last.
    granted: Mutex<HashMap<String, Grant>>,
    /// By endpoint name: what it served wrong first.
    wrong: Mutex<BTreeMap<String, String>>,
}

/// What can be shown to those who ask for credentials.
#[derive(Debug, Clone, Default)]
pub(super) struct Offer {
    /// What the client gave for this pull.
    pub(super) given: Given,
    /// What the operator keeps; for when the client gave nothing.
    pub(super) keyring: Keyring,
}

/// What an endpoint accepted, and which of the credentials offered to it that was made from.
#[derive(Debug, Clone)]
struct Grant {
    header: HeaderValue,
    offered: usize,
}

/// What all sessions of a driver have in common.
#[derive(Debug, Clone)]
pub(super) struct Manners {
    pub(super) clients: Arc<Clients>,
    pub(super) connections: Arc<Semaphore>,
    pub(super) stall_timeout: Duration,
    pub(super) patience: Patience,
}

impl Session {
    pub(super) fn new(
        reference: Reference,
        offer: Offer,
        endpoints: Vec<Endpoint>,
        manners: Manners,
    ) -> Self {
        Self {
            reference,
            endpoints,
            patience: manners.patience,
            connections: manners.connections,
            repeated: AtomicU64::new(0),
            stall_timeout: manners.stall_timeout,
            offer,
            clients: manners.clients,
            granted: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// A host has served something else than what it was asked for, and somebody else is asked
    /// for it. Said once of each host.
    pub(super) fn served_wrong(&self, endpoint: &Endpoint, error: &ImageError) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(first) = wrong.entry(endpoint.name.clone()) {
            let text = with_causes(error);
            tracing::warn!(
                host = endpoint.name,
                error = text,
                "it served wrong content"
            );
            first.insert(text);
        }
    }

    /// Hosts that have served something else than what they were asked for, and what that was.
    pub(super) fn wrong_hosts(&self) -> Vec<(String, String)> {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong
            .iter()
            .map(|(host, text)| (host.clone(), text.clone()))
            .collect()
    }

    /// Gets `path` below the endpoint's base, with credentials if they are asked for.
    ///
    /// The answer is a success (2xx); its body has not been read.
    pub(super) async fn get(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Failure> {
        self.request(Method::GET, endpoint, path, headers).await
    }

    /// The same with another method that has no body.
    pub(super) async fn request(
        &self,
        method: Method,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Failure> {
        let mut url = endpoint
            .base
            .join(path)
            .map_err(|error| self.protocol(endpoint, format!("{path:?} makes no URL: {error}")))?;
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let send = async |authorization| {
            let method = method.clone();
            self.follow(method, endpoint, url.clone(), headers, authorization)
                .await
        };
        let granted = self.granted(endpoint);
        let first = granted.as_ref().map_or(0, |grant| grant.offered);
        // With what was accepted before: it may have expired since.
        let mut response = send(granted.map(|grant| grant.header)).await?;
        let offers = self.offers(endpoint);
        for offered in first..offers.len() {
            if response.status() != StatusCode::UNAUTHORIZED {
                return self.classify(endpoint, response).await;
            }
            let is_last = offered + 1 == offers.len();
            let header = self.answer_challenge(endpoint, &response, &offers[offered]);
            let header = match header.await {
                Err(Failure::Final(ImageError::Unauthorized { .. })) if !is_last => continue,
                header => header?,
            };
            let next = send(Some(header.clone())).await?;
            let refused = matches!(
                next.status(),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
            );
            if refused && !is_last {
                continue;
            }
            let mut all = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(endpoint.name.clone(), Grant { header, offered });
            drop(all);
            response = next;
            if refused {
                break;
            }
        }
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                Err(self.unauthorized(endpoint, "the credentials are not accepted"))
            }
            _ => self.classify(endpoint, response).await,
        }
    }

    fn granted(&self, endpoint: &Endpoint) -> Option<Grant> {
        let all = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&endpoint.name).cloned()
    }

    /// The credentials that an endpoint may see, in the order in which they are tried; at least
    /// one, which may be none.
    fn offers(&self, endpoint: &Endpoint) -> Vec<Credentials> {
        let host = match &endpoint.namespace {
            // A mirror is asked as itself.
            Some(_) => endpoint.name.as_str(),
            None => self.reference.host(),
        };
        let given = &self.offer.given;
        if given.credentials != Credentials::Anonymous {
            let meant = given.server.as_deref().is_none_or(|server| {
                let server = canonical(host_of(server));
                server == canonical(host) || server == canonical(self.reference.host())
            });
            return vec![match meant {
                true => given.credentials.clone(),
                false => Credentials::Anonymous,
            }];
        }
        let mut found = self.offer.keyring.find(host, self.reference.path());
        if found.is_empty() {
            found.push(Credentials::Anonymous);
        }
        found
    }

    /// Sends the request and follows redirects. Credentials and the operator's headers go only to
    /// the endpoint's own origin.
    async fn follow(
        &self,
        method: Method,
        endpoint: &Endpoint,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = headers.clone();
            if url.origin() == endpoint.base.origin() {
                headers.extend(endpoint.headers.clone());
                if let Some(authorization) = &authorization {
                    headers.insert(AUTHORIZATION, authorization.clone());
                }
            }
            let client = self.client(endpoint, &url)?;
            let request = client.request(method.clone(), url.clone());
            let response = self.bounded(request.headers(headers).send()).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            let Some(next) = next else {
                let detail = "redirect without a usable location".to_owned();
                return Err(self.protocol(endpoint, detail));
            };
            if url.scheme() == "https" && next.scheme() != "https" || next.host().is_none() {
                let detail = format!("redirect from HTTPS to {}://", next.scheme());
                return Err(self.protocol(endpoint, detail));
            }
            url = next;
        }
        Err(self.protocol(endpoint, format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Turns a 401 into something to try once more with.
    async fn answer_challenge(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        credentials: &Credentials,
    ) -> Result<HeaderValue, Failure> {
        let refused = |detail: &str| self.unauthorized(endpoint, detail);
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        let challenges: Vec<Challenge> = texts.flat_map(Challenge::parse).collect();
        let find = |scheme: &str| challenges.iter().find(|each| each.scheme == scheme);
        if let Credentials::RegistryToken(token) = credentials {
            return auth::bearer(token).ok_or_else(|| refused("the given token cannot be sent"));
        }
        if let Some(challenge) = find("bearer") {
            let token = self.token(endpoint, challenge, credentials).await?;
            return auth::bearer(&token).ok_or_else(|| refused("its token cannot be sent"));
        }
        match (find("basic"), credentials) {
            (Some(_), Credentials::Password { username, password }) => {
                let grant = auth::basic(username, password);
                grant.ok_or_else(|| refused("the given password cannot be sent"))
            }
            (Some(_), _) => Err(refused("it wants a user name and password")),
            (None, _) => Err(refused("it wants an authentication that is not supported")),
        }
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        challenge: &Challenge,
        credentials: &Credentials,
    ) -> Result<String, Failure> {
        let scope = format!("repository:{}:pull", self.reference.path());
        let request = TokenRequest::new(challenge, &scope, credentials);
        let Some(request) = request else {
            return Err(self.protocol(endpoint, "its challenge has no usable realm".to_owned()));
        };
        let host = authority(&request.url);
        let secret = request.authorization.is_some() || request.form.is_some();
        let plain = request.url.scheme() != "https";
        let endpoint_is_plain = endpoint.base.scheme() == "http";
        if secret && plain && !endpoint_is_plain && !is_loopback(&host) {
            let detail = "its token server would get the password over plain HTTP";
            return Err(self.unauthorized(endpoint, detail));
        }
        let client = self.client(endpoint, &request.url)?;
        let mut builder = match request.form {
            None => client.get(request.url),
            Some(form) => {
                let kind = "application/x-www-form-urlencoded";
                client
                    .post(request.url)
                    .header("content-type", kind)
                    .body(form)
            }
        };
        if let Some(authorization) = request.authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        let response = self.bounded(builder.send()).await?;
        let response = self.classify(endpoint, response).await?;
        let body = self.body(response, TOKEN_MAX).await?;
        let missing = || self.protocol(endpoint, format!("{host} gave no token"));
        auth::token(&body).ok_or_else(missing)
    }

    /// Success, or the kind of failure that the status means.
    async fn classify(&self, endpoint: &Endpoint, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| retry_after(text, SystemTime::now()));
        let body = self.body(response, ERROR_MAX).await.unwrap_or_default();
        let detail = match error_text(&body) {
            Some(text) => format!("{status}: {text}"),
            None => status.to_string(),
        };
        Err(match status {
            StatusCode::NOT_FOUND => Failure::Final(ImageError::NotFound {
                reference: self.reference.to_string(),
                host: endpoint.name.clone(),
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.unauthorized(endpoint, &detail)
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Failure::Temporary(detail, after)
            }
            status if status.is_server_error() => Failure::Temporary(detail, after),
            _ => self.protocol(endpoint, detail),
        })
    }

    /// Reads a whole body of at most `max` bytes.
    pub(super) async fn body(
        &self,
        mut response: Response,
        max: usize,
    ) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.bounded(response.chunk()).await? {
            if body.len() + chunk.len() > max {
                let detail = format!("answer is longer than {max} bytes");
                return Err(Failure::Final(ImageError::Protocol {
                    reference: self.reference.to_string(),
                    host: authority(response.url()),
                    detail,
                }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Waits for the next sign of life, no longer than the stall timeout.
    pub(super) async fn bounded<T>(
        &self,
        work: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.stall_timeout, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if error.is_connect() => Err(Failure::Unreachable(chain(&error))),
            Ok(Err(error)) => Err(Failure::Temporary(chain(&error), None)),
            Err(_) => {
                let seconds = self.stall_timeout.as_secs_f32();
                Err(Failure::Temporary(
                    format!("no answer within {seconds} s"),
                    None,
                ))
            }
        }
    }

    /// The client for one address that an endpoint has led to.
    fn client(&self, endpoint: &Endpoint, url: &Url) -> Result<Client, Failure> {
        let client = self.clients.get(url, &endpoint.client);
        client.map_err(|error| self.unusable_client(endpoint, &error))
    }

    fn unusable_client(&self, endpoint: &Endpoint, error: &reqwest::Error) -> Failure {
        Failure::Final(ImageError::Unavailable {
            reference: self.reference.to_string(),
            host: endpoint.name.clone(),
            detail: chain(error),
        })
    }

    fn unauthorized(&self, endpoint: &Endpoint, detail: &str) -> Failure {
        Failure::Final(ImageError::Unauthorized {
            reference: self.reference.to_string(),
            host: endpoint.name.clone(),
            detail: detail.to_owned(),
        })
    }

    pub(super) fn protocol(&self, endpoint: &Endpoint, detail: String) -> Failure {
        Failure::Final(ImageError::Protocol {
            reference: self.reference.to_string(),
            host: endpoint.name.clone(),
            detail,
        })
    }
}

/// The `Accept` header of a request for `media_types`.
pub(super) fn accept(media_types: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(media_types))])
}

/// An error with its causes in one line, for one that is kept as text. Without the URL: a
/// redirect's may hold a signature.
fn chain(error: &reqwest::Error) -> String {
    let text = match (error.is_connect(), error.is_timeout()) {
        (true, true) => "connecting timed out".to_owned(),
        (true, false) => "cannot connect".to_owned(),
        (false, _) if error.is_body() || error.is_decode() => "the answer broke off".to_owned(),
        (false, _) => "the request failed".to_owned(),
    };
    add_causes(text, error)
}

/// How long a server asks us to wait: seconds, or a date (RFC 9110, Retry-After).
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// What the registry says in its error document (distribution-spec, "Error Codes"), made safe to
/// show.
fn error_text(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let first = errors.errors.first()?;
    let text = format!("{}: {}", first.code, first.message);
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_asked_for_in_seconds_or_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expected) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(text, now), expected, "{text}");
        }
    }
}
