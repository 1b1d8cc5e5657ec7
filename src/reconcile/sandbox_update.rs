//! Puts changed limits of a pod as a whole in force: in the cgroup that is the parent of its
//! containers' and that the client named for it, then in its row.

use super::container_update::changed_limits;
use super::{Back, ReconcileError, blocking};
use crate::cgroup::CgroupPath;
use crate::fault;
use crate::id::ObjectKey;
use crate::lifecycle::spec::Resources;
use crate::state::now_ns;
use crate::state::operation::Finished;
use crate::state::progress::Stages;
use crate::state::sandbox::Sandbox;

/// Carries the newest wish out, whole or not at all, and says which.
pub(super) async fn update(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    fault::point("sandbox.update_wanted").await?;
    let started_at = now_ns();
    let id = &sandbox.id;
    let mut stages = Stages::new(back.store.progress(), ObjectKey::Sandbox(id.clone()));
    stages.enter("limits");
    let wanted = sandbox.update.wanted.clone().unwrap_or_default();
    let (in_force, error) = match put_in_force(back, sandbox, &wanted).await {
        Ok(()) => (Some(wanted), None),
        Err(error) if error.is_passing() => return Err(error),
        Err(error) => (None, Some(error.full_text())),
    };
    if let Some(error) = &error {
        tracing::warn!(sandbox = %id, error, "cannot change the limits of the pod");
    }
    let done = Finished {
        kind: "update_sandbox",
        object_id: id.to_string(),
        started_at,
        duration_ns: now_ns() - started_at,
        error,
        stages: stages.finish(),
    };
    back.observed
        .sandbox_updated(id.clone(), sandbox.update.asked, in_force, done)
        .await?;
    Ok(fault::point("sandbox.updated").await?)
}

async fn put_in_force(
    back: &Back,
    sandbox: &Sandbox,
    wanted: &Resources,
) -> Result<(), ReconcileError> {
    let limits = changed_limits(back, wanted)?;
    let path = own_cgroup(back, sandbox).await?;
    let back_too = back.clone();
    blocking(move || {
        let Some(path) = &path else {
            return Ok(back_too.cgroups.check(&limits)?);
        };
        let before = back_too.cgroups.update(path, &limits)?;
        let set = fault::blocking_point("sandbox.limits_set").map_err(ReconcileError::from);
        if set.as_ref().is_err_and(|error| !error.is_passing()) {
            // It is not tried again, and so the client is told that the limits are as before.
            before.put_back();
        }
        set
    })
    .await
}

/// The cgroup that is this pod's alone. A pod without a parent of its own has none, and then its
/// limits are only kept: those of its containers hold.
async fn own_cgroup(back: &Back, sandbox: &Sandbox) -> Result<Option<CgroupPath>, ReconcileError> {
    let parent = &sandbox.spec.cgroup_parent;
    if parent.is_empty() {
        return Ok(None);
    }
    if back.store.shares_its_parent(&sandbox.id).await? {
        let why = format!("limits: other pods have the parent cgroup {parent} too");
        return Err(ReconcileError::Plan(why));
    }
    let path = back.pod_cgroup(parent)?;
    let (cgroups, path_too) = (back.cgroups.clone(), path.clone());
    // Nobody has made it yet when no container has been started.
    let made = blocking(move || Ok(cgroups.ensure(&path_too, None)?)).await;
    made.map(|()| Some(path))
}
