//! A container as clients see it.

use crate::cri::labels::as_sent;
use crate::cri::user_namespace;
use crate::lifecycle::container::State;
use crate::lifecycle::signal;
use crate::lifecycle::spec::{ContainerSpec, MountSpec, Propagation, Resources, UserIds};
use crate::proto::cri as v1;
use crate::state::container::Container;

pub(super) fn metadata(spec: &ContainerSpec) -> v1::ContainerMetadata {
    v1::ContainerMetadata {
        name: spec.name.clone(),
        attempt: spec.attempt,
    }
}

fn state(state: State) -> i32 {
    let state = match state {
        State::Preparing | State::Created | State::Starting => v1::ContainerState::ContainerCreated,
        State::Running => v1::ContainerState::ContainerRunning,
        State::Exited => v1::ContainerState::ContainerExited,
        State::Error => v1::ContainerState::ContainerUnknown,
    };
    state.into()
}

fn image(spec: &ContainerSpec, name: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: name.to_owned(),
        user_specified_image: spec.user_specified_image.clone(),
        ..Default::default()
    }
}

pub(super) fn item(container: Container) -> v1::Container {
    let spec = container.spec;
    v1::Container {
        id: container.id.into(),
        pod_sandbox_id: container.sandbox_id.into(),
        metadata: Some(metadata(&spec)),
        image: Some(image(&spec, &spec.image)),
        image_ref: spec.image_ref.clone(),
        state: state(container.state),
        created_at: container.created_at,
        labels: as_sent(&spec.labels),
        annotations: as_sent(&spec.annotations),
        image_id: container.image_id,
    }
}

pub(in crate::cri) fn status(container: Container, log_path: String) -> v1::ContainerStatus {
    let spec = container.spec;
    // What the kernel holds; as long as it holds nothing, what was asked for.
    let limits = container.held.as_ref().unwrap_or(&spec.resources);
    let limits = resources(limits);
    let exited = container.state == State::Exited;
    v1::ContainerStatus {
        id: container.id.into(),
        metadata: Some(metadata(&spec)),
        state: state(container.state),
        created_at: container.created_at,
        started_at: container.started_at.unwrap_or_default(),
        finished_at: container.exited_at.unwrap_or_default(),
        exit_code: container.exit_code.unwrap_or_default(),
        image: Some(image(&spec, &spec.image_name)),
        image_ref: spec.image_ref.clone(),
        reason: container.reason,
        message: container.error.filter(|_| exited).unwrap_or_default(),
        mounts: spec.mounts.iter().cloned().map(mount).collect(),
        log_path,
        resources: Some(v1::ContainerResources {
            linux: Some(limits),
            windows: None,
        }),
        image_id: container.image_id,
        user: container.runs_as.map(user),
        stop_signal: stop_signal(spec.process.stop_signal),
        labels: as_sent(&spec.labels),
        annotations: as_sent(&spec.annotations),
    }
}

fn user(ids: UserIds) -> v1::ContainerUser {
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: ids.uid.into(),
            gid: ids.gid.into(),
            supplemental_groups: ids.groups.into_iter().map(i64::from).collect(),
        }),
    }
}

fn mount(mount: MountSpec) -> v1::Mount {
    let ids = mount.ids.as_ref().map(user_namespace::view);
    let (uid_mappings, gid_mappings) = ids.unwrap_or_default();
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.read_only,
        recursive_read_only: mount.recursive_read_only,
        propagation: propagation.into(),
        image_sub_path: mount
            .image
            .as_ref()
            .map(|image| image.sub_path.clone())
            .unwrap_or_default(),
        image: mount.image.map(|image| v1::ImageSpec {
            image: image.image,
            user_specified_image: image.user_specified_image,
            image_ref: image.image_id,
            ..Default::default()
        }),
        uid_mappings,
        gid_mappings,
        ..Default::default()
    }
}

fn resources(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period_us,
        cpu_quota: resources.cpu_quota_us,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit {
                page_size: page_size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
    }
}

/// The interface's own number for a signal.
fn stop_signal(number: i32) -> i32 {
    let name = signal::name(number).replace('+', "PLUS");
    let name = if number > 49 {
        // The interface counts the upper half of the real-time signals from SIGRTMAX.
        match 64 - number {
            0 => "SIGRTMAX".to_owned(),
            below => format!("SIGRTMAXMINUS{below}"),
        }
    } else {
        name
    };
    v1::Signal::from_str_name(&format!("SIGNAL_{name}"))
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_kernel_is_named_to_clients() {
        for number in (1..=31).chain(34..=64) {
            assert_ne!(stop_signal(number), 0, "signal {number}");
        }
    }
}
