//! Calls as spans of a trace: the call itself, below it what was done to the objects that it was
//! about, and below that the stages of it.

use tonic::Request;

use super::Front;
use super::error::{CallError, code_name};
use crate::state::operation::Operation;
use crate::traces::{Begun, Span};

/// Operations of an object that may belong to one call.
const OPERATIONS: u32 = 4;

impl Front {
    /// Begins the span of a call, if that is to be traced.
    pub(super) fn begin_trace<Q>(&self, request: &Request<Q>) -> Option<Begun> {
        let header = request.metadata().get("traceparent");
        self.tracer
            .begin(header.and_then(|value| value.to_str().ok()))
    }

    /// Hands the span over; what was done is read when the answer is on its way.
    pub(super) fn end_trace(
        &self,
        begun: Begun,
        rpc: &'static str,
        error: Option<&CallError>,
        subjects: Vec<String>,
    ) {
        let front = self.clone();
        let code = error.map(|error| code_name(error.code()));
        let mut call = begun.ended(rpc, error.map(ToString::to_string));
        call.attributes = vec![
            ("rpc.system", "grpc".into()),
            ("rpc.method", rpc.into()),
            ("rpc.grpc.status", code.unwrap_or("OK").into()),
        ];
        call.attributes
            .extend(subjects.iter().map(|id| ("quilt.object", id.clone())));
        tokio::spawn(async move {
            let mut spans = Vec::new();
            for id in &subjects {
                let done = front.store.operations(id, OPERATIONS).await;
                for operation in done.unwrap_or_default() {
                    spans.extend(parts(&call, &operation));
                }
            }
            front.tracer.end(std::iter::once(call).chain(spans));
        });
    }
}

/// An operation and its stages, which come one after the other, if it was done during the call.
fn parts(call: &Span, done: &Operation) -> Vec<Span> {
    let ns = |value: i64| u64::try_from(value).unwrap_or(0);
    let (start, took) = (ns(done.started_at), ns(done.duration_ns));
    let end = start.saturating_add(took);
    if end < call.start_ns || start > call.end_ns {
        return Vec::new();
    }
    let mut whole = call.part(&done.kind, start, took);
    whole.error.clone_from(&done.error);
    whole.attributes = vec![("quilt.object", done.object_id.clone())];
    let mut at = start;
    let stages = done.stages.iter().map(|(name, took)| {
        let took = ns(*took);
        let stage = whole.part(name, at, took);
        at = at.saturating_add(took);
        stage
    });
    let stages: Vec<Span> = stages.collect();
    std::iter::once(whole).chain(stages).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::traces::Tracer;

    #[test]
    fn what_was_done_during_a_call_is_a_part_of_it() {
        let (tracer, _spans) = Tracer::new(1_000_000, Arc::default());
        let begun = tracer.begin(None).expect("always");
        let start = begun.start_ns;
        let call = begun.ended("RunPodSandbox", None);
        let done = |started_at: u64| Operation {
            kind: "run_sandbox".into(),
            object_id: "id".into(),
            started_at: i64::try_from(started_at).expect("a time"),
            duration_ns: 30,
            error: Some("no".into()),
            stages: vec![("queue".into(), 10), ("network".into(), 20)],
        };
        let spans = parts(&call, &done(start));
        let [whole, queue, network] = spans.as_slice() else {
            panic!("{spans:?}");
        };
        assert_eq!(whole.parent, Some(call.span_id));
        assert_eq!((whole.start_ns, whole.end_ns), (start, start + 30));
        assert_eq!(whole.error.as_deref(), Some("no"));
        assert_eq!(
            (queue.parent, network.parent),
            (Some(whole.span_id), queue.parent)
        );
        assert_eq!((network.start_ns, network.end_ns), (start + 10, start + 30));
        assert!(spans.iter().all(|span| span.trace_id == call.trace_id));
        // What was done to the same object before is another call's.
        assert!(parts(&call, &done(start - 1000)).is_empty());
    }
}
