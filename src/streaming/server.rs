//! The HTTP server behind the URLs of sessions: a request with a good token and a handshake that
//! fits becomes a session; everything else gets an answer that says why not.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::channel::turned;
use super::config::{StreamingConfig, base_url};
use super::handshake::{ACCEPTED, Refused, negotiate};
use super::hangup::Hangup;
use super::session::{Ask, Node, Session};
use super::tls::{self, TlsError};
use super::tokens::{LIFETIME, TokenError, Tokens};
use crate::metrics::Metrics;
use crate::shim::client::ShimClient;

/// Connections beyond those of sessions that may be at their handshake.
const HANDSHAKES: usize = 64;
/// Longest wait for TLS and for the request.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Longest request line and headers.
const HEADER_MAX: usize = 16 * 1024;
/// Pause after a connection that could not be taken (no descriptors are left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long sessions have when the daemon ends.
const END_PATIENCE: Duration = Duration::from_secs(4);
/// A client that has vanished is noticed by these. One that is there and does not read is waited
/// for.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is none, or cannot be listened on.
    #[error("listen for sessions on {listen}")]
    Listen {
        /// As configured.
        listen: String,
        /// Why not.
        source: std::io::Error,
    },
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Where sessions are asked for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Door(Arc<DoorParts>);

#[derive(Debug)]
struct DoorParts {
    tokens: Tokens<Ask>,
    base: String,
}

impl Door {
    /// The URL under which this session can be begun, once, within a minute.
    ///
    /// # Errors
    /// [`TokenError::TooMany`].
    pub fn open(&self, ask: Ask) -> Result<String, TokenError> {
        let path = ask.path();
        let token = self.0.tokens.give(ask, Instant::now())?;
        Ok(format!("{}/{path}/{token}", self.0.base))
    }
}

/// The server.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
}

/// What all connections have.
struct Shared {
    door: Door,
    node: Node,
    places: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Opens the listener. Sessions find the containers' files below `state_dir`, and end when
    /// `stopped` turns true.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn bind(
        config: &StreamingConfig,
        state_dir: PathBuf,
        shim: watch::Receiver<Option<ShimClient>>,
        stopped: watch::Receiver<bool>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Door), ServerError> {
        let failed = |source| ServerError::Listen {
            listen: config.listen.clone(),
            source,
        };
        let address: SocketAddr = config
            .address()
            .map_err(|why| failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, why)))?;
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let tls = match (&config.tls_certificate, &config.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::acceptor(certificate, key)?),
            _ => None,
        };
        let door = Door(Arc::new(DoorParts {
            tokens: Tokens::default(),
            base: base_url(bound, tls.is_some()),
        }));
        let shared = Arc::new(Shared {
            door: door.clone(),
            node: Node {
                shim,
                state_dir,
                stopped,
                idle_timeout: config.idle_timeout(),
                metrics,
            },
            places: Arc::new(Semaphore::new(config.max_sessions)),
            connections: Arc::new(Semaphore::new(config.max_sessions + HANDSHAKES)),
        });
        let server = Self {
            listener,
            tls,
            shared,
        };
        Ok((server, door))
    }

    /// Serves until the daemon ends, and returns when the last session has.
    pub async fn run(self) {
        let mut stopped = self.shared.node.stopped.clone();
        let all = self.shared.places.available_permits();
        loop {
            let accepted = tokio::select! {
                () = turned(&mut stopped) => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection for a session");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&self.shared.connections).try_acquire_owned() else {
                // Closed at once; whoever has a URL may try it again.
                self.shared.count_refused("full");
                continue;
            };
            let (shared, tls) = (Arc::clone(&self.shared), self.tls.clone());
            tokio::spawn(async move {
                if let Err(error) = shared.connection(stream, tls).await {
                    tracing::debug!(error, "a connection for a session ended");
                }
                drop(place);
            });
        }
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let ended = self.shared.places.acquire_many(all);
        // Those that do not end go with the process.
        let _ = tokio::time::timeout(END_PATIENCE, ended).await;
    }
}

impl Shared {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        tls: Option<TlsAcceptor>,
    ) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        prepare(&stream).map_err(text)?;
        let hangup = Hangup::of(&stream).map_err(text)?;
        let Some(tls) = tls else {
            return self.http(stream, hangup).await;
        };
        let accepted = tokio::time::timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await;
        let stream = accepted.map_err(|_| "no TLS handshake in time".to_owned())?;
        self.http(stream.map_err(text)?, hangup).await
    }

    async fn http<I>(self: Arc<Self>, io: I, hangup: Hangup) -> Result<(), String>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hangup = Arc::new(Mutex::new(Some(hangup)));
        let service = service_fn(move |request: Request<Incoming>| {
            // One request a connection.
            let mut hangup = hangup.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = match hangup.take() {
                Some(hangup) => self.answer(request, hangup),
                None => refuse(StatusCode::BAD_REQUEST, "one request a connection"),
            };
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE_PATIENCE)
            .max_buf_size(HEADER_MAX)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        served.await.map_err(|error| error.to_string())
    }

    fn count_refused(&self, reason: &'static str) {
        self.node.metrics.sessions_refused.get([reason]).increment();
    }

    fn answer(&self, mut request: Request<Incoming>, hangup: Hangup) -> Response<Full<Bytes>> {
        if ![Method::GET, Method::POST].contains(request.method()) {
            self.count_refused("request");
            let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
            put(&mut answer, ALLOW, "GET, POST");
            return answer;
        }
        let mut parts = request.uri().path().split('/').skip(1);
        let (kind, token, more) = (parts.next(), parts.next(), parts.next());
        let (Some(kind), Some(token), None) = (kind, token, more) else {
            self.count_refused("request");
            return refuse(StatusCode::NOT_FOUND, "no such session");
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.count_refused("full");
            let mut answer = refuse(StatusCode::TOO_MANY_REQUESTS, "too many sessions");
            put(&mut answer, RETRY_AFTER, &LIFETIME.as_secs().to_string());
            return answer;
        };
        let ask = self.door.0.tokens.take(token, Instant::now());
        let Some(ask) = ask.filter(|ask| ask.path() == kind) else {
            self.count_refused("token");
            let why = "no such session: its URL is good once, for a minute";
            return refuse(StatusCode::NOT_FOUND, why);
        };
        let (transport, headers) = match negotiate(request.headers(), ask.kind()) {
            Ok(agreed) => agreed,
            Err(refused) => {
                self.count_refused("protocol");
                return refusal(&refused);
            }
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let kind = ask.path();
        let session = Session::new(self.node.clone(), ask, transport);
        let metrics = Arc::clone(&self.node.metrics);
        tokio::spawn(async move {
            let (gauge, begun) = (metrics.sessions.get([kind]), Instant::now());
            let open = gauge.enter();
            serve(session, upgrade, hangup, place).await;
            drop(open);
            metrics
                .session_durations
                .get([kind])
                .observe(begun.elapsed());
        });
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().extend(headers);
        answer
    }
}

async fn serve(
    session: Session,
    upgrade: hyper::upgrade::OnUpgrade,
    hangup: Hangup,
    place: OwnedSemaphorePermit,
) {
    match upgrade.await {
        Ok(upgraded) => session.run(TokioIo::new(upgraded), hangup).await,
        Err(error) => tracing::debug!(%error, "a session did not begin"),
    }
    drop(place);
}

fn refusal(refused: &Refused) -> Response<Full<Bytes>> {
    let text = refused.to_string();
    match refused {
        Refused::NoUpgrade | Refused::WebSocket(_) => refuse(StatusCode::BAD_REQUEST, &text),
        Refused::NoProtocol { spoken } => {
            let mut answer = refuse(StatusCode::FORBIDDEN, &text);
            put(&mut answer, ACCEPTED, &spoken.join(", "));
            answer
        }
    }
}

fn refuse(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *answer.status_mut() = status;
    put(&mut answer, CONNECTION, "close");
    answer
}

fn put(answer: &mut Response<Full<Bytes>>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// Small pieces leave at once, and a client that has vanished is noticed.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_EVERY)?;
    Ok(())
}
