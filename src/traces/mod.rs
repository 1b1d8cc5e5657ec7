//! What a call took, stage by stage, for those who follow requests through many programs
//! (OpenTelemetry). Off unless configured; then a call hands over its span when it has been
//! answered, and whoever exports spans cannot hold it up: a full queue loses them, counted.
//!
//! `context.rs` reads whose trace a request belongs to. Sending is `daemon/trace_export.rs`, which
//! alone knows the protocol.

mod config;
mod context;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use crate::metrics::Metrics;

pub use config::TracingConfig;
pub use context::Parent;

/// Spans that wait to be sent.
const WAITING: usize = 4096;
/// Objects that one call may be about; a call is about one or two.
const SUBJECTS: usize = 4;

/// Something that took a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whose trace.
    pub trace_id: [u8; 16],
    /// Which span in it.
    pub span_id: [u8; 8],
    /// Of which it is a part.
    pub parent: Option<[u8; 8]>,
    /// What.
    pub name: String,
    /// From when, ns since 1970.
    pub start_ns: u64,
    /// Until when.
    pub end_ns: u64,
    /// Whether it is a call that was served, or a part of one.
    pub is_call: bool,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// What is known of it.
    pub attributes: Vec<(&'static str, String)>,
}

impl Span {
    /// A part of this one, within its time.
    #[must_use]
    pub fn part(&self, name: &str, start_ns: u64, took_ns: u64) -> Self {
        Self {
            trace_id: self.trace_id,
            span_id: random(),
            parent: Some(self.span_id),
            name: name.to_owned(),
            start_ns,
            end_ns: start_ns.saturating_add(took_ns),
            is_call: false,
            error: None,
            attributes: Vec::new(),
        }
    }
}

/// Where spans are handed over; does nothing when tracing is off. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    queue: mpsc::Sender<Span>,
    /// Of a million requests that belong to no trace, how many begin one.
    rate: u32,
    metrics: Arc<Metrics>,
}

impl Tracer {
    /// A tracer that is on, and what it is given.
    #[must_use]
    pub fn new(rate: u32, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Span>) {
        let (queue, spans) = mpsc::channel(WAITING);
        let on = On {
            queue,
            rate,
            metrics,
        };
        (Self(Some(Arc::new(on))), spans)
    }

    /// Begins the span of a call, if that is to be traced: as its client has decided, or, where it
    /// has not, by chance.
    #[must_use]
    pub fn begin(&self, traceparent: Option<&str>) -> Option<Begun> {
        let on = self.0.as_ref()?;
        let parent = traceparent.and_then(Parent::parse);
        let (trace_id, parent) = match parent {
            Some(parent) if parent.sampled => (parent.trace_id, Some(parent.span_id)),
            Some(_) => return None,
            None if u32::from_ne_bytes(random()) % 1_000_000 < on.rate => (random(), None),
            None => return None,
        };
        Some(Begun {
            trace_id,
            parent,
            start_ns: now(),
        })
    }

    /// Hands spans over. They are lost when too many wait.
    pub fn end(&self, spans: impl IntoIterator<Item = Span>) {
        let Some(on) = &self.0 else { return };
        for span in spans {
            if on.queue.try_send(span).is_err() {
                on.metrics.trace_spans.get(["lost"]).increment();
            }
        }
    }
}

/// A call that is being traced.
#[derive(Debug, Clone)]
pub struct Begun {
    trace_id: [u8; 16],
    parent: Option<[u8; 8]>,
    /// When it began, ns since 1970.
    pub start_ns: u64,
}

impl Begun {
    /// The span of the call, which has been answered.
    #[must_use]
    pub fn ended(self, name: &str, error: Option<String>) -> Span {
        Span {
            trace_id: self.trace_id,
            span_id: random(),
            parent: self.parent,
            name: name.to_owned(),
            start_ns: self.start_ns,
            end_ns: now().max(self.start_ns),
            is_call: true,
            error,
            attributes: Vec::new(),
        }
    }
}

tokio::task_local! {
    /// What the call that runs is about.
    static SUBJECT: RefCell<Vec<String>>;
}

/// Says what the call that runs is about, for its log line and for its span.
pub fn about(id: &str) {
    tracing::Span::current().record("id", id);
    also_about(id);
}

/// Says what else the call is about, for its span alone.
pub fn also_about(id: &str) {
    // Outside of a call nobody wants to know.
    let _ = SUBJECT.try_with(|known| {
        let mut known = known.borrow_mut();
        if known.len() < SUBJECTS {
            known.push(id.to_owned());
        }
    });
}

/// Runs a call, and returns what it was about as well.
pub async fn noting<T>(call: impl Future<Output = T>) -> (T, Vec<String>) {
    SUBJECT
        .scope(RefCell::default(), async {
            let answer = call.await;
            (answer, SUBJECT.with(|known| known.take()))
        })
        .await
}

/// The time, ns since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or(Duration::ZERO).as_nanos()).unwrap_or(u64::MAX)
}

/// Random bytes that are not all zero, which would be no id. They need not be secret.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let flags = rustix::rand::GetRandomFlags::NONBLOCK;
    let filled = rustix::rand::getrandom(&mut bytes, flags);
    if filled.is_err() || bytes == [0; N] {
        bytes[N - 1] = 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_decides_and_chance_where_it_does_not() {
        let (tracer, _spans) = Tracer::new(0, Arc::default());
        let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let begun = tracer.begin(Some(sampled)).expect("the client wants it");
        let span = begun.ended("RunPodSandbox", None);
        assert_eq!(
            span.parent,
            Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31])
        );
        assert_eq!(span.trace_id[..2], [0x0a, 0xf7]);
        let unsampled = sampled.replace("-01", "-00");
        assert!(tracer.begin(Some(&unsampled)).is_none());
        assert!(tracer.begin(None).is_none() && tracer.begin(Some("odd")).is_none());
        let (always, _spans) = Tracer::new(1_000_000, Arc::default());
        assert!(
            always
                .begin(None)
                .is_some_and(|begun| begun.parent.is_none())
        );
        assert!(always.begin(Some(&unsampled)).is_none());
        assert!(Tracer::default().begin(Some(sampled)).is_none());
    }

    #[test]
    fn a_full_queue_loses_spans_and_counts_them() {
        let metrics: Arc<Metrics> = Arc::default();
        let (tracer, mut spans) = Tracer::new(1_000_000, Arc::clone(&metrics));
        let span = tracer.begin(None).expect("always").ended("Version", None);
        tracer.end(std::iter::repeat_n(span, WAITING + 7));
        assert_eq!(metrics.trace_spans.get(["lost"]).get(), 7);
        assert!(spans.try_recv().is_ok());
    }

    #[tokio::test]
    async fn what_a_call_is_about_is_known_after_it() {
        let (answer, subjects) = noting(async {
            about("one");
            tokio::task::yield_now().await;
            about("other");
            7
        })
        .await;
        assert_eq!((answer, subjects), (7, vec!["one".into(), "other".into()]));
        about("outside");
    }
}
