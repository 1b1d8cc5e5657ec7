//! After a start: take over what lives, and have everything looked at once.

use std::collections::HashMap;
use std::sync::OnceLock;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::processes::Handle;
use super::{Back, ReconcileError, processes};
use crate::fault;
use crate::id::{ContainerId, ObjectKey};
use crate::lifecycle::container::{State, may_live};
use crate::shim::client::{Orphan, ShimClient};
use crate::shim::protocol::{HeldProcess, ProcessKind};
use crate::state::container::Container;
use crate::state::sandbox::SandboxFilter;

/// Containers taken over side by side.
const HAND_OVERS: usize = 32;

/// The name this boot of the node has (`/proc/sys/kernel/random/boot_id`). In a build with fault
/// points a test can say that it is another (`QUILT_BOOT_ID`).
///
/// # Errors
/// When the kernel does not tell.
pub fn boot_id() -> Result<String, ReconcileError> {
    #[cfg(feature = "fault-points")]
    if let Ok(other) = std::env::var("QUILT_BOOT_ID") {
        return Ok(other);
    }
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(ReconcileError::file("read", path))?;
    Ok(text.trim().to_owned())
}

/// Before anything else: nothing of another boot is believed, and what a dead daemon had begun is
/// due again.
///
/// # Errors
/// When the database fails.
pub async fn prepare(back: &Back) -> Result<(), ReconcileError> {
    fault::point("recovery.begun").await?;
    let forgotten = back
        .observed
        .forget_other_boots(back.boot_id.clone())
        .await?;
    if forgotten > 0 {
        tracing::warn!(
            sandboxes = forgotten,
            "the node was started anew: they are down"
        );
    }
    fault::point("recovery.boots_forgotten").await?;
    back.observed.reclaim_jobs().await?;
    fault::point("recovery.jobs_reclaimed").await?;
    back.observed.import_ends().await?;
    fault::point("recovery.imports_ended").await?;
    let mut keys = Vec::new();
    keys.extend(
        back.store
            .all_sandbox_ids()
            .await?
            .into_iter()
            .map(ObjectKey::Sandbox),
    );
    keys.extend(
        back.store
            .all_containers()
            .await?
            .into_iter()
            .map(|c| ObjectKey::Container(c.id)),
    );
    keys.extend(
        back.store
            .unfinished_pulls()
            .await?
            .into_iter()
            .map(ObjectKey::Pull),
    );
    keys.extend(
        back.store
            .leaving_images()
            .await?
            .into_iter()
            .map(ObjectKey::Image),
    );
    keys.extend(
        back.store
            .pending_cleanups()
            .await?
            .into_iter()
            .map(ObjectKey::Cleanup),
    );
    keys.push(ObjectKey::Prepared);
    // What is as it should be rests; the others go on.
    keys.extend(
        back.store
            .attachment_states()
            .await?
            .into_iter()
            .map(|(id, _)| ObjectKey::Attachment(id)),
    );
    tracing::info!(objects = keys.len(), "recovered");
    back.observed.enqueue(keys).await?;
    Ok(fault::point("recovery.queued").await?)
}

/// Tells a newly connected shim what it may not know, and takes handles on what lives. Returns the
/// containers that neither it nor the kernel knows anything of: their exits may yet be in its
/// journal.
///
/// # Errors
/// When the database or the shim fails.
pub async fn hand_over(back: &Back, shim: &ShimClient) -> Result<Vec<ContainerId>, ReconcileError> {
    let held: HashMap<String, _> = shim
        .list()
        .await?
        .into_iter()
        .map(|item| (item.id.to_string(), item))
        .collect();
    fault::point("shim.listed").await?;
    for sandbox in back.store.sandboxes(&SandboxFilter::default()).await? {
        let id = sandbox.id.as_str();
        match sandbox.init.filter(|_| !held.contains_key(id)) {
            Some((pid, start_time)) if processes::is_alive(pid, start_time) => {
                let orphan = Orphan {
                    id,
                    kind: ProcessKind::PodInit,
                    plan_path: None,
                    pid,
                    start_time,
                    pidfd: None,
                    terminal: None,
                    lost_log: (0, 0),
                };
                shim.adopt(orphan).await?;
            }
            // It ended while no shim was there: a look at its pod finds that.
            Some(_) => {
                let key = ObjectKey::Sandbox(sandbox.id);
                back.observed.enqueue(vec![key]).await?;
            }
            None => {}
        }
    }
    let containers = back.store.all_containers().await?;
    let mut takings = Vec::new();
    for container in containers.iter().filter(|c| may_live(c.state)) {
        takings.push(take_over(
            back,
            shim,
            container,
            held.get(container.id.as_str()),
        ));
    }
    // Side by side: each is a question to the shim, and a node may have hundreds.
    let unseen: Vec<Option<ContainerId>> = futures_util::stream::iter(takings)
        .buffer_unordered(HAND_OVERS)
        .try_collect()
        .await?;
    Ok(unseen.into_iter().flatten().collect())
}

/// Takes over one container that has, or may have, a process. Returns its id when nobody knows
/// anything of that process.
async fn take_over(
    back: &Back,
    shim: &ShimClient,
    container: &Container,
    held: Option<&HeldProcess>,
) -> Result<Option<ContainerId>, ReconcileError> {
    let id = &container.id;
    match (held, container.process) {
        (Some(item), _) => hold(back, shim, id, item.pid, item.start_time).await,
        (None, Some((pid, start))) if processes::is_alive(pid, start) => {
            tracing::warn!(container = %id, pid, "its shim is gone; a new one adopts it");
            let plan = back.paths.container(id).join("plan.json");
            let held = back.processes.get(id);
            let pidfd = held.as_ref().and_then(|held| held.pidfd.try_clone().ok());
            let terminal = held.as_ref().and_then(|held| held.terminal.as_ref());
            let terminal = terminal.and_then(|terminal| terminal.try_clone().ok());
            shim.adopt(Orphan {
                id: id.as_str(),
                kind: ProcessKind::Container,
                plan_path: Some(&plan),
                pid,
                start_time: start,
                pidfd,
                terminal,
                lost_log: container.lost_log,
            })
            .await?;
            fault::point("shim.adopted").await?;
            hold(back, shim, id, pid, start).await;
        }
        // A launch that never came to a process: its job looks after it.
        (None, None) if container.state == State::Starting => {}
        (None, _) if back.processes.get(id).is_none() => return Ok(Some(id.clone())),
        // The monitor still holds its pidfd and asks the kernel how it ended.
        (None, _) => {}
    }
    Ok(None)
}

/// Takes handles on a container's process; one that has ended is told of by the shim.
pub(super) async fn hold(back: &Back, shim: &ShimClient, id: &ContainerId, pid: i32, start: u64) {
    // The shim's own descriptors keep output alive, should that shim die.
    match shim.handles(id.as_str()).await {
        Ok(launched) => {
            back.processes.put(
                id,
                Handle {
                    pidfd: launched.pidfd,
                    _outputs: launched.outputs,
                    terminal: launched.terminal,
                    ooms_before_stop: OnceLock::new(),
                },
            );
        }
        Err(error) => {
            tracing::debug!(container = %id, %error, "the shim gives no handles");
            if let Some(pidfd) = processes::open(pid, start) {
                back.processes.put(
                    id,
                    Handle {
                        pidfd,
                        _outputs: Vec::new(),
                        terminal: None,
                        ooms_before_stop: OnceLock::new(),
                    },
                );
            }
        }
    }
}
