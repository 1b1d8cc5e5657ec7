//! Puts changed limits of a container in force: in its cgroup, in its record, then in its row.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;

use super::container_plan::limits_of;
use super::{Back, ReconcileError, blocking, container, oom_score, records};
use crate::cgroup::CgroupPath;
use crate::fault;
use crate::id::ObjectKey;
use crate::lifecycle::container::State;
use crate::lifecycle::limits;
use crate::lifecycle::spec::Resources;
use crate::state::container::Container;
use crate::state::now_ns;
use crate::state::operation::Finished;
use crate::state::progress::Stages;

/// Carries the newest wish out, whole or not at all, and says which.
pub(super) async fn update(back: &Back, mut container: Container) -> Result<(), ReconcileError> {
    fault::point("container.update_wanted").await?;
    let started_at = now_ns();
    let key = ObjectKey::Container(container.id.clone());
    let mut stages = Stages::new(back.store.progress(), key);
    stages.enter("limits");
    let number = container.update.asked;
    let wanted = container.update.wanted.take().unwrap_or_default();
    let outcome = put_in_force(back, &mut container, &wanted).await;
    let (in_force, error) = match outcome {
        Ok(held) => ((Some(wanted), held), None),
        Err(error) if error.is_passing() => return Err(error),
        Err(error) => ((None, None), Some(error.full_text())),
    };
    if let Some(error) = &error {
        tracing::warn!(container = %container.id, error, "cannot change the limits");
    }
    let done = Finished {
        kind: "update_container",
        object_id: container.id.to_string(),
        started_at,
        duration_ns: now_ns() - started_at,
        error,
        stages: stages.finish(),
    };
    let id = container.id;
    back.observed
        .container_updated(id, number, in_force, done)
        .await?;
    Ok(fault::point("container.updated").await?)
}

/// The limits that the kernel holds now, in the terms of those asked for; `None` when it does not
/// tell.
pub(super) fn read_back(back: &Back, path: &CgroupPath, asked: &Resources) -> Option<Resources> {
    match back.cgroups.limits(path, asked) {
        Ok(held) => Some(limits::in_force(asked, &held)),
        Err(error) => {
            tracing::warn!(cgroup = %path, %error, "cannot read the limits back");
            None
        }
    }
}

/// Limits for a cgroup that is in use.
pub(super) fn changed_limits(
    back: &Back,
    wanted: &Resources,
) -> Result<LinuxResources, ReconcileError> {
    let plan = |error| ReconcileError::Plan(format!("limits: {error}"));
    let mut limits = limits_of(wanted, &back.cgroups).map_err(plan)?;
    if let Some(memory) = limits.memory_mut() {
        // Cgroup v2 takes less than is in use, and kills for it; v1 refuses.
        memory.set_check_before_update(Some(true));
    }
    Ok(limits)
}

async fn put_in_force(
    back: &Back,
    container: &mut Container,
    wanted: &Resources,
) -> Result<Option<Resources>, ReconcileError> {
    let limits = changed_limits(back, wanted)?;
    // What does not run yet is launched with them; what has ended has nothing to limit.
    let path = match container.state {
        State::Running => container::cgroup_path(back, container).await?,
        _ => None,
    };
    let (back_too, wanted_too) = (back.clone(), wanted.clone());
    let scores = (container.spec.resources.oom_score_adj, wanted.oom_score_adj);
    let before = blocking(move || {
        let Some(path) = path else {
            back_too.cgroups.check(&limits)?;
            return Ok(None);
        };
        let before = back_too.cgroups.update(&path, &limits)?;
        match oom_score::change(&back_too.cgroups, &path, scores) {
            Ok(()) => {
                let held = read_back(&back_too, &path, &wanted_too);
                Ok(Some((before, path, held)))
            }
            Err(error) => {
                before.put_back();
                Err(error)
            }
        }
    })
    .await?;
    Arc::make_mut(&mut container.spec).resources = wanted.clone();
    match (write_record(back, container).await, before) {
        // It is not tried again, and so the client is told that the limits are as before.
        (Err(error), Some((before, path, _))) if !error.is_passing() => {
            let cgroups = back.cgroups.clone();
            blocking(move || {
                before.put_back();
                if let Err(error) = oom_score::change(&cgroups, &path, (scores.1, scores.0)) {
                    tracing::warn!(error = error.full_text(), "cannot put an OOM score back");
                }
                Err(error)
            })
            .await
        }
        (written, before) => written.map(|()| before.and_then(|(_, _, held)| held)),
    }
}

async fn write_record(back: &Back, container: &Container) -> Result<(), ReconcileError> {
    fault::point("container.limits_set").await?;
    let record = container::record(back, container).await?;
    let dir = back.paths.container(&container.id);
    blocking(move || records::write(&dir, &record)).await
}
