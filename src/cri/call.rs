//! What all calls share: the span, the deadline, the log line, the error mapping, and waiting for
//! a row to become what was asked for.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use super::error::code_name;
use super::{CallError, Front};
use crate::id::{ContainerId, ObjectKey};
use crate::state::{now_ns, pull};
use crate::traces;

/// Answer this long before the client gives up, or a tenth of its patience if that is shorter, so
/// that it hears the stage and not silence. Of this, a quarter is for finding out the stage; a call
/// that has not answered after half of it, because it waits for the database, is answered for.
const MARGIN: Duration = Duration::from_millis(100);

/// When the client stops waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    margin: Duration,
}

impl Deadline {
    /// The instant to answer by.
    #[must_use]
    pub(super) fn instant(self) -> Instant {
        self.at
    }

    /// When a call is answered whatever it is at.
    fn latest(self) -> Instant {
        self.at.checked_add(self.margin / 2).unwrap_or(self.at)
    }

    /// The time that is left.
    #[must_use]
    pub(super) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    fn of<Q>(request: &Request<Q>, default: Duration) -> Self {
        let asked = request
            .metadata()
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse_timeout);
        let (patience, margin) = match asked {
            Some(timeout) => {
                let margin = MARGIN.min(timeout / 10);
                (timeout.saturating_sub(margin), margin)
            }
            None => (default, MARGIN),
        };
        let now = Instant::now();
        let at = now.checked_add(patience).unwrap_or(now + default);
        Self { at, margin }
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
        let traced = self.begin_trace(&request);
        let span = tracing::info_span!("call", rpc, id = tracing::field::Empty);
        let started = Instant::now();
        let handled =
            handler(self.clone(), request.into_inner(), deadline).instrument(span.clone());
        let handled = traces::noting(tokio::time::timeout_at(deadline.latest(), handled));
        let (result, subjects) = handled.await;
        let result = result.unwrap_or(Err(CallError::Late { rpc }));
        if let Some(traced) = traced {
            let error = result.as_ref().err();
            self.end_trace(traced, rpc, error, subjects);
        }
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
                let patience = deadline.at + deadline.margin / 4;
                let stage = tokio::time::timeout_at(patience, self.stage(&key)).await;
                // On a machine that is too busy for the database's word, memory knows enough.
                let known = || self.store.progress().describe(&key);
                let stage = stage.unwrap_or_else(|_| known().unwrap_or_else(|| "queued".into()));
                let id = match &key {
                    ObjectKey::Sandbox(id) => id.to_string(),
                    ObjectKey::Container(id) => id.to_string(),
                    ObjectKey::Image(id) => id.clone(),
                    ObjectKey::Pull(pull) => pull::reference_of(pull).to_owned(),
                    ObjectKey::Cleanup(_) | ObjectKey::Attachment(_) | ObjectKey::Prepared => {
                        key.to_string()
                    }
                };
                return Err(CallError::Deadline { noun, id, stage });
            }
        }
    }
}

impl Front {
    /// How far the work on an object has come, in words for a caller whose patience has run out.
    async fn stage(&self, key: &ObjectKey) -> String {
        let stage = self.store.progress().describe(key);
        let job = self.store.job_standing(key).await.ok().flatten();
        let mut text = match (stage, key, &job) {
            (Some(stage), ObjectKey::Container(id), _) if stage == "grace" => {
                self.grace(id).await.unwrap_or(stage)
            }
            (Some(stage), _, _) => stage,
            (None, _, Some(_)) => "queued".into(),
            (None, _, None) => "waiting".into(),
        };
        if let Some((attempts, Some(error))) = job {
            text = format!("{text}, tried {attempts} times, the last error: {error}");
        }
        text
    }

    /// How much of a stop's grace is left.
    async fn grace(&self, id: &ContainerId) -> Option<String> {
        let container = self.store.container(id).await.ok().flatten()?;
        let left_ns = container.stop_at?.saturating_sub(now_ns()).max(0);
        let left_s = Duration::from_nanos(left_ns.unsigned_abs()).as_secs_f64();
        Some(format!(
            "grace, SIGKILL in {left_s:.1} s unless it ends before"
        ))
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
