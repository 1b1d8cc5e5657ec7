//! What all calls share: the span, the deadline, the log line, the error mapping, and waiting for
//! a row to become what was asked for.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use super::error::code_name;
use super::{CallError, Front};
use crate::id::ObjectKey;

/// Answer this long before the client gives up, so that it hears the stage and not silence.
const MARGIN: Duration = Duration::from_millis(50);
/// Handlers answer at the deadline by themselves, with the stage. This much later one that does not,
/// because it waits for the database, is answered for; still before the client gives up.
const LATE: Duration = Duration::from_millis(20);

/// When the client stops waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// The instant to answer by.
    #[must_use]
    pub(super) fn instant(self) -> Instant {
        self.0
    }

    /// When a call is answered whatever it is at.
    fn latest(self) -> Instant {
        self.0.checked_add(LATE).unwrap_or(self.0)
    }

    /// The time that is left.
    #[must_use]
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    fn of<Q>(request: &Request<Q>, default: Duration) -> Self {
        let asked = request
            .metadata()
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse_timeout);
        let patience = match asked {
            Some(timeout) => timeout.saturating_sub(MARGIN.min(timeout / 10)),
            None => default,
        };
        let now = Instant::now();
        Self(now.checked_add(patience).unwrap_or(now + default))
    }
}

/// A `grpc-timeout` header: at most eight digits and a unit (gRPC over HTTP/2, "Requests").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

impl Front {
    /// Runs one call: everything a call has in common is here.
    pub(super) async fn call<Q, A, F, R>(
        &self,
        rpc: &'static str,
        request: Request<Q>,
        handler: F,
    ) -> Result<Response<A>, Status>
    where
        F: FnOnce(Self, Q, Deadline) -> R,
        R: Future<Output = Result<A, CallError>>,
    {
        let deadline = Deadline::of(&request, self.info.default_deadline);
        let span = tracing::info_span!("call", rpc, id = tracing::field::Empty);
        let started = Instant::now();
        let handled =
            handler(self.clone(), request.into_inner(), deadline).instrument(span.clone());
        let result = tokio::time::timeout_at(deadline.latest(), handled).await;
        let result = result.unwrap_or(Err(CallError::Late { rpc }));
        let code = result.as_ref().err().map_or(Code::Ok, CallError::code);
        let took = started.elapsed();
        let labels = [rpc, code_name(code)];
        self.store.metrics().api.get(labels).observe(took);
        let duration_us = took.as_micros();
        span.in_scope(|| match &result {
            Ok(_) if is_poll(rpc) => tracing::debug!(duration_us, "ok"),
            Ok(_) => tracing::info!(duration_us, "ok"),
            Err(CallError::NotFound { .. }) => tracing::info!(duration_us, "not found"),
            Err(error) => tracing::warn!(duration_us, %error, "failed"),
        });
        Ok(Response::new(result?))
    }

    /// Waits until `look` finds what was asked for, the deadline passes, or an error comes up.
    /// `look` runs once at once, and then after each commit that touched `key`.
    pub(super) async fn wait_for<T, L, R>(
        &self,
        noun: &'static str,
        key: ObjectKey,
        deadline: Deadline,
        mut look: L,
    ) -> Result<T, CallError>
    where
        L: FnMut() -> R,
        R: Future<Output = Result<Option<T>, CallError>>,
    {
        let subscription = self.store.wakes().subscribe(key.clone());
        loop {
            let woken = subscription.next();
            if let Some(found) = look().await? {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline.instant(), woken)
                .await
                .is_err()
            {
                let stage = self.store.progress().stage(&key).unwrap_or("queued");
                let id = key.to_string();
                let id = id
                    .split_once('/')
                    .map_or(id.as_str(), |(_, id)| id)
                    .to_owned();
                return Err(CallError::Deadline { noun, id, stage });
            }
        }
    }
}

/// Calls that kubelet makes every second; their log lines would drown the others.
fn is_poll(rpc: &str) -> bool {
    rpc.starts_with("List") || rpc.ends_with("Status") || matches!(rpc, "Version" | "ImageFsInfo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("120S"), Some(Duration::from_secs(120)));
        assert_eq!(parse_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(
            parse_timeout("99999999n"),
            Some(Duration::from_nanos(99_999_999))
        );
        for bad in ["", "S", "123456789S", "12x", "-1S", "1é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
