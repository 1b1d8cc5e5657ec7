//! A sandbox as clients see it.

use crate::cri::labels::as_sent;
use crate::cri::user_namespace;
use crate::lifecycle::sandbox::State;
use crate::lifecycle::spec::{NamespaceMode, SandboxSpec};
use crate::proto::cri as v1;
use crate::state::sandbox::Sandbox;

pub(super) fn metadata(spec: &SandboxSpec) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: spec.name.clone(),
        uid: spec.uid.clone(),
        namespace: spec.namespace.clone(),
        attempt: spec.attempt,
    }
}

pub(super) fn state(sandbox: &Sandbox) -> i32 {
    let state = match sandbox.state {
        // Without its init, nothing runs in it, and it is on its way down.
        State::Ready if !sandbox.init_ended => v1::PodSandboxState::SandboxReady,
        _ => v1::PodSandboxState::SandboxNotready,
    };
    state.into()
}

/// The interface's number for a namespace mode.
pub(in crate::cri) fn mode(mode: &NamespaceMode) -> i32 {
    let mode = match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target(_) => v1::NamespaceMode::Target,
    };
    mode.into()
}

pub(super) fn item(sandbox: Sandbox) -> v1::PodSandbox {
    v1::PodSandbox {
        state: state(&sandbox),
        id: sandbox.id.into(),
        metadata: Some(metadata(&sandbox.spec)),
        created_at: sandbox.created_at,
        labels: as_sent(&sandbox.spec.labels),
        annotations: as_sent(&sandbox.spec.annotations),
        runtime_handler: sandbox.spec.runtime_handler.clone(),
    }
}

pub(in crate::cri) fn status(sandbox: Sandbox) -> v1::PodSandboxStatus {
    let state = state(&sandbox);
    let spec = sandbox.spec;
    let options = v1::NamespaceOption {
        network: mode(&spec.network),
        pid: mode(&spec.pid),
        ipc: mode(&spec.ipc),
        userns_options: spec.users.as_ref().map(|maps| {
            let (uids, gids) = user_namespace::view(maps);
            let mode = v1::NamespaceMode::Pod.into();
            v1::UserNamespace { mode, uids, gids }
        }),
        ..Default::default()
    };
    let additional = sandbox
        .more_addresses
        .into_iter()
        .map(|ip| v1::PodIp { ip });
    v1::PodSandboxStatus {
        id: sandbox.id.into(),
        metadata: Some(metadata(&spec)),
        state,
        created_at: sandbox.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: sandbox.address.unwrap_or_default(),
            additional_ips: additional.collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(options),
            }),
        }),
        labels: as_sent(&spec.labels),
        annotations: as_sent(&spec.annotations),
        runtime_handler: spec.runtime_handler.clone(),
    }
}
