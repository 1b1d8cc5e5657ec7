//! One look at a container: steps until wish and fact agree or something has to be waited for.

use super::{
    Back, ReconcileError, blocking, container_launch, container_update, external, hooks,
    image_volume, processes, records, sandbox_files, stand_in,
};
use crate::cgroup::CgroupPath;
use crate::fault;
use crate::id::{ContainerId, ObjectKey};
use crate::lifecycle::container::{Facts, State, Step, effective, next_step};
use crate::lifecycle::record::ContainerRecord;
use crate::lifecycle::{sandbox, signal};
use crate::snapshot;
use crate::state::container::Container;
use crate::state::job::Outcome;
use crate::state::now_ns;
use crate::state::operation::Finished;
use crate::state::progress::Stages;

/// An exit comes by itself; this is when we look whether it was missed, at first and at last.
const EXIT_NS: i64 = 1_000_000_000;
const EXIT_MAX_NS: i64 = 60_000_000_000;
/// Pause before a cgroup that is still populated is looked at again, at first and at last.
const POPULATED_NS: i64 = 5_000_000;
const POPULATED_MAX_NS: i64 = 5_000_000_000;

/// Brings one container to rest.
pub(super) async fn reconcile(back: &Back, id: &ContainerId) -> Result<Outcome, ReconcileError> {
    let key = ObjectKey::Container(id.clone());
    let outcome = steps(back, id, &key).await;
    if matches!(outcome, Ok(Outcome::Done)) {
        back.store.progress().rests(&key);
    }
    outcome
}

async fn steps(back: &Back, id: &ContainerId, key: &ObjectKey) -> Result<Outcome, ReconcileError> {
    let progress = back.store.progress();
    let mut prepared = false;
    loop {
        let Some(container) = back.store.container(id).await? else {
            return Ok(Outcome::Done);
        };
        let now = now_ns();
        let facts = Facts {
            signalled: container.signalled_at.is_some(),
            // A pod that comes down gives no grace of its own.
            grace_over: container.sandbox.0 != sandbox::Desired::Ready
                || container.stop_at.is_none_or(|stop_at| stop_at <= now),
            released: container.released,
            limits_wanted: container.update.is_wanted(),
        };
        let (sandbox_desired, sandbox_state) = container.sandbox;
        let desired = effective(container.desired, sandbox_desired, sandbox_state);
        match next_step(desired, container.state, facts) {
            Step::Rest => {
                // What has never been started has lost nothing that cannot be made again.
                if container.state == State::Created && !prepared {
                    let record = record(back, &container).await?;
                    let back = back.clone();
                    blocking(move || make_directories(&back, &container, &record)).await?;
                }
                return Ok(Outcome::Done);
            }
            Step::Prepare => {
                prepare(back, &container).await?;
                prepared = true;
            }
            Step::Limit => container_update::update(back, container).await?,
            Step::Launch => container_launch::launch(back, &container, desired).await?,
            Step::Signal => {
                progress.at(key, "stop signal");
                send_stop_signal(back, &container).await?;
            }
            Step::AwaitGrace => {
                let left = container.stop_at.unwrap_or(now).saturating_sub(now).max(0);
                return Ok(Outcome::Again(progress.wait(key, "grace", left, left)));
            }
            Step::Kill => {
                progress.at(key, "kill");
                kill(back, &container).await?;
                let pause = progress.wait(key, "kill", EXIT_NS, EXIT_MAX_NS);
                return Ok(Outcome::Again(pause));
            }
            Step::Release => {
                progress.at(key, "release");
                if !release(back, &container).await? {
                    let pause = progress.wait(key, "release", POPULATED_NS, POPULATED_MAX_NS);
                    return Ok(Outcome::Again(pause));
                }
            }
            Step::Remove => {
                progress.at(key, "remove");
                remove(back, &container).await?;
                return Ok(Outcome::Done);
            }
        }
    }
}

/// Where the container's cgroup is.
pub(super) async fn cgroup_path(
    back: &Back,
    container: &Container,
) -> Result<Option<CgroupPath>, ReconcileError> {
    let Some(sandbox) = back.store.sandbox(&container.sandbox_id).await? else {
        return Ok(None);
    };
    let parent = &sandbox.spec.cgroup_parent;
    Ok(Some(back.member_cgroup(parent, container.id.as_str())?))
}

async fn prepare(back: &Back, container: &Container) -> Result<(), ReconcileError> {
    fault::point("container.recorded").await?;
    let id = &container.id;
    let mut stages = Stages::new(back.store.progress(), ObjectKey::Container(id.clone()));
    stages.record("queue", now_ns() - container.created_at);
    stages.enter("snapshot");
    let record = record(back, container).await?;
    let (back_too, container_too) = (back.clone(), container.clone());
    let made = async {
        if back.snapshots == snapshot::Kind::Native {
            let (back, record) = (back.clone(), record.clone());
            blocking(move || image_volume::copy(&back, &record)).await?;
        }
        image_volume::check(back, container).await?;
        blocking(move || make_directories(&back_too, &container_too, &record)).await
    }
    .await;
    let done = |stages: Stages<'_>, error| Finished {
        kind: "create_container",
        object_id: id.to_string(),
        started_at: container.created_at,
        duration_ns: now_ns() - container.created_at,
        error,
        stages: stages.finish(),
    };
    match made {
        Ok(rootfs) => {
            back.observed
                .container_created(id.clone(), rootfs, done(stages, None))
                .await?;
            Ok(fault::point("container.created").await?)
        }
        Err(error) if error.is_passing() => Err(error),
        Err(error) => {
            let text = error.full_text();
            tracing::warn!(container = %id, error = text, "cannot prepare the container");
            back.observed
                .container_error(id.clone(), done(stages, Some(text)))
                .await?;
            Ok(fault::point("container.error").await?)
        }
    }
}

/// The container's row as it is kept on disk, with the layers it stands on: their image may go
/// before it does.
pub(super) async fn record(
    back: &Back,
    container: &Container,
) -> Result<ContainerRecord, ReconcileError> {
    let top = back.store.snapshot_top(&container.id).await?;
    Ok(ContainerRecord {
        id: container.id.clone(),
        sandbox_id: container.sandbox_id.clone(),
        image_id: container.image_id.clone(),
        spec: container.spec.as_ref().clone(),
        created_at: container.created_at,
        layers: back.store.layer_records(top.as_deref()).await?,
        volumes: image_volume::records(back, container).await?,
    })
}

/// Makes the writable layer, the directory of the FIFOs and that of the log. Idempotent.
fn make_directories(
    back: &Back,
    container: &Container,
    record: &ContainerRecord,
) -> Result<String, ReconcileError> {
    let layers = record.layers.iter().rev();
    let chain: Vec<String> = layers.map(|layer| layer.chain_id.clone()).collect();
    let lower = image_volume::paths(back, &chain)?;
    let id = container.id.as_str();
    let snapshot = snapshot::ensure_snapshot(&back.paths.root, id, back.snapshots, &lower)?;
    fault::blocking_point("container.snapshot")?;
    let dir = back.paths.container(&container.id);
    std::fs::create_dir_all(&dir).map_err(ReconcileError::file("make", &dir))?;
    fault::blocking_point("container.directory")?;
    records::write(&dir, record)?;
    if let Some(parent) = std::path::Path::new(&container.log_path).parent()
        && !container.log_path.is_empty()
    {
        std::fs::create_dir_all(parent).map_err(ReconcileError::file("make", parent))?;
    }
    fault::blocking_point("container.prepared")?;
    Ok(snapshot.upper.display().to_string())
}

async fn send_stop_signal(back: &Back, container: &Container) -> Result<(), ReconcileError> {
    fault::point("container.stopping").await?;
    let number = container.spec.process.stop_signal;
    let number = if number == 0 { signal::TERM } else { number };
    let path = cgroup_path(back, container).await?;
    let ooms = path.map_or(0, |path| ooms_so_far(back, &path));
    if let Some(handle) = back.processes.get(&container.id) {
        handle.ooms_before_stop.get_or_init(|| ooms);
        if !external::signal(back, &container.id, number).await {
            processes::signal(&handle.pidfd, number)?;
        }
    }
    fault::point("container.signal_sent").await?;
    back.observed
        .container_signalled(container.id.clone(), number, ooms)
        .await?;
    Ok(fault::point("container.signalled").await?)
}

/// What the kernel has killed so far is not what ends a container that is told to end from now on.
fn ooms_so_far(back: &Back, path: &CgroupPath) -> u64 {
    back.cgroups.oom_kills(path).unwrap_or(0)
}

/// Kills everything the container is made of. The exit comes through the monitor.
async fn kill(back: &Back, container: &Container) -> Result<(), ReconcileError> {
    let path = cgroup_path(back, container).await?;
    let handle = back.processes.get(&container.id);
    let back = back.clone();
    blocking(move || {
        if let Some(path) = path.filter(|path| back.cgroups.exists(path)) {
            if let Some(handle) = &handle {
                handle
                    .ooms_before_stop
                    .get_or_init(|| ooms_so_far(&back, &path));
            }
            back.cgroups.kill(&path)?;
        }
        if let Some(handle) = handle {
            processes::signal(&handle.pidfd, signal::KILL)?;
        }
        Ok(fault::blocking_point("container.killed")?)
    })
    .await
}

/// Removes the container's cgroup; `false` says that something in it still ends.
async fn release(back: &Back, container: &Container) -> Result<bool, ReconcileError> {
    if let Some(path) = cgroup_path(back, container).await? {
        let back_too = back.clone();
        let gone = blocking(move || processes::end_cgroup(&back_too.cgroups, &path)).await?;
        if !gone {
            return Ok(false);
        }
    }
    external::delete(back, container).await?;
    hooks::poststop(back, &container.id).await?;
    fault::point("container.cgroup_removed").await?;
    back.store.samples().remove(&container.id);
    back.observed
        .container_released(container.id.clone())
        .await?;
    fault::point("container.released").await?;
    // Whoever stood for the pod's network may have been this one.
    stand_in::follow(back, &container.sandbox_id).await;
    Ok(true)
}

async fn remove(back: &Back, container: &Container) -> Result<(), ReconcileError> {
    if let Ok(shim) = back.shim() {
        shim.forget(container.id.as_str()).await?;
    }
    fault::point("container.forgotten").await?;
    let dir = back.paths.container(&container.id);
    blocking(move || sandbox_files::discard_tree(&dir)).await?;
    fault::point("container.files_removed").await?;
    back.processes.remove(&container.id);
    let sandbox = container.sandbox_id.clone();
    back.observed
        .container_removed(container.id.clone(), sandbox)
        .await?;
    Ok(fault::point("container.removed").await?)
}
