//! Waiting on a condition with a bound. Tests never sleep for a guessed time.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take to come true before the test fails.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Between two looks. Short beside every bound, long beside the cost of a look.
const PERIOD: Duration = Duration::from_millis(20);

/// A bound for this machine: `QUILT_SLOW` says how many times as long everything takes here, as in
/// a virtual machine whose processor is a program (`hack/vm/jobs.sh`).
fn stretched(bound: Duration) -> Duration {
    let told = std::env::var("QUILT_SLOW").ok();
    let times = told.map_or(1, |told| told.parse().expect("QUILT_SLOW is a number"));
    bound * times
}

/// Looks until `check` finds something, and fails the test after [`BOUND`].
pub(crate) async fn eventually<T, F>(what: &str, check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    eventually_within(BOUND, what, check).await
}

/// [`eventually`] with a bound of its own.
pub(crate) async fn eventually_within<T, F>(
    bound: Duration,
    what: &str,
    check: impl FnMut() -> F,
) -> T
where
    F: Future<Output = Option<T>>,
{
    let found = appears(bound, check).await;
    found.unwrap_or_else(|| panic!("not within {bound:?}: {what}"))
}

/// Looks until `check` finds something or the bound has passed.
pub(crate) async fn appears<T, F>(bound: Duration, mut check: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Option<T>>,
{
    let end = Instant::now() + stretched(bound);
    loop {
        let found = check().await;
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Waits for what comes by itself, and fails the test after [`BOUND`].
pub(crate) async fn in_time<T>(what: &str, coming: impl Future<Output = T>) -> T {
    in_time_within(BOUND, what, coming).await
}

/// [`in_time`] with a bound of its own.
pub(crate) async fn in_time_within<T>(
    bound: Duration,
    what: &str,
    coming: impl Future<Output = T>,
) -> T {
    let come = tokio::time::timeout(stretched(bound), coming).await;
    come.unwrap_or_else(|_| panic!("not within {bound:?}: {what}"))
}

/// Looks from a thread that may block, until `check` finds something or the bound has passed.
pub(crate) fn poll<T>(bound: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + stretched(bound);
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(PERIOD);
    }
}
