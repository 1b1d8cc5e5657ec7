//! `GET /metrics` over HTTP, for Prometheus: a listener of its own, that serves a few connections
//! for a short time each and touches nothing that calls wait for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::MetricsPage;
use crate::metrics::Exposition;

/// Connections at once; one more is closed at once.
const CONNECTIONS: usize = 16;
/// Longest wait for a request, and longest life of a connection.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
const LIFE: Duration = Duration::from_secs(60);
/// Longest request line and headers.
const HEADER_MAX: usize = 16 * 1024;
/// Pause after a connection that could not be taken (no descriptors are left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the listener.
///
/// # Errors
/// What the kernel said.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers until `stop` turns true.
pub async fn run(listener: TcpListener, page: MetricsPage, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            _ = stop.changed() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot take a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let (page, mut stop) = (page.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::time::timeout(LIFE, serve(stream, page)) => {}
                    _ = stop.changed() => {}
                }
                drop(place);
            });
        }
    }
}

async fn serve(stream: TcpStream, page: MetricsPage) {
    let service = service_fn(move |request: Request<Incoming>| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(answer(&request, &page).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(HEADER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

async fn answer(request: &Request<Incoming>, page: &MetricsPage) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(
            StatusCode::NOT_FOUND,
            "There is only /metrics here.\n".into(),
        );
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, String::new());
        let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, allowed);
        return refusal;
    }
    plain(StatusCode::OK, page.text().await)
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(Exposition::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
