//! The newest usage figures of each container, kept by the sampler, and of unfinished downloads. In
//! memory: they are stale in seconds anyway.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::id::ContainerId;

/// Usage of one container at one moment. What the kernel does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, ns since 1970.
    pub at: i64,
    /// CPU time used since it started, ns.
    pub cpu_usage_ns: Option<u64>,
    /// CPU time used per second since the sample before, ns/s.
    pub cpu_rate_nano_cores: Option<u64>,
    /// Memory charged to it, bytes.
    pub memory_usage_bytes: Option<u64>,
    /// The part that cannot be dropped easily: usage less inactive file pages, bytes.
    pub memory_working_set_bytes: Option<u64>,
    /// What is left below its limit, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Anonymous memory, bytes.
    pub memory_rss_bytes: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that had to read.
    pub major_page_faults: Option<u64>,
}

/// What a container's writable layer takes on disk at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// When, ns since 1970.
    pub at: i64,
    /// Allocated bytes.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

/// Newest samples by container.
#[derive(Default)]
pub struct Samples {
    usage: Mutex<HashMap<ContainerId, Sample>>,
    layers: Mutex<HashMap<ContainerId, LayerUsage>>,
    downloads: Mutex<(u64, u64)>,
}

impl Samples {
    /// The newest sample of a container.
    #[must_use]
    pub fn get(&self, id: &ContainerId) -> Option<Sample> {
        self.usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .copied()
    }

    /// Replaces a container's sample, working out the CPU rate from the one before.
    pub fn put(&self, id: &ContainerId, mut sample: Sample) {
        let mut samples = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = samples.get(id) {
            sample.cpu_rate_nano_cores = rate(before, &sample).or(before.cpu_rate_nano_cores);
        }
        samples.insert(id.clone(), sample);
    }

    /// What a container's writable layer took when it was last measured.
    #[must_use]
    pub fn layer(&self, id: &ContainerId) -> Option<LayerUsage> {
        self.layers().get(id).copied()
    }

    /// Replaces that.
    pub fn put_layer(&self, id: &ContainerId, usage: LayerUsage) {
        self.layers().insert(id.clone(), usage);
    }

    /// What all writable layers together took when they were last measured, and when the oldest of
    /// these measures was taken; `None` if there is none.
    #[must_use]
    pub fn all_layers(&self) -> Option<LayerUsage> {
        let layers = self.layers();
        layers.values().copied().reduce(|sum, one| LayerUsage {
            at: sum.at.min(one.at),
            bytes: sum.bytes + one.bytes,
            inodes: sum.inodes + one.inodes,
        })
    }

    /// What unfinished downloads of images took when they were last measured: bytes and inodes.
    #[must_use]
    pub fn downloads(&self) -> (u64, u64) {
        *self
            .downloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces that.
    pub fn put_downloads(&self, bytes: u64, inodes: u64) {
        *self
            .downloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = (bytes, inodes);
    }

    /// Forgets what was measured of the writable layers that are none of these.
    pub fn keep_layers(&self, is_known: impl Fn(&ContainerId) -> bool) {
        self.layers().retain(|id, _| is_known(id));
    }

    /// Forgets a container.
    pub fn remove(&self, id: &ContainerId) {
        self.usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        self.layers().remove(id);
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<ContainerId, LayerUsage>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rate(before: &Sample, now: &Sample) -> Option<u64> {
    let elapsed = u128::try_from(now.at.checked_sub(before.at)?)
        .ok()
        .filter(|ns| *ns > 0)?;
    let used = now.cpu_usage_ns?.checked_sub(before.cpu_usage_ns?)?;
    u64::try_from(u128::from(used) * 1_000_000_000 / elapsed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_summed_up() {
        let samples = Samples::default();
        assert_eq!(samples.all_layers(), None);
        let (one, two) = (ContainerId::random(), ContainerId::random());
        let usage = |at, bytes, inodes| LayerUsage { at, bytes, inodes };
        samples.put_layer(&one, usage(7, 100, 1));
        samples.put_layer(&two, usage(5, 10, 2));
        assert_eq!(samples.all_layers(), Some(usage(5, 110, 3)));
        samples.remove(&one);
        assert_eq!(samples.all_layers(), Some(usage(5, 10, 2)));
        samples.keep_layers(|id| *id == one);
        assert_eq!(samples.all_layers(), None);
    }

    #[test]
    fn half_a_second_of_cpu_in_a_second_is_half_a_core() {
        let samples = Samples::default();
        let id = ContainerId::random();
        let at = |at, used| Sample {
            at,
            cpu_usage_ns: Some(used),
            ..Default::default()
        };
        samples.put(&id, at(1_000_000_000, 100));
        samples.put(&id, at(2_000_000_000, 500_000_100));
        let sample = samples.get(&id).expect("a sample");
        assert_eq!(sample.cpu_rate_nano_cores, Some(500_000_000));
    }
}
