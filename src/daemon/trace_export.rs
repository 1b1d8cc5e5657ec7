//! Sends spans to a collector (OTLP over gRPC), in batches. A collector that is away costs the
//! spans of that time and nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::transport::{Channel, Endpoint};

use crate::metrics::Metrics;
use crate::proto::otlp::any_value::Value;
use crate::proto::otlp::trace_service_client::TraceServiceClient;
use crate::proto::otlp::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans,
    ScopeSpans, Span as Sent, SpanKind, Status, StatusCode,
};
use crate::traces::Span;

/// Spans in one message.
const BATCH: usize = 512;
/// How long spans wait for others to come along.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait for a collector, and for it at the daemon's end.
const DEADLINE: Duration = Duration::from_secs(10);
const PARTING: Duration = Duration::from_secs(1);

/// Sends what comes until the daemon ends.
pub(super) async fn run(
    endpoint: Endpoint,
    mut spans: mpsc::Receiver<Span>,
    metrics: Arc<Metrics>,
    mut stopped: watch::Receiver<bool>,
) {
    let collector = endpoint.timeout(DEADLINE).connect_timeout(DEADLINE);
    let mut sender = Sender {
        client: TraceServiceClient::new(collector.connect_lazy()),
        metrics,
        failing: false,
    };
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        let first = tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            count = spans.recv_many(&mut batch, BATCH) => count,
        };
        if first == 0 {
            return;
        }
        let more = async {
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                if spans.recv_many(&mut batch, room).await == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            _ = tokio::time::timeout(PATIENCE, more) => {}
        }
        sender.send(&batch).await;
    }
    // What the last calls left.
    let room = BATCH.saturating_sub(batch.len());
    for span in std::iter::from_fn(|| spans.try_recv().ok()).take(room) {
        batch.push(span);
    }
    if !batch.is_empty() {
        let _ = tokio::time::timeout(PARTING, sender.send(&batch)).await;
    }
}

struct Sender {
    client: TraceServiceClient<Channel>,
    metrics: Arc<Metrics>,
    failing: bool,
}

impl Sender {
    async fn send(&mut self, spans: &[Span]) {
        let answer = self.client.export(message(spans)).await;
        let outcome = match &answer {
            Ok(_) => "sent",
            Err(_) => "failed",
        };
        let count = u64::try_from(spans.len()).unwrap_or(0);
        self.metrics.trace_spans.get([outcome]).add(count);
        // Once for each time that it is away.
        match answer {
            Err(error) if !self.failing => {
                tracing::warn!(%error, "the collector takes no spans; they are lost meanwhile");
                self.failing = true;
            }
            Err(_) => {}
            Ok(_) => self.failing = false,
        }
    }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
    }
}

fn message(spans: &[Span]) -> ExportTraceServiceRequest {
    let node = rustix::system::uname();
    let resource = Resource {
        attributes: vec![
            attribute("service.name", "quiltd"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("host.name", &node.nodename().to_string_lossy()),
        ],
    };
    let scope = InstrumentationScope {
        name: "quiltd".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans: spans.iter().map(sent).collect(),
            }],
        }],
    }
}

fn sent(span: &Span) -> Sent {
    let kind = match span.is_call {
        true => SpanKind::Server,
        false => SpanKind::Internal,
    };
    Sent {
        trace_id: span.trace_id.to_vec(),
        span_id: span.span_id.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: span.start_ns,
        end_time_unix_nano: span.end_ns,
        attributes: span
            .attributes
            .iter()
            .map(|(key, value)| attribute(key, value))
            .collect(),
        status: span.error.as_ref().map(|error| Status {
            message: error.clone(),
            code: StatusCode::Error.into(),
        }),
    }
}
