//! The newest usage figures of each container and pod, kept by the sampler, and of unfinished
//! downloads. In memory: they are stale in seconds anyway.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::container::Container;
use super::now_ns;
use crate::id::{ContainerId, SandboxId};
use crate::lifecycle::usage::{Interface, Usage};

/// A container that was started less than this ago (ns) may be on its way to its first sample.
const FIRST_WITHIN_NS: i64 = 5_000_000_000;
/// Longest wait for it.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// Usage of one container at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// When, ns since 1970.
    pub at: i64,
    /// CPU time used per second since the sample before, ns/s.
    pub cpu_rate_nano_cores: Option<u64>,
    /// What its cgroup uses.
    pub usage: Usage,
    /// Its processes.
    pub processes: ProcessFigures,
}

/// What the processes of a container hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    /// How many there are, threads not counted.
    pub count: u64,
    /// Their open descriptors.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
    /// How many descriptors the first of them may open; `None` is without limit.
    pub descriptors_limit: Option<u64>,
}

/// Usage of one pod at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodSample {
    /// When, ns since 1970.
    pub at: i64,
    /// CPU time used per second since the sample before, ns/s.
    pub cpu_rate_nano_cores: Option<u64>,
    /// What its own cgroup uses; `None` when it has none, and its containers' is all.
    pub usage: Option<Usage>,
    /// Processes in that cgroup.
    pub processes: u64,
    /// Its network; none with the node's own.
    pub interfaces: Vec<Interface>,
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

/// The file system of the writable layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Its size, bytes.
    pub bytes: u64,
    /// Files it can hold.
    pub inodes: u64,
    /// Those that are free.
    pub free_inodes: u64,
}

/// Newest samples.
#[derive(Default)]
pub struct Samples {
    containers: Mutex<HashMap<ContainerId, Arc<Sample>>>,
    pods: Mutex<HashMap<SandboxId, Arc<PodSample>>>,
    layers: Mutex<HashMap<ContainerId, LayerUsage>>,
    file_system: Mutex<FileSystem>,
    downloads: Mutex<(u64, u64)>,
    /// Told of each new sample; whether the sampler has been through all once.
    taken: watch::Sender<bool>,
}

impl Samples {
    /// Waits, for a moment at most, until there is a first sample of each of these containers and
    /// of their pods: one that has just been started gets it beside the answer to its start, and
    /// all of them when the daemon has. Of what has run for longer and has none, none can be had.
    pub async fn first_of(&self, running: impl Iterator<Item = &Container>) {
        let now = now_ns();
        let mut taken = self.taken.subscribe();
        let lacks = |one: &Container, through: bool| {
            let started = one.started_at.unwrap_or(0);
            let is_new = now.saturating_sub(started) < FIRST_WITHIN_NS;
            let sampled = || self.get(&one.id).is_some() && self.pod(&one.sandbox_id).is_some();
            (is_new || !through) && !sampled()
        };
        let running: Vec<&Container> = running.collect();
        let all = async {
            loop {
                let through = *taken.borrow_and_update();
                let missing = running.iter().any(|one| lacks(one, through));
                if !missing || taken.changed().await.is_err() {
                    return;
                }
            }
        };
        // What has no figures by then has none in the answer.
        let _ = tokio::time::timeout(FIRST_PATIENCE, all).await;
    }

    /// The sampler has been through all.
    pub fn been_through(&self) {
        self.taken
            .send_if_modified(|through| !std::mem::replace(through, true));
    }

    /// The newest sample of a container.
    #[must_use]
    pub fn get(&self, id: &ContainerId) -> Option<Arc<Sample>> {
        lock(&self.containers).get(id).cloned()
    }

    /// Replaces a container's sample, working out the CPU rate from the one before.
    pub fn put(&self, id: &ContainerId, mut sample: Sample) {
        let mut samples = lock(&self.containers);
        if let Some(before) = samples.get(id) {
            let cpu = (before.usage.cpu_usage_ns, sample.usage.cpu_usage_ns);
            sample.cpu_rate_nano_cores =
                rate((before.at, sample.at), cpu).or(before.cpu_rate_nano_cores);
        }
        samples.insert(id.clone(), Arc::new(sample));
        drop(samples);
        self.taken.send_modify(|_| ());
    }

    /// The newest sample of a pod.
    #[must_use]
    pub fn pod(&self, id: &SandboxId) -> Option<Arc<PodSample>> {
        lock(&self.pods).get(id).cloned()
    }

    /// Replaces a pod's sample, working out the CPU rate from the one before. Whose network could
    /// not be looked at now keeps what it had: counters do not go back.
    pub fn put_pod(&self, id: &SandboxId, mut sample: PodSample) {
        let mut samples = lock(&self.pods);
        if let Some(before) = samples.get(id) {
            let used = |sample: &PodSample| sample.usage.as_ref().and_then(|u| u.cpu_usage_ns);
            let cpu = (used(before), used(&sample));
            sample.cpu_rate_nano_cores =
                rate((before.at, sample.at), cpu).or(before.cpu_rate_nano_cores);
            if sample.interfaces.is_empty() {
                sample.interfaces.clone_from(&before.interfaces);
            }
        }
        samples.insert(id.clone(), Arc::new(sample));
        drop(samples);
        self.taken.send_modify(|_| ());
    }

    /// Of whom there are samples.
    #[must_use]
    pub fn held(&self) -> (Vec<ContainerId>, Vec<SandboxId>) {
        let containers = lock(&self.containers).keys().cloned().collect();
        (containers, lock(&self.pods).keys().cloned().collect())
    }

    /// Forgets what a container used, though not of its writable layer.
    pub fn remove_container(&self, id: &ContainerId) {
        lock(&self.containers).remove(id);
    }

    /// Forgets a pod.
    pub fn remove_pod(&self, id: &SandboxId) {
        lock(&self.pods).remove(id);
    }

    /// The file system of the writable layers, as it was last looked at.
    #[must_use]
    pub fn file_system(&self) -> FileSystem {
        *lock(&self.file_system)
    }

    /// Replaces that.
    pub fn put_file_system(&self, figures: FileSystem) {
        *lock(&self.file_system) = figures;
    }

    /// What a container's writable layer took when it was last measured.
    #[must_use]
    pub fn layer(&self, id: &ContainerId) -> Option<LayerUsage> {
        lock(&self.layers).get(id).copied()
    }

    /// Replaces that.
    pub fn put_layer(&self, id: &ContainerId, usage: LayerUsage) {
        lock(&self.layers).insert(id.clone(), usage);
    }

    /// What all writable layers together took when they were last measured, and when the oldest of
    /// these measures was taken; `None` if there is none.
    #[must_use]
    pub fn all_layers(&self) -> Option<LayerUsage> {
        let layers = lock(&self.layers);
        layers.values().copied().reduce(|sum, one| LayerUsage {
            at: sum.at.min(one.at),
            bytes: sum.bytes + one.bytes,
            inodes: sum.inodes + one.inodes,
        })
    }

    /// What unfinished downloads of images took when they were last measured: bytes and inodes.
    #[must_use]
    pub fn downloads(&self) -> (u64, u64) {
        *lock(&self.downloads)
    }

    /// Replaces that.
    pub fn put_downloads(&self, bytes: u64, inodes: u64) {
        *lock(&self.downloads) = (bytes, inodes);
    }

    /// Forgets what was measured of the writable layers that are none of these.
    pub fn keep_layers(&self, is_known: impl Fn(&ContainerId) -> bool) {
        lock(&self.layers).retain(|id, _| is_known(id));
    }

    /// Forgets a container.
    pub fn remove(&self, id: &ContainerId) {
        lock(&self.containers).remove(id);
        lock(&self.layers).remove(id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CPU time per second between two moments (ns since 1970), from what was used up to each (ns).
fn rate((before, now): (i64, i64), used: (Option<u64>, Option<u64>)) -> Option<u64> {
    let elapsed = u128::try_from(now.checked_sub(before)?)
        .ok()
        .filter(|ns| *ns > 0)?;
    let used = used.1?.checked_sub(used.0?)?;
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

    fn used(cpu_usage_ns: u64) -> Usage {
        Usage {
            cpu_usage_ns: Some(cpu_usage_ns),
            ..Usage::default()
        }
    }

    #[test]
    fn half_a_second_of_cpu_in_a_second_is_half_a_core() {
        let samples = Samples::default();
        let id = ContainerId::random();
        let at = |at, cpu| Sample {
            at,
            usage: used(cpu),
            ..Sample::default()
        };
        samples.put(&id, at(1_000_000_000, 100));
        samples.put(&id, at(2_000_000_000, 500_000_100));
        let sample = samples.get(&id).expect("a sample");
        assert_eq!(sample.cpu_rate_nano_cores, Some(500_000_000));
    }

    #[test]
    fn a_pod_keeps_its_network_while_nobody_can_look_at_it() {
        let samples = Samples::default();
        let id = SandboxId::random();
        let interfaces = vec![Interface {
            name: "eth0".into(),
            ..Interface::default()
        }];
        let at = |at, interfaces| PodSample {
            at,
            usage: Some(used(u64::try_from(at).expect("a time") / 4)),
            interfaces,
            ..PodSample::default()
        };
        samples.put_pod(&id, at(1_000_000_000, interfaces.clone()));
        samples.put_pod(&id, at(3_000_000_000, Vec::new()));
        let pod = samples.pod(&id).expect("a sample");
        assert_eq!(pod.cpu_rate_nano_cores, Some(250_000_000));
        assert_eq!(pod.interfaces, interfaces);
        assert_eq!(samples.held(), (vec![], vec![id.clone()]));
        samples.remove_pod(&id);
        assert_eq!(samples.pod(&id), None);
    }
}
