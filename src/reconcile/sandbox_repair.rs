//! A pod that is up, looked at: what somebody took from it is given back, as far as that does no
//! harm. A namespace whose pin is gone and in which a process still lives is pinned again; one that
//! is gone is made anew only when nothing of the pod lives. A pod whose init has ended is not
//! mended: it is brought down.

use std::fs::File;
use std::path::PathBuf;

use super::pod_network::Given;
use super::sandbox::{self, Namespaces};
use super::sandbox_files;
use super::{Back, ReconcileError, blocking, inspect, node_network, pod_network, processes};
use crate::fault;
use crate::id::SandboxId;
use crate::lifecycle::container::may_live;
use crate::lifecycle::difference::PodSeen;
use crate::network;
use crate::state::container::Container;
use crate::state::network::Allocation;
use crate::state::sandbox::Sandbox;

/// Looks at the pod and completes it. Nothing is written when nothing is missing.
pub(super) async fn complete(
    back: &Back,
    sandbox: &Sandbox,
    containers: &[Container],
) -> Result<(), ReconcileError> {
    let allocation = back.store.allocation(&sandbox.id).await?;
    let seen = look(back, sandbox, allocation.as_ref()).await?;
    if seen.is_whole() {
        return Ok(());
    }
    let id = sandbox.id.clone();
    if seen.init_gone {
        let pid = sandbox.init.map_or(0, |(pid, _)| pid);
        return init_ended(back, id, pid, "it was found gone".into()).await;
    }
    let lacking = describe(&seen);
    tracing::warn!(sandbox = %id, lacking, "a pod is not whole; it is mended");
    fault::point("sandbox.lacking").await?;
    let living: Vec<_> = containers
        .iter()
        .filter(|container| may_live(container.state))
        .filter_map(|container| container.process)
        .chain(sandbox.init)
        .collect();
    if allocation.is_some() {
        node_network::ensure(back).await?;
    }
    let given = pod_network::given(back, &id).await?;
    let (back_too, sandbox_too, lost) = (back.clone(), sandbox.clone(), seen);
    let allocation_too = allocation.clone();
    let network_lost = blocking(move || {
        give_back(
            (&back_too, &sandbox_too),
            allocation_too.as_ref(),
            &given,
            &lost,
            &living,
        )
    })
    .await?;
    if network_lost {
        back.observed.attachment_lost(id.clone()).await?;
    }
    fault::point("sandbox.given_back").await?;
    let seen = look(back, sandbox, allocation.as_ref()).await?;
    if !seen.is_whole() {
        return Err(ReconcileError::NotWhole(describe(&seen)));
    }
    back.observed.sandbox_event(id, "mended", lacking).await?;
    Ok(fault::point("sandbox.mended").await?)
}

/// Records that a pod's init has ended by itself; the pod is brought down then.
pub(super) async fn init_ended(
    back: &Back,
    id: SandboxId,
    pid: i32,
    how: String,
) -> Result<(), ReconcileError> {
    tracing::warn!(sandbox = %id, pid, how, "the pod's init has ended; the pod is brought down");
    back.observed.sandbox_init_ended(id, pid, how).await?;
    Ok(fault::point("sandbox.init_ended").await?)
}

async fn look(
    back: &Back,
    sandbox: &Sandbox,
    allocation: Option<&Allocation>,
) -> Result<PodSeen, ReconcileError> {
    let (back, sandbox, allocation) = (back.clone(), sandbox.clone(), allocation.cloned());
    blocking(move || inspect::pod(&back, &sandbox, allocation.as_ref())).await
}

/// Returns whether the pod has another network namespace now.
fn give_back(
    (back, sandbox): (&Back, &Sandbox),
    allocation: Option<&Allocation>,
    given: &Given,
    lost: &PodSeen,
    living: &[(i32, u64)],
) -> Result<bool, ReconcileError> {
    let dir = back.paths.sandbox(&sandbox.id);
    for kind in &lost.pins_missing {
        if let Some(namespace) = namespace_of(living, kind) {
            network::pin_again(&dir.join("ns"), kind, &namespace)?;
        }
    }
    fault::blocking_point("sandbox.pinned")?;
    // Whatever is not pinned yet has no process in it.
    let network_lost =
        lost.pins_missing.contains(&"net") && !network::is_pinned(&dir.join("ns/net"));
    sandbox::make_namespaces(back, sandbox, allocation, Namespaces::Kept)?;
    if let Some(allocation) = allocation {
        sandbox::make_link(back, sandbox, allocation)?;
    }
    if !lost.files_missing.is_empty() {
        sandbox_files::write(back, sandbox, given)?;
    } else if lost.shm_missing {
        sandbox_files::mount_shm(&dir)?;
    }
    Ok(network_lost)
}

/// The namespace of the first process that still lives.
fn namespace_of(living: &[(i32, u64)], kind: &str) -> Option<File> {
    living.iter().find_map(|(pid, start)| {
        let path: PathBuf = ["/proc", &pid.to_string(), "ns", kind].iter().collect();
        let namespace = File::open(path).ok()?;
        // Looked at after opening: if it is that process now, it was that process' namespace.
        processes::is_alive(*pid, *start).then_some(namespace)
    })
}

fn describe(seen: &PodSeen) -> String {
    let mut texts: Vec<String> = seen
        .pins_missing
        .iter()
        .map(|kind| format!("the {kind} namespace is not pinned"))
        .collect();
    if let Some((_, problems)) = &seen.link {
        texts.extend(problems.iter().cloned());
    }
    if seen.shm_missing {
        texts.push("/dev/shm is not mounted".into());
    }
    texts.extend(
        seen.files_missing
            .iter()
            .map(|file| format!("{file} is not there")),
    );
    if seen.init_gone {
        texts.push("its init is gone".into());
    }
    texts.join("; ")
}
