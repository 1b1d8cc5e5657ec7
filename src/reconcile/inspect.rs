//! A look at what a pod or a container should have: namespaces, link, mounts, files, process.
//! Changes nothing.

use super::{Back, ReconcileError, processes, sandbox, sandbox_files};
use crate::lifecycle::container::State;
use crate::lifecycle::difference::{ContainerSeen, PodSeen};
use crate::lifecycle::spec::NamespaceMode;
use crate::network::{self, Problem};
use crate::state::container::Container;
use crate::state::network::Allocation;
use crate::state::sandbox::Sandbox;

/// Looks at a pod that is up. Blocks for a millisecond or so.
pub(super) fn pod(
    back: &Back,
    sandbox: &Sandbox,
    allocation: Option<&Allocation>,
) -> Result<PodSeen, ReconcileError> {
    let spec = &sandbox.spec;
    let dir = back.paths.sandbox(&sandbox.id);
    let own_network = spec.network == NamespaceMode::Pod;
    let own_ipc = spec.ipc == NamespaceMode::Pod;
    let wanted = [
        ("net", own_network),
        ("ipc", own_ipc),
        ("uts", own_network),
        ("user", spec.users.is_some()),
    ];
    let pins_missing = wanted
        .into_iter()
        .filter(|(kind, wanted)| *wanted && !network::is_pinned(&dir.join("ns").join(kind)))
        .map(|(kind, _)| kind)
        .collect();
    let link = match allocation {
        Some(allocation) => Some((
            allocation.host_link.clone(),
            link_problems(back, sandbox, allocation)?,
        )),
        None => None,
    };
    Ok(PodSeen {
        pins_missing,
        shm_missing: own_ipc && !sandbox_files::has_shm(&dir),
        files_missing: sandbox_files::missing(&dir),
        link,
        // Asking plugins takes long: what they have found is in the pod's row.
        attachment_problem: None,
        init_gone: spec.pid == NamespaceMode::Pod
            && sandbox
                .init
                .is_some_and(|(pid, start)| !processes::is_alive(pid, start)),
    })
}

fn link_problems(
    back: &Back,
    sandbox: &Sandbox,
    allocation: &Allocation,
) -> Result<Vec<String>, ReconcileError> {
    let link = (&sandbox.id, allocation, &sandbox.spec.sysctls);
    let problems = sandbox::with_link_spec(back, link, network::check_pod_link)?;
    let mut problems: Vec<_> = problems
        .iter()
        .filter(|problem| **problem != Problem::NamespaceMissing)
        .map(Problem::to_string)
        .collect();
    let marker = back.paths.marker();
    if let Some(spec) = sandbox::shaping(back, sandbox, allocation, &marker) {
        problems.extend(network::check_shaping(&spec)?);
    }
    Ok(problems)
}

/// Looks at a container that is prepared or runs.
pub(super) fn container(back: &Back, container: &Container) -> ContainerSeen {
    let dir = back.paths.container(&container.id);
    let running = container.state == State::Running;
    let files: &[&'static str] = match (running, container.spec.tty) {
        (false, _) => &["."],
        (true, true) => &["plan.json"],
        (true, false) => &["plan.json", "stdout", "stderr"],
    };
    ContainerSeen {
        process_gone: running
            && container
                .process
                .is_some_and(|(pid, start)| !processes::is_alive(pid, start)),
        files_missing: files
            .iter()
            .copied()
            .filter(|name| !dir.join(name).exists())
            .collect(),
    }
}
