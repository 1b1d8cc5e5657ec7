//! Counters, gauges and histograms: an atomic each, and families of them by label.
//!
//! Labels are words of the program's own text, so a family is as large as the program and no
//! larger, whatever clients send.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Upper ends of a histogram's buckets, in nanoseconds; one without an end follows.
pub(super) const BUCKETS_NS: [u64; 17] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    30_000_000_000,
    120_000_000_000,
];

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So much more of it has happened.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// It is this now.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more until the answer is dropped.
    #[must_use]
    pub fn enter(&self) -> Reading<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Reading(self)
    }
}

/// One of those a [`Gauge`] counts.
#[derive(Debug)]
pub struct Reading<'g>(&'g Gauge);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long things took.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bucket, and one for what is longer than all.
    counts: [AtomicU64; BUCKETS_NS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Something took this long.
    pub fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let place = BUCKETS_NS.partition_point(|end| *end < ns);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Observations of each bucket, and the sum of all in nanoseconds.
    pub(super) fn read(&self) -> ([u64; BUCKETS_NS.len() + 1], u64) {
        let counts = std::array::from_fn(|place| self.counts[place].load(Ordering::Relaxed));
        (counts, self.sum_ns.load(Ordering::Relaxed))
    }
}

/// Instruments of one kind by the values of their labels.
#[derive(Debug)]
pub struct Family<const N: usize, M> {
    // Written when a label is met for the first time; never held across anything that waits.
    members: RwLock<HashMap<[&'static str; N], Arc<M>>>,
}

impl<const N: usize, M> Default for Family<N, M> {
    fn default() -> Self {
        Self {
            members: RwLock::default(),
        }
    }
}

impl<const N: usize, M: Default> Family<N, M> {
    /// The instrument with these labels.
    pub fn get(&self, labels: [&'static str; N]) -> Arc<M> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = members.get(&labels) {
            return Arc::clone(member);
        }
        drop(members);
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(members.entry(labels).or_default())
    }

    /// Looks at every instrument, in the order of the labels.
    pub(super) fn each(&self, mut look: impl FnMut([&'static str; N], &M)) {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let mut members: Vec<_> = members
            .iter()
            .map(|(labels, member)| (*labels, Arc::clone(member)))
            .collect();
        members.sort_unstable_by_key(|(labels, _)| *labels);
        for (labels, member) in members {
            look(labels, &member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(50));
        histogram.observe(Duration::from_nanos(50_001));
        histogram.observe(Duration::from_secs(3600));
        let (counts, sum_ns) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[BUCKETS_NS.len()]), (1, 1, 1));
        assert_eq!(sum_ns, 50_000 + 50_001 + 3_600_000_000_000);
    }

    #[test]
    fn a_gauge_counts_what_is_under_way() {
        let gauge = Gauge::default();
        let (one, two) = (gauge.enter(), gauge.enter());
        assert_eq!(gauge.get(), 2);
        drop((one, two));
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn equal_labels_are_one_instrument() {
        let family: Family<1, Counter> = Family::default();
        family.get(["a"]).increment();
        family.get(["a"]).increment();
        family.get(["b"]).increment();
        let mut seen = Vec::new();
        family.each(|[label], counter| seen.push((label, counter.get())));
        assert_eq!(seen, [("a", 2), ("b", 1)]);
    }
}
