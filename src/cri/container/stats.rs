//! ContainerStats and ListContainerStats, from the sampler's newest figures.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front, validate};
use crate::lifecycle::container::State;
use crate::proto::cri as v1;
use crate::state::container::{Container, ContainerFilter};
use crate::state::sample::{LayerUsage, Sample};

use super::view;

/// The figures of one container.
pub(in crate::cri) async fn one(
    front: Front,
    request: v1::ContainerStatsRequest,
    _deadline: Deadline,
) -> Result<v1::ContainerStatsResponse, CallError> {
    let id = front
        .find_container("container_id", request.container_id)
        .await?;
    let container = front.store.container(&id).await?;
    let container = container.ok_or_else(|| CallError::NotFound {
        noun: "container",
        id: id.to_string(),
    })?;
    Ok(v1::ContainerStatsResponse {
        stats: Some(stats(&front, &container)),
    })
}

/// The figures of running containers.
pub(in crate::cri) async fn list(
    front: Front,
    request: v1::ListContainerStatsRequest,
    _deadline: Deadline,
) -> Result<v1::ListContainerStatsResponse, CallError> {
    let filter = request.filter.unwrap_or_default();
    let wanted = ContainerFilter {
        id_prefix: validate::id_prefix("filter.id", filter.id)?,
        sandbox_prefix: validate::id_prefix("filter.pod_sandbox_id", filter.pod_sandbox_id)?,
        state: Some(State::Running),
    };
    let containers = front.store.containers(&wanted).await?;
    let stats = containers
        .iter()
        .filter(|container| validate::matches(&container.spec.labels, &filter.label_selector))
        .map(|container| stats(&front, container))
        .collect();
    Ok(v1::ListContainerStatsResponse { stats })
}

fn stats(front: &Front, container: &Container) -> v1::ContainerStats {
    let spec = &container.spec;
    let sample = front.store.samples().get(&container.id);
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.id.to_string(),
            metadata: Some(view::metadata(spec)),
            labels: spec.labels.clone().into_iter().collect(),
            annotations: spec.annotations.clone().into_iter().collect(),
        }),
        cpu: sample.map(cpu),
        memory: sample.map(memory),
        writable_layer: front
            .store
            .samples()
            .layer(&container.id)
            .map(|usage| layer(front, usage)),
        ..Default::default()
    }
}

fn layer(front: &Front, usage: LayerUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: usage.at,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: front.info.snapshot_root.display().to_string(),
        }),
        used_bytes: number(Some(usage.bytes)),
        inodes_used: number(Some(usage.inodes)),
    }
}

fn number(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

fn cpu(sample: Sample) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: sample.at,
        usage_core_nano_seconds: number(sample.cpu_usage_ns),
        usage_nano_cores: number(sample.cpu_rate_nano_cores),
        psi: None,
    }
}

fn memory(sample: Sample) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: sample.at,
        working_set_bytes: number(sample.memory_working_set_bytes),
        available_bytes: number(sample.memory_available_bytes),
        usage_bytes: number(sample.memory_usage_bytes),
        rss_bytes: number(sample.memory_rss_bytes),
        page_faults: number(sample.page_faults),
        major_page_faults: number(sample.major_page_faults),
        psi: None,
    }
}
