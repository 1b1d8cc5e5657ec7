//! PodSandboxStats, ListPodSandboxStats and StreamPodSandboxStats, from the sampler's newest
//! figures.

use std::collections::HashMap;

use crate::cri::call::Deadline;
use crate::cri::container::stats::stats as container_stats;
use crate::cri::labels::as_sent;
use crate::cri::pieces::pieces;
use crate::cri::usage::{cpu, io, memory, network, number};
use crate::cri::{CallError, Front, validate};
use crate::id::SandboxId;
use crate::lifecycle::container::State;
use crate::lifecycle::usage::Usage;
use crate::proto::cri as v1;
use crate::state::container::{Container, ContainerFilter};
use crate::state::sample::{PodSample, Sample};
use crate::state::sandbox::{Sandbox, SandboxFilter};

use super::view;

/// The figures of one pod.
pub(in crate::cri) async fn one(
    front: Front,
    request: v1::PodSandboxStatsRequest,
    _deadline: Deadline,
) -> Result<v1::PodSandboxStatsResponse, CallError> {
    let id = front
        .find_sandbox("pod_sandbox_id", request.pod_sandbox_id)
        .await?;
    let pod = front.store.sandbox(&id).await?;
    let pod = pod.ok_or_else(|| CallError::NotFound {
        noun: "sandbox",
        id: id.to_string(),
    })?;
    let running = ContainerFilter {
        sandbox_prefix: Some(id.to_string()),
        state: Some(State::Running),
        ..Default::default()
    };
    let members = front.store.containers(&running).await?;
    front.store.samples().first_of(members.iter()).await;
    let members: Vec<&Container> = members.iter().collect();
    Ok(v1::PodSandboxStatsResponse {
        stats: Some(stats(&front, &pod, &members)),
    })
}

/// The figures of pods that are ready.
pub(in crate::cri) async fn list(
    front: Front,
    request: v1::ListPodSandboxStatsRequest,
    _deadline: Deadline,
) -> Result<v1::ListPodSandboxStatsResponse, CallError> {
    let stats = filtered(&front, request.filter).await?;
    Ok(v1::ListPodSandboxStatsResponse { stats })
}

/// The same, in pieces.
pub(in crate::cri) async fn in_pieces(
    front: Front,
    request: v1::StreamPodSandboxStatsRequest,
    _deadline: Deadline,
) -> Result<Vec<v1::StreamPodSandboxStatsResponse>, CallError> {
    let stats = filtered(&front, request.filter).await?;
    Ok(pieces(stats, |pod_sandbox_stats| {
        v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }
    }))
}

async fn filtered(
    front: &Front,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Result<Vec<v1::PodSandboxStats>, CallError> {
    let filter = filter.unwrap_or_default();
    let id_prefix = validate::id_prefix("filter.id", filter.id)?;
    let pods = ready_pods(front, id_prefix).await?;
    let pods = pods
        .iter()
        .filter(|(pod, _)| validate::matches(&pod.spec.labels, &filter.label_selector));
    Ok(pods
        .map(|(pod, members)| {
            let members: Vec<&Container> = members.iter().collect();
            stats(front, pod, &members)
        })
        .collect())
}

/// Pods that are ready, with their running containers.
pub(in crate::cri) async fn ready_pods(
    front: &Front,
    id_prefix: Option<String>,
) -> Result<Vec<(Sandbox, Vec<Container>)>, CallError> {
    let running = ContainerFilter {
        sandbox_prefix: id_prefix.clone(),
        state: Some(State::Running),
        ..Default::default()
    };
    let mut members: HashMap<SandboxId, Vec<Container>> = HashMap::new();
    for container in front.store.containers(&running).await? {
        let of_its_pod = members.entry(container.sandbox_id.clone()).or_default();
        of_its_pod.push(container);
    }
    let ready = SandboxFilter {
        id_prefix,
        ready: Some(true),
    };
    let pods = front.store.sandboxes(&ready).await?;
    let running = members.values().flatten();
    front.store.samples().first_of(running).await;
    let with_members = pods.into_iter().map(|pod| {
        let members = members.remove(&pod.id).unwrap_or_default();
        (pod, members)
    });
    Ok(with_members.collect())
}

fn stats(front: &Front, pod: &Sandbox, members: &[&Container]) -> v1::PodSandboxStats {
    let samples = front.store.samples();
    let sample = samples.pod(&pod.id);
    let sample = sample.as_deref();
    let of_members: Vec<_> = members
        .iter()
        .filter_map(|member| samples.get(&member.id))
        .collect();
    let whole = sample.map(|pod| whole(pod, of_members.iter().map(AsRef::as_ref)));
    let whole = whole.as_ref();
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: pod.id.to_string(),
            metadata: Some(view::metadata(&pod.spec)),
            labels: as_sent(&pod.spec.labels),
            annotations: as_sent(&pod.spec.annotations),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: whole.map(|whole| cpu(whole.at, whole.rate, &whole.usage)),
            memory: whole.map(|whole| memory(whole.at, &whole.usage)),
            network: sample.and_then(|pod| network(pod.at, &pod.interfaces)),
            process: whole.map(|whole| v1::ProcessUsage {
                timestamp: whole.at,
                process_count: number(Some(whole.processes)),
            }),
            containers: members
                .iter()
                .map(|member| container_stats(front, member))
                .collect(),
            io: whole.and_then(|whole| io(whole.at, &whole.usage)),
        }),
        windows: None,
    }
}

/// The usage of a pod as a whole.
struct Whole {
    at: i64,
    rate: Option<u64>,
    usage: Usage,
    processes: u64,
}

/// What the pod's own cgroup counts; without one, what its containers do together.
fn whole<'a>(pod: &PodSample, members: impl Iterator<Item = &'a Sample>) -> Whole {
    if let Some(usage) = &pod.usage {
        return Whole {
            at: pod.at,
            rate: pod.cpu_rate_nano_cores,
            usage: usage.clone(),
            processes: pod.processes,
        };
    }
    let add = |sum: &mut Option<u64>, one: Option<u64>| {
        *sum = match (*sum, one) {
            (Some(sum), Some(one)) => Some(sum.saturating_add(one)),
            (sum, one) => sum.or(one),
        };
    };
    let mut whole = Whole {
        at: pod.at,
        rate: None,
        usage: Usage::default(),
        processes: 0,
    };
    for member in members {
        let (sum, one) = (&mut whole.usage, &member.usage);
        add(&mut sum.cpu_usage_ns, one.cpu_usage_ns);
        add(&mut sum.memory_usage_bytes, one.memory_usage_bytes);
        let working_set = one.memory_working_set_bytes;
        add(&mut sum.memory_working_set_bytes, working_set);
        add(&mut sum.memory_rss_bytes, one.memory_rss_bytes);
        add(&mut sum.page_faults, one.page_faults);
        add(&mut sum.major_page_faults, one.major_page_faults);
        add(&mut whole.rate, member.cpu_rate_nano_cores);
        whole.processes += member.processes.count;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_a_cgroup_of_its_own_is_the_sum_of_its_containers() {
        let member = |cpu, memory| Sample {
            cpu_rate_nano_cores: Some(cpu),
            usage: Usage {
                cpu_usage_ns: Some(cpu),
                memory_usage_bytes: memory,
                ..Usage::default()
            },
            ..Sample::default()
        };
        let members = [member(3, None), member(4, Some(10))];
        let sum = whole(&PodSample::default(), members.iter());
        assert_eq!((sum.rate, sum.usage.cpu_usage_ns), (Some(7), Some(7)));
        assert_eq!(sum.usage.memory_usage_bytes, Some(10));
        assert_eq!(sum.usage.memory_rss_bytes, None);
        let own = PodSample {
            usage: Some(Usage::default()),
            processes: 5,
            ..PodSample::default()
        };
        let own = whole(&own, members.iter());
        assert_eq!((own.usage.cpu_usage_ns, own.processes), (None, 5));
    }
}
