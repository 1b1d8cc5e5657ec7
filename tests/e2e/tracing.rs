//! Spans of calls, as a collector gets them.

use std::sync::Mutex;

use quilt::proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use quilt::proto::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, Span, SpanKind, StatusCode,
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::support::cri::*;
use crate::support::pod::shell;
use crate::support::{Node, eventually};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let batches = request.into_inner().resource_spans;
        let scopes = batches.into_iter().flat_map(|batch| batch.scope_spans);
        let mut kept = self.0.lock().expect("a lock");
        kept.extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a port of its own, until the test ends.
    async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let service = TraceServiceServer::new(self.clone());
        let incoming = TcpListenerStream::new(listener);
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        format!("http://{address}")
    }

    fn all(&self) -> Vec<Span> {
        self.0.lock().expect("a lock").clone()
    }

    /// Waits for the span of a call.
    async fn span(&self, name: &str) -> Span {
        eventually(&format!("a span {name}"), || {
            let found = self.all().into_iter().find(|span| span.name == name);
            async move { found }
        })
        .await
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request of a client that traces, or says that it does not.
fn traced<T>(message: T, flags: &str) -> Request<T> {
    let mut request = crate::support::client::request(message);
    let header = format!("00-{TRACE}-{PARENT}-{flags}");
    let header = header.parse().expect("a header");
    request.metadata_mut().insert("traceparent", header);
    request
}

#[tokio::test]
async fn a_call_joins_the_trace_of_its_client_with_its_stages() {
    let collector = Collector::default();
    let endpoint = collector.listen().await;
    let mut node = Node::prepare(&format!("[tracing]\nendpoint = \"{endpoint}\"\n"));
    node.restart().await;
    let pod = node.pod("first").await;
    let mut runtime = node.cri.runtime();
    let config = node.pod_config("traced");
    let message = RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    };
    let answer = runtime.run_pod_sandbox(traced(message, "01")).await;
    let id = answer.expect("RunPodSandbox").into_inner().pod_sandbox_id;
    let call = collector.span("RunPodSandbox").await;
    assert_eq!(
        (hex(&call.trace_id), hex(&call.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert_eq!(call.kind(), SpanKind::Server);
    assert!(call.status.is_none() && call.start_time_unix_nano < call.end_time_unix_nano);
    let done = collector.span("run_sandbox").await;
    assert_eq!(done.parent_span_id, call.span_id);
    let stage = collector.span("namespaces").await;
    assert_eq!(stage.parent_span_id, done.span_id);
    let known = format!("{:?}", done.attributes);
    assert!(known.contains(&id), "{known}");

    // A failure says so.
    let container = shell("broken", "true");
    let mut broken = container.clone();
    broken.command = vec!["/no/such".into()];
    let broken = pod.create(&broken).await;
    let message = StartContainerRequest {
        container_id: broken,
    };
    let refused = runtime.start_container(traced(message, "01")).await;
    refused.expect_err("there is no such command");
    let failed = collector.span("StartContainer").await;
    let status = failed.status.clone().expect("a status");
    assert_eq!(status.code(), StatusCode::Error);
    assert!(status.message.contains("/no/such"), "{status:?}");

    // A client that does not trace is not traced, nor is one that says nothing of it.
    let unsampled = traced(VersionRequest::default(), "00");
    runtime.version(unsampled).await.expect("Version");
    node.cri.version().await.expect("Version");
    let sampled = traced(StatusRequest::default(), "01");
    runtime.status(sampled).await.expect("Status");
    collector.span("Status").await;
    let names: Vec<_> = collector.all().into_iter().map(|span| span.name).collect();
    assert!(!names.iter().any(|name| name == "Version"), "{names:?}");
    assert_eq!(
        names.iter().filter(|name| *name == "RunPodSandbox").count(),
        1
    );
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_nothing() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", gone.local_addr().expect("an address"));
    drop(gone);
    let rate = "sampling_rate_per_million = 1000000";
    let mut node = Node::prepare(&format!("[tracing]\nendpoint = \"{endpoint}\"\n{rate}\n"));
    node.restart().await;
    let pod = node.pod("alone").await;
    pod.idle("main").await;
    eventually("spans are counted as failed", || {
        let page = node.operate(&["metrics"]).stdout;
        let page = String::from_utf8_lossy(&page).into_owned();
        let failed = page.contains("quilt_trace_spans_total{outcome=\"failed\"}");
        async move { failed.then_some(()) }
    })
    .await;
    // Nor is the end, however many spans wait then.
    node.cri.version().await.expect("Version");
    assert!(node.terminate().success());
    node.restart().await;
}
