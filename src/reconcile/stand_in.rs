//! The cgroup that bears a pod's id, for kubelet's cAdvisor: from the process it stands for,
//! cAdvisor reads the pod's traffic.
//!
//! A pod that has an init has such a cgroup already. For another one an empty cgroup stands for the
//! oldest process of its containers (`Store::pod_process`, which containerd's API tells as well);
//! when that ends and another lives, the cgroup is made anew, by which cAdvisor asks again. Nothing
//! waits for it, and a failure costs only these figures. Only kubelet runs cAdvisor, and it always
//! names a parent; a pod without one has no such cgroup.

use super::processes::end_cgroup;
use super::{Back, ReconcileError, blocking};
use crate::cgroup::CgroupPath;
use crate::id::SandboxId;
use crate::lifecycle::sandbox::{Desired, State};
use crate::lifecycle::spec::NamespaceMode;
use crate::state::sandbox::Sandbox;

/// Makes the cgroup stand for the process that it should, if there is one.
pub(super) async fn follow(back: &Back, id: &SandboxId) {
    if let Err(error) = try_follow(back, id).await {
        let error = error.full_text();
        tracing::warn!(sandbox = %id, error, "cAdvisor will not see the pod's traffic");
    }
}

async fn try_follow(back: &Back, id: &SandboxId) -> Result<(), ReconcileError> {
    let Some(pid) = back.store.pod_process(id).await? else {
        return Ok(());
    };
    let Some(path) = path_of_ready(back, id).await? else {
        return Ok(());
    };
    let (back_too, path_too) = (back.clone(), path.clone());
    let made = blocking(move || {
        let marker = back_too.paths.marker();
        Ok(back_too
            .cgroups
            .stand_in(&path_too, &marker, &pid.to_string())?)
    })
    .await?;
    // A pod that comes down has removed it before its row says so, but not before it is to come
    // down; so whoever made it after that removes it as well.
    if made && path_of_ready(back, id).await?.is_none() {
        let back = back.clone();
        blocking(move || Ok(back.cgroups.remove(&path)?)).await?;
    }
    Ok(())
}

/// Where the cgroup of a pod that is to stay up is.
async fn path_of_ready(back: &Back, id: &SandboxId) -> Result<Option<CgroupPath>, ReconcileError> {
    let sandbox = back.store.sandbox(id).await?;
    let ready = sandbox.filter(|sandbox| {
        sandbox.desired == Desired::Ready && sandbox.state == State::Ready && !sandbox.init_ended
    });
    ready.map_or(Ok(None), |sandbox| path(back, &sandbox))
}

/// Where it is, if the pod has one.
fn path(back: &Back, sandbox: &Sandbox) -> Result<Option<CgroupPath>, ReconcileError> {
    let spec = &sandbox.spec;
    let has = spec.network == NamespaceMode::Pod
        && spec.pid != NamespaceMode::Pod
        && !spec.cgroup_parent.is_empty();
    if !has {
        return Ok(None);
    }
    let parent = back.pod_cgroup(&spec.cgroup_parent)?;
    Ok(Some(parent.join(sandbox.id.as_str())?))
}

/// Removes it with its pod, and whatever somebody has put in. What does not go at once is left to
/// the sweep.
pub(super) fn remove(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    match path(back, sandbox)? {
        Some(path) => end_cgroup(&back.cgroups, &path).map(drop),
        None => Ok(()),
    }
}
