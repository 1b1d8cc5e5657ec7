//! Reads the usage of running containers and their pods every few seconds, so that no request has
//! to.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::watch;

use super::process_figures::figures;
use super::{Back, ReconcileError, blocking};
use crate::cgroup::CgroupPath;
use crate::id::{ContainerId, SandboxId};
use crate::lifecycle::container::State;
use crate::lifecycle::spec::NamespaceMode;
use crate::lifecycle::usage::Interface;
use crate::state::container::{Container, ContainerFilter};
use crate::state::now_ns;
use crate::state::sample::{FileSystem, PodSample, Sample};
use crate::state::sandbox::{Sandbox, SandboxFilter};

/// Samples once in each `interval` until `stop` turns true.
pub async fn run(back: Back, interval: Duration, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = round(&back).await {
            tracing::warn!(error = error.full_text(), "cannot sample");
        }
    }
}

async fn round(back: &Back) -> Result<(), ReconcileError> {
    // Before it is known who is there: one that starts meanwhile has its first sample already.
    let held = back.store.samples().held();
    let running = ContainerFilter {
        state: Some(State::Running),
        ..Default::default()
    };
    let running = back.store.containers(&running).await?;
    let ready = SandboxFilter {
        ready: Some(true),
        ..Default::default()
    };
    let pods = back.store.sandboxes(&ready).await?;
    forget_gone(back, held, &running, &pods);
    let back = back.clone();
    blocking(move || {
        sample_file_system(&back);
        for pod in &pods {
            let members = running.iter().filter(|one| one.sandbox_id == pod.id);
            let members: Vec<&Container> = members.collect();
            sample_pod(&back, pod, &members);
        }
        back.store.samples().been_through();
        Ok(())
    })
    .await
}

/// Forgets those that have samples and are gone: one that ended while it was looked at has got its
/// last sample after it was forgotten.
fn forget_gone(
    back: &Back,
    (containers, pods): (Vec<ContainerId>, Vec<SandboxId>),
    running: &[Container],
    ready: &[Sandbox],
) {
    let samples = back.store.samples();
    let there: HashSet<_> = running.iter().map(|one| &one.id).collect();
    for id in containers.iter().filter(|id| !there.contains(id)) {
        samples.remove_container(id);
    }
    let there: HashSet<_> = ready.iter().map(|pod| &pod.id).collect();
    for id in pods.iter().filter(|id| !there.contains(id)) {
        samples.remove_pod(id);
    }
}

/// Takes the sample of a container that has just been started, and of its pod.
pub(super) async fn first_sample(back: &Back, id: &ContainerId) -> Result<(), ReconcileError> {
    let Some(container) = back.store.container(id).await? else {
        return Ok(());
    };
    let Some(pod) = back.store.sandbox(&container.sandbox_id).await? else {
        return Ok(());
    };
    let back = back.clone();
    blocking(move || {
        sample_file_system(&back);
        sample_pod(&back, &pod, &[&container]);
        Ok(())
    })
    .await
}

fn sample_file_system(back: &Back) {
    if let Ok(figures) = rustix::fs::statvfs(&back.paths.root) {
        back.store.samples().put_file_system(FileSystem {
            bytes: figures.f_blocks.saturating_mul(figures.f_frsize),
            inodes: figures.f_files,
            free_inodes: figures.f_ffree,
        });
    }
}

/// Takes the samples of a pod and of these running containers of it. What cannot be read is told as
/// unknown: it keeps nothing else from being sampled.
fn sample_pod(back: &Back, pod: &Sandbox, members: &[&Container]) {
    let unreadable = |error: &dyn std::error::Error| {
        tracing::debug!(sandbox = %pod.id, %error, "cannot sample");
    };
    let parent = match back.pod_cgroup(&pod.spec.cgroup_parent) {
        Ok(parent) => parent,
        Err(error) => return unreadable(&error),
    };
    for member in members {
        match parent.member(member.id.as_str()) {
            Ok(path) => sample_container(back, member, &path),
            Err(error) => unreadable(&error),
        }
    }
    // Pods without a parent of their own are beside each other in ours.
    let own = (!pod.spec.cgroup_parent.is_empty()).then_some(&parent);
    let usage = own.and_then(|path| {
        let usage = back.cgroups.stats(path);
        usage.inspect_err(|error| unreadable(error)).ok()
    });
    let processes = own.and_then(|path| back.cgroups.list_processes(path).ok());
    back.store.samples().put_pod(
        &pod.id,
        PodSample {
            at: now_ns(),
            cpu_rate_nano_cores: None,
            usage,
            processes: processes.map_or(0, |pids| pids.len() as u64),
            interfaces: interfaces(pod, members),
        },
    );
}

/// The traffic of a pod with a network of its own, as one of its processes sees it.
fn interfaces(pod: &Sandbox, members: &[&Container]) -> Vec<Interface> {
    if pod.spec.network != NamespaceMode::Pod {
        return Vec::new();
    }
    let init = pod.init.map(|(pid, _)| pid);
    let processes = members.iter().filter_map(|member| member.process);
    let mut pids = processes.map(|(pid, _)| pid).chain(init);
    let text = pids.find_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok());
    text.map_or_else(Vec::new, |text| Interface::parse_all(&text))
}

/// A handful of small reads of kernel files.
fn sample_container(back: &Back, container: &Container, path: &CgroupPath) {
    let id = &container.id;
    match back.cgroups.stats(path) {
        Ok(usage) => {
            let pids = back.cgroups.list_processes(path).unwrap_or_default();
            let first = container.process.map(|(pid, _)| pid);
            let sample = Sample {
                at: now_ns(),
                cpu_rate_nano_cores: None,
                usage,
                processes: figures(&pids, first),
            };
            back.store.samples().put(id, sample);
        }
        Err(error) => tracing::debug!(container = %id, %error, "cannot sample"),
    }
}
