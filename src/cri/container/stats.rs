//! ContainerStats, ListContainerStats and StreamContainerStats, from the sampler's newest figures.

use crate::cri::call::Deadline;
use crate::cri::labels::as_sent;
use crate::cri::pieces::pieces;
use crate::cri::usage::{cpu, io, memory, number, swap};
use crate::cri::{CallError, Front, validate};
use crate::lifecycle::container::State;
use crate::proto::cri as v1;
use crate::state::container::{Container, ContainerFilter};
use crate::state::sample::LayerUsage;

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
    if container.state == State::Running {
        let samples = front.store.samples();
        samples.first_of(std::iter::once(&container)).await;
    }
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
    let stats = filtered(&front, request.filter).await?;
    Ok(v1::ListContainerStatsResponse { stats })
}

/// The same, in pieces.
pub(in crate::cri) async fn in_pieces(
    front: Front,
    request: v1::StreamContainerStatsRequest,
    _deadline: Deadline,
) -> Result<Vec<v1::StreamContainerStatsResponse>, CallError> {
    let stats = filtered(&front, request.filter).await?;
    Ok(pieces(stats, |container_stats| {
        v1::StreamContainerStatsResponse { container_stats }
    }))
}

async fn filtered(
    front: &Front,
    filter: Option<v1::ContainerStatsFilter>,
) -> Result<Vec<v1::ContainerStats>, CallError> {
    let filter = filter.unwrap_or_default();
    let wanted = ContainerFilter {
        id_prefix: validate::id_prefix("filter.id", filter.id)?,
        sandbox_prefix: validate::id_prefix("filter.pod_sandbox_id", filter.pod_sandbox_id)?,
        state: Some(State::Running),
    };
    let mut containers = front.store.containers(&wanted).await?;
    containers.retain(|one| validate::matches(&one.spec.labels, &filter.label_selector));
    front.store.samples().first_of(containers.iter()).await;
    Ok(containers
        .iter()
        .map(|container| stats(front, container))
        .collect())
}

/// What is known of one container. One that has not been measured yet has its name and no figures.
pub(in crate::cri) fn stats(front: &Front, container: &Container) -> v1::ContainerStats {
    let spec = &container.spec;
    let samples = front.store.samples();
    let sample = samples.get(&container.id);
    let sample = sample.as_deref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.id.to_string(),
            metadata: Some(view::metadata(spec)),
            labels: as_sent(&spec.labels),
            annotations: as_sent(&spec.annotations),
        }),
        cpu: sample.map(|sample| cpu(sample.at, sample.cpu_rate_nano_cores, &sample.usage)),
        memory: sample.map(|sample| memory(sample.at, &sample.usage)),
        writable_layer: samples
            .layer(&container.id)
            .map(|usage| layer(front, usage)),
        swap: sample.and_then(|sample| swap(sample.at, &sample.usage)),
        io: sample.and_then(|sample| io(sample.at, &sample.usage)),
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
