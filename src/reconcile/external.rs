//! Containers of an OCI runtime that is a program of its own, as the back has to do with them: what
//! the runtime is told beside their start, which is the shim's.
//!
//! Nothing here decides anything: which runtime a container has is written in its launch plan, so
//! that it stays with the one that started it, whatever the configuration says by now.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::{Back, ReconcileError, blocking, sandbox_files};
use crate::cgroup::CgroupPath;
use crate::fault;
use crate::id::ContainerId;
use crate::lifecycle::handler::{Features, Handler};
use crate::lifecycle::spec::Map;
use crate::runtime::plan::{BUNDLE, ExternalRuntime, LaunchPlan};
use crate::state::container::Container;
use crate::state::sandbox::Sandbox;

/// The environment of a runtime: where it looks for programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is kept of what a runtime says.
const SAID_MAX: u64 = 8 * 1024;
/// What is read of a description of its features.
const FEATURES_MAX: u64 = 1024 * 1024;
/// What is kept of its version, in characters.
const VERSION_MAX: usize = 100;
/// Longest time for each of the two.
const FEATURES_TIMEOUT: Duration = Duration::from_secs(5);

/// The runtime of a container of `sandbox`, if that is not us.
pub(super) fn of(
    back: &Back,
    id: &ContainerId,
    sandbox: &Sandbox,
    cgroup: &CgroupPath,
) -> Result<Option<ExternalRuntime>, ReconcileError> {
    let name = &sandbox.spec.runtime_handler;
    if name.is_empty() {
        return Ok(None);
    }
    let handler = back.handlers.get(name).ok_or_else(|| {
        ReconcileError::Plan(format!("no runtime for {name:?} is configured any more"))
    })?;
    let own = back.paths.state.join("runtimes").join(name);
    Ok(Some(ExternalRuntime {
        name: name.clone(),
        path: handler.path.clone(),
        options: handler.options.clone(),
        root: handler.root.clone().unwrap_or(own),
        timeout_s: handler.timeout_s,
        id: id.to_string(),
        bundle: back.paths.container(id).join(BUNDLE),
        cgroup: cgroup.to_string(),
    }))
}

/// Those of a container's annotations that its runtime gets to see.
pub(super) fn annotations(back: &Back, sandbox: &Sandbox, all: &Map) -> Map {
    let Some(handler) = back.handlers.get(&sandbox.spec.runtime_handler) else {
        return Map::new();
    };
    let passing = all.iter().filter(|(name, _)| handler.passes(name));
    passing
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Tells the runtime to send a signal. `false`: it has no part in this container, or cannot.
pub(super) async fn signal(back: &Back, id: &ContainerId, number: i32) -> bool {
    let Some(runtime) = runtime_of(back, id).await else {
        return false;
    };
    match call(&runtime, &["kill", &runtime.id, &number.to_string()]).await {
        Ok(()) => true,
        Err(why) => {
            tracing::debug!(container = %id, why, "the runtime sends no signal");
            false
        }
    }
}

/// Has the runtime forget a container in which nothing runs any more. One that will not is
/// reported, and what it keeps is removed.
pub(super) async fn delete(back: &Back, container: &Container) -> Result<(), ReconcileError> {
    let Some(runtime) = runtime_of(back, &container.id).await else {
        return Ok(());
    };
    let kept = runtime.root.join(&runtime.id);
    if !kept.exists() {
        return Ok(());
    }
    if let Err(why) = call(&runtime, &["delete", "--force", &runtime.id]).await {
        let (id, name) = (&container.id, &runtime.name);
        tracing::warn!(container = %id, runtime = %name, why, "the runtime does not forget");
        blocking(move || sandbox_files::discard_tree(&kept)).await?;
    }
    Ok(fault::point("container.runtime_deleted").await?)
}

/// The runtime that started a container.
async fn runtime_of(back: &Back, id: &ContainerId) -> Option<ExternalRuntime> {
    plan_with_bundle(back, id).await?.external
}

/// The launch plan of a container that was started from a bundle, for another runtime or for hooks.
/// Others are not asked for theirs: a pod that goes does not wait for it to be read.
pub(super) async fn plan_with_bundle(back: &Back, id: &ContainerId) -> Option<LaunchPlan> {
    let directory = back.paths.container(id);
    if !directory.join(BUNDLE).exists() {
        return None;
    }
    let text = tokio::fs::read(directory.join("plan.json")).await.ok()?;
    serde_json::from_slice(&text).ok()
}

async fn call(runtime: &ExternalRuntime, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(&runtime.path);
    command.args(&runtime.options);
    command.arg("--root").arg(&runtime.root).args(arguments);
    let within = Duration::from_secs(runtime.timeout_s);
    let (status, said) = run(command, Said::Errors, within).await?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{status}: {}", said.trim()))
}

/// What a runtime says it can do.
///
/// # Errors
/// Why that could not be found out, in words.
pub async fn features(handler: &Handler) -> Result<Features, String> {
    let mut command = Command::new(&handler.path);
    command.args(&handler.options).arg("features");
    let within = FEATURES_TIMEOUT.min(Duration::from_secs(handler.timeout_s));
    let (status, said) = run(command, Said::Output, within).await?;
    if !status.success() {
        return Err(format!("`features` ended with {status}"));
    }
    Features::parse(said.as_bytes())
}

/// What a runtime calls itself: the first line of what `--version` prints. Empty if there is none.
pub async fn version(handler: &Handler) -> String {
    let mut command = Command::new(&handler.path);
    command.args(&handler.options).arg("--version");
    let within = FEATURES_TIMEOUT.min(Duration::from_secs(handler.timeout_s));
    let said = match run(command, Said::Output, within).await {
        Ok((status, said)) if status.success() => said,
        _ => return String::new(),
    };
    let line = said.lines().next().unwrap_or_default().trim();
    line.chars()
        .filter(|letter| !letter.is_control())
        .take(VERSION_MAX)
        .collect()
}

/// Which of its streams counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Output,
    Errors,
}

/// Runs a program that may be anything: bounded in time and in what is kept of its words.
async fn run(
    mut command: Command,
    wanted: Said,
    within: Duration,
) -> Result<(ExitStatus, String), String> {
    command.env_clear().env("PATH", PATH).current_dir("/");
    command
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let (out, err) = match wanted {
        Said::Output => (Stdio::piped(), Stdio::null()),
        Said::Errors => (Stdio::null(), Stdio::piped()),
    };
    let mut child = command
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let group = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut said = Vec::new();
    let talk = async {
        // Whoever says more than is kept is stopped by its pipe, and then by the time.
        match (stdout, stderr) {
            (Some(out), _) => out
                .take(FEATURES_MAX)
                .read_to_end(&mut said)
                .await
                .map(drop),
            (_, Some(err)) => err.take(SAID_MAX).read_to_end(&mut said).await.map(drop),
            _ => Ok(()),
        }
    };
    let ending = async {
        let (_, status) = tokio::join!(talk, child.wait());
        status
    };
    let ended = tokio::time::timeout(within, ending).await;
    let ended = ended.map_err(|_| {
        // It is not reaped, so the group's number is still its own.
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        format!("did not end in {} s and was killed", within.as_secs())
    })?;
    let status = ended.map_err(|error| error.to_string())?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}
