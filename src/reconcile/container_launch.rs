//! The launch of a container: cgroup, plan, process; and finding out, after a crash in between,
//! how far it had come.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::container_plan::{self, Parts};
use super::processes::{self, Handle};
use super::{
    Back, ReconcileError, blocking, cdi, container, container_confinement, container_update,
    devices, hooks, image_volume, propagation, sampler, stand_in,
};
use crate::fault;
use crate::id::{ContainerId, ObjectKey};
use crate::lifecycle::container::{Desired, State};
use crate::lifecycle::image::VOLUME_FAILED;
use crate::lifecycle::spec::{MountSpec, NamespaceMode, UserIds};
use crate::runtime::plan::LaunchPlan;
use crate::shim::client::{Seen, ShimClient, ShimClientError};
use crate::shim::protocol::Refusal;
use crate::snapshot;
use crate::state::container::Container;
use crate::state::container_facts::{Exit, Started};
use crate::state::now_ns;
use crate::state::operation::Finished;
use crate::state::progress::Stages;
use crate::sys::ownership::write_private;

/// Exit code and reason of a container whose process could not be started, as containerd has them.
const START_ERROR_CODE: i32 = 128;

/// Starts the container's process, or records why it cannot be.
pub(super) async fn launch(
    back: &Back,
    container: &Container,
    desired: Desired,
) -> Result<(), ReconcileError> {
    let id = &container.id;
    let begun = now_ns();
    let mut stages = Stages::new(back.store.progress(), ObjectKey::Container(id.clone()));
    let shim = back.shim()?;
    let left_over = match container.state {
        State::Starting => resume(back, container, &shim).await?,
        _ => LeftOver::Nothing,
    };
    if left_over == LeftOver::Recorded {
        return Ok(());
    }
    if desired > Desired::Running && left_over != LeftOver::UnderWay {
        // The start was under way when the daemon died, had not come to a process, and is no
        // longer wanted.
        let exit = Exit {
            code: START_ERROR_CODE,
            at: now_ns(),
            reason: "StartError",
            error: Some("the container was stopped before it had started".into()),
            ran: false,
        };
        back.observed.container_exited(id.clone(), exit).await?;
        return Ok(());
    }
    back.observed.container_starting(id.clone()).await?;
    fault::point("container.starting").await?;
    let may_be_dirty = left_over == LeftOver::Unknown;
    let result = start(back, container, &shim, &mut stages, may_be_dirty).await;
    let done = |stages: Stages<'_>, error| Finished {
        kind: "start_container",
        object_id: id.to_string(),
        started_at: begun,
        duration_ns: now_ns() - begun,
        error,
        stages: stages.finish(),
    };
    match result {
        Ok(started) => {
            let done = done(stages, None);
            back.observed
                .container_running(id.clone(), started, done)
                .await?;
            // Many small reads of kernel files, for which nobody has to wait.
            let (back, id, pod) = (back.clone(), id.clone(), container.sandbox_id.clone());
            tokio::spawn(async move {
                // First: statistics may be asked for right after the start.
                if let Err(error) = sampler::first_sample(&back, &id).await {
                    tracing::debug!(container = %id, error = error.full_text(), "cannot sample");
                }
                stand_in::follow(&back, &pod).await;
            });
            Ok(fault::point("container.running").await?)
        }
        Err(error) if error.is_passing() => Err(error),
        // The launch of a former daemon came to its end while we joined it: the next look finds it.
        Err(ReconcileError::Shim(ShimClientError::Refused(Refusal::Exited(_)))) => Ok(()),
        Err(error) => {
            let text = why_not_started(&error);
            tracing::warn!(container = %id, error = text, "cannot start the container");
            let exit = Exit {
                code: START_ERROR_CODE,
                at: now_ns(),
                reason: "StartError",
                error: Some(text.clone()),
                ran: false,
            };
            let done = done(stages, Some(text));
            back.observed
                .container_start_failed(id.clone(), exit, done)
                .await?;
            Ok(fault::point("container.start_failed").await?)
        }
    }
}

/// The text of a failed start; kubelet looks for its own word when an image volume is to blame.
fn why_not_started(error: &ReconcileError) -> String {
    let text = error.full_text();
    match error {
        ReconcileError::Shim(ShimClientError::Launch(launch)) if launch.is_image_volume_error() => {
            format!("{VOLUME_FAILED}: {}: {text}", launch.stage)
        }
        _ => text,
    }
}

async fn start(
    back: &Back,
    container: &Container,
    shim: &ShimClient,
    stages: &mut Stages<'_>,
    may_be_dirty: bool,
) -> Result<Started, ReconcileError> {
    stages.enter("plan");
    let plan = plan(back, container).await?;
    stages.enter("cgroup");
    let path = container::cgroup_path(back, container).await?;
    let path = path.ok_or_else(|| ReconcileError::Plan("its sandbox is gone".into()))?;
    let resources = plan
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone());
    let hooked = plan.spec.hooks().is_some();
    let plan_path = back.paths.container(&container.id).join("plan.json");
    let (back_too, path_too, plan_path_too) = (back.clone(), path.clone(), plan_path.clone());
    let sources = container.spec.mounts.clone();
    let asked = container.spec.resources.clone();
    let (holder, limits) = blocking(move || {
        if may_be_dirty {
            // A shim that died in mid-launch may have left a process that nobody knows.
            if !processes::end_cgroup(&back_too.cgroups, &path_too)? {
                return Err(ReconcileError::StillEnding);
            }
            fault::blocking_point("container.emptied")?;
        }
        let holder = back_too.cgroups.prepare(&path_too, resources.as_ref())?;
        back_too.cgroups.mark(&path_too, &back_too.paths.marker())?;
        let limits = container_update::read_back(&back_too, &path_too, &asked);
        fault::blocking_point("container.cgroup")?;
        make_sources(&sources)?;
        fault::blocking_point("container.sources")?;
        write_plan(&plan, &plan_path_too)?;
        Ok((holder, limits))
    })
    .await?;
    fault::point("container.plan").await?;
    stages.enter("launch");
    let asked_at = now_ns();
    let launched = shim.launch(container.id.as_str(), &plan_path).await;
    processes::let_go(holder).await?;
    if hooked {
        hooks::record(back, &container.id).await?;
    }
    let launched = launched?;
    fault::point("container.launched").await?;
    let started = Started {
        pid: launched.pid,
        start: launched.start_time,
        // By the clock that stamps its exit; what another shim started did so before we asked.
        at: if launched.started_at_ns > 0 {
            launched.started_at_ns
        } else {
            asked_at
        },
        runs_as: launched.identity.map(|who| UserIds {
            uid: who.uid,
            gid: who.gid,
            groups: who.groups,
        }),
        limits,
    };
    let handle = Handle {
        pidfd: launched.pidfd,
        _outputs: launched.outputs,
        terminal: launched.terminal,
        ooms_before_stop: OnceLock::new(),
    };
    back.processes.put(&container.id, handle);
    fault::point("container.held").await?;
    stages.enter("record");
    Ok(started)
}

/// What is left of a launch that a dead daemon had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeftOver {
    /// There was none.
    Nothing,
    /// It came to a process, which is recorded now.
    Recorded,
    /// The shim is at it: asking for it again joins it.
    UnderWay,
    /// This shim knows nothing of it. A shim before it may have left something in the cgroup.
    Unknown,
}

/// Finds out whether a launch that a dead daemon had begun came to a process.
async fn resume(
    back: &Back,
    container: &Container,
    shim: &ShimClient,
) -> Result<LeftOver, ReconcileError> {
    let (item, started_at_ns) = match shim.look(container.id.as_str()).await? {
        Seen::Held(item, started_at_ns) => (item, started_at_ns),
        Seen::UnderWay => return Ok(LeftOver::UnderWay),
        Seen::Nothing => return Ok(LeftOver::Unknown),
    };
    let now = now_ns();
    let done = Finished {
        kind: "start_container",
        object_id: container.id.to_string(),
        started_at: now,
        duration_ns: 0,
        error: None,
        stages: vec![("found running", 0)],
    };
    super::recovery::hold(back, shim, &container.id, item.pid, item.start_time).await;
    let limits = match container::cgroup_path(back, container).await? {
        Some(path) => {
            let (back, asked) = (back.clone(), container.spec.resources.clone());
            blocking(move || Ok(container_update::read_back(&back, &path, &asked))).await?
        }
        None => None,
    };
    let started = Started {
        pid: item.pid,
        start: item.start_time,
        at: if started_at_ns > 0 {
            started_at_ns
        } else {
            now
        },
        runs_as: None,
        limits,
    };
    back.observed
        .container_running(container.id.clone(), started, done)
        .await?;
    fault::point("container.resumed").await?;
    Ok(LeftOver::Recorded)
}

async fn plan(back: &Back, container: &Container) -> Result<LaunchPlan, ReconcileError> {
    let sandbox = back.store.sandbox(&container.sandbox_id).await?;
    let sandbox = sandbox.ok_or_else(|| ReconcileError::Plan("its sandbox is gone".into()))?;
    let snapshot = snapshot::locate(&back.paths.root, container.id.as_str())?;
    let chain = match back.store.snapshot_top(&container.id).await? {
        Some(top) if snapshot.kind == snapshot::Kind::Overlay => {
            back.store.layer_chain(&top).await?
        }
        _ => Vec::new(),
    };
    let lower = image_volume::directories(back, &chain).await?;
    let (spec, back_too) = (container.spec.clone(), back.clone());
    let of_node = move || {
        let edits = cdi::edits(&back_too, &spec)?;
        let mut nodes = devices::nodes(&spec)?;
        cdi::add_nodes(&mut nodes, &edits, &spec.process)?;
        let hooks = hooks::load(&back_too.hooks.directories)?;
        Ok((
            container_confinement::of(&spec.security)?,
            nodes,
            edits,
            hooks,
        ))
    };
    let (confinement, devices, edits, hooks) = blocking(of_node).await?;
    let parts = Parts {
        snapshot,
        lower,
        image_volumes: image_volume::plan(back, container).await?,
        confinement,
        devices,
        hooks,
        target: target_namespace(back, container).await?,
    };
    let mut plan = container_plan::build(back, container, &sandbox, parts)?;
    cdi::add_to(&mut plan, &edits, back.hooks.timeout_s)?;
    Ok(plan)
}

/// The PID namespace of the container that this one is to join (`kubectl debug --target`); `None`
/// also when that is the node's.
async fn target_namespace(
    back: &Back,
    container: &Container,
) -> Result<Option<PathBuf>, ReconcileError> {
    let NamespaceMode::Target(id) = &container.spec.security.pid else {
        return Ok(None);
    };
    let gone = || {
        ReconcileError::Plan(format!(
            "container {id}, whose PID namespace it joins, does not run"
        ))
    };
    let id = ContainerId::try_from(id.clone()).map_err(|_| gone())?;
    let target = back.store.container(&id).await?.ok_or_else(gone)?;
    if target.spec.security.pid == NamespaceMode::Node {
        return Ok(None);
    }
    match target.process {
        Some((pid, start)) if processes::is_alive(pid, start) => {
            Ok(Some(format!("/proc/{pid}/ns/pid").into()))
        }
        _ => Err(gone()),
    }
}

/// Makes sure of what is mounted from the node.
fn make_sources(mounts: &[MountSpec]) -> Result<(), ReconcileError> {
    for mount in mounts.iter().filter(|mount| mount.image.is_none()) {
        make_source(&mount.host_path)?;
    }
    propagation::check(mounts)
}

/// A host path that is not there becomes a directory, as Docker and containerd do; whoever wants an
/// error asks kubelet for a typed hostPath.
fn make_source(host_path: &str) -> Result<(), ReconcileError> {
    match std::fs::symlink_metadata(host_path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(host_path).map_err(ReconcileError::file("make", host_path))
        }
        _ => Ok(()),
    }
}

/// The environment in it is nobody's business but root's.
fn write_plan(plan: &LaunchPlan, path: &std::path::Path) -> Result<(), ReconcileError> {
    let json = serde_json::to_vec(plan).map_err(|error| ReconcileError::Plan(error.to_string()))?;
    let written = write_private(path, &json);
    written
        .map(drop)
        .map_err(ReconcileError::file("write", path))
}
