//! The gRPC servers on both sockets, and their end: calls under way are waited for, connections
//! that are merely open are not. A client that keeps one open and does not answer HTTP/2's last
//! ping would otherwise hold up every restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::admin::AdminService;
use crate::containerd::{Reader, RefuseWrites};
use crate::cri::Front;
use crate::proto::admin::admin_server::AdminServer;
use crate::proto::cri::image_service_server::ImageServiceServer;
use crate::proto::cri::runtime_service_server::RuntimeServiceServer;

/// Largest request, as kubelet has it.
const REQUEST_MAX: usize = 16 * 1024 * 1024;
/// Largest answer: two full streams of ExecSync. Whether a client takes it is its own decision.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// Calls of one connection that may be under way. Calls that wait for something stuck are among
/// them, so there are more than the 200 of HTTP/2 libraries: a status call must not stand in line.
const STREAMS: u32 = 4096;
/// How long the last answers are given to leave.
const PARTING: Duration = Duration::from_millis(200);

/// Where is listened.
pub(super) struct Sockets {
    /// For CRI.
    pub(super) cri: UnixListener,
    /// For operators.
    pub(super) admin: UnixListener,
}

/// What answers on both sockets.
pub(super) struct Servers {
    running: JoinSet<Result<(), tonic::transport::Error>>,
    calls: Arc<Calls>,
}

impl Servers {
    /// Answers on both sockets until told to stop.
    pub(super) fn start(
        sockets: Sockets,
        front: Front,
        reader: Reader,
        admin: AdminService,
        stopped: &watch::Receiver<bool>,
    ) -> Self {
        let calls = Arc::new(Calls::default());
        let runtime = RuntimeServiceServer::new(front.clone())
            .max_decoding_message_size(REQUEST_MAX)
            .max_encoding_message_size(ANSWER_MAX);
        let image = ImageServiceServer::new(front)
            .max_decoding_message_size(REQUEST_MAX)
            .max_encoding_message_size(ANSWER_MAX);
        let builder = || {
            Server::builder()
                .max_concurrent_streams(STREAMS)
                .layer(Count(Arc::clone(&calls)))
                .layer(RefuseWrites)
        };
        let cri = reader.serve(Routes::new(runtime).add_service(image));
        let cri = builder().add_routes(cri);
        let admin = builder().add_service(AdminServer::new(admin));
        let mut running = JoinSet::new();
        for (router, socket) in [(cri, sockets.cri), (admin, sockets.admin)] {
            let end = wait_for_stop(stopped.clone());
            let incoming = UnixListenerStream::new(socket);
            running.spawn(router.serve_with_incoming_shutdown(incoming, end));
        }
        Self { running, calls }
    }

    /// Waits until one of them ends, which none should do by itself.
    pub(super) async fn fail(&mut self) -> anyhow::Result<()> {
        match self.running.join_next().await {
            Some(ended) => ended.context("a server died")?.context("a server ended"),
            None => Ok(()),
        }
    }

    /// After the stop: waits until every call has been answered.
    pub(super) async fn end(&mut self) {
        let answered = async {
            self.calls.none().await;
            tokio::time::sleep(PARTING).await;
        };
        let closed = async { while self.running.join_next().await.is_some() {} };
        tokio::select! {
            () = closed => {}
            () = answered => {}
        }
        self.running.abort_all();
    }
}

async fn wait_for_stop(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is an end as well.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// How many calls are under way.
#[derive(Default)]
struct Calls {
    count: AtomicUsize,
    fewer: Notify,
}

impl Calls {
    async fn none(&self) {
        loop {
            let fewer = self.fewer.notified();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            fewer.await;
        }
    }
}

/// One call, until it is dropped.
struct UnderWay(Arc<Calls>);

impl UnderWay {
    fn new(calls: &Arc<Calls>) -> Self {
        calls.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(calls))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.fewer.notify_waiters();
        }
    }
}

/// Counts the calls that pass through it.
#[derive(Clone)]
struct Count(Arc<Calls>);

impl<S> tower::Layer<S> for Count {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            calls: Arc::clone(&self.0),
        }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    calls: Arc<Calls>,
}

impl<S, Q> tower::Service<Q> for Counted<S>
where
    S: tower::Service<Q>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        let under_way = UnderWay::new(&self.calls);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(under_way);
            answer
        })
    }
}
