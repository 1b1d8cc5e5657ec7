//! Hooks of a container that we start ourselves (OCI runtime specification, "POSIX-platform
//! Hooks"). Another runtime runs its own.
//!
//! ```text
//! shim ── driver ── the container's process
//!           │            joins its namespaces, asks, and waits ─┐
//!           ├── prestart, createRuntime ◄──────────────────────┘
//!           │            createContainer, the new root, startContainer, its command
//!           ├── poststart
//!           └── tells the shim whose process this is, and ends
//! ```
//!
//! The driver is in between for the same reason as with other runtimes: the shim waits for nothing.
//! A container without hooks has none. `poststop` is the daemon's.

mod driver;
mod program;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use oci_spec::runtime::{Hook, Spec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::confine::Confinement;
use super::error::{At, LaunchError, stage};
use super::plan::{BUNDLE, LaunchPlan};

pub(super) use driver::begin;

/// What hooks are told about a container (OCI runtime specification, "State").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    oci_version: String,
    id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: String,
    annotations: std::collections::BTreeMap<String, String>,
}

impl State {
    /// Of the container of a plan.
    #[must_use]
    pub fn of(plan: &LaunchPlan, status: &'static str, pid: Option<i32>) -> Self {
        let directory = &plan.stdio.fifo_dir;
        let annotations = plan.spec.annotations().clone().unwrap_or_default();
        let name = directory.file_name().unwrap_or_default();
        Self {
            oci_version: plan.spec.version().clone(),
            id: name.to_string_lossy().into_owned(),
            status,
            pid,
            bundle: directory.join(BUNDLE).display().to_string(),
            annotations: annotations.into_iter().collect(),
        }
    }

    /// As it is given to a hook.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// What became of a hook: a line of [`RECORD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The stage.
    pub stage: String,
    /// Its program.
    pub path: String,
    /// What it said, as far as that is kept.
    pub said: String,
    /// Why it has failed.
    pub error: Option<String>,
}

/// In a container's directory: what its hooks had to say.
pub const RECORD: &str = "hooks.json";

/// Whether there is a hook of any stage; also `poststop`, which needs the bundle to be there.
pub(super) fn are_in(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else {
        return false;
    };
    let stages = [
        of_prestart(spec),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    let mut stages = stages.into_iter().flatten();
    stages.any(|hooks| !hooks.is_empty())
}

/// Whether hooks run in the container's namespaces before it has its root.
pub(super) fn are_for_new(spec: &Spec) -> bool {
    let hooks = spec.hooks().as_ref();
    let hooks = hooks.and_then(|hooks| hooks.create_container().as_deref());
    hooks.is_some_and(|hooks| !hooks.is_empty())
}

/// Whether hooks run in the container, confined as its command.
pub(super) fn are_inside(spec: &Spec) -> bool {
    let hooks = spec.hooks().as_ref();
    let hooks = hooks.and_then(|hooks| hooks.start_container().as_deref());
    hooks.is_some_and(|hooks| !hooks.is_empty())
}

/// The stage that the specification has given another name. It is still what operators write.
fn of_prestart(spec: &Spec) -> &Option<Vec<Hook>> {
    static NONE: Option<Vec<Hook>> = None;
    spec.hooks()
        .as_ref()
        .map_or(&NONE, |hooks| hooks.prestart())
}

/// The container's side: what its process needs to have hooks run, and to run some itself.
#[derive(Debug)]
pub(super) struct Gate {
    socket: OwnedFd,
    record: File,
}

impl Gate {
    /// The descriptors that the process keeps.
    pub(super) fn descriptors(&self) -> [i32; 2] {
        [self.socket.as_raw_fd(), self.record.as_raw_fd()]
    }

    /// Has the driver run what runs on the node, and waits for that.
    pub(super) fn ask(&self) -> Result<(), LaunchError> {
        let what = || "have the hooks of the node run";
        rustix::io::write(&self.socket, b"?").at(stage::HOOK, what)?;
        let mut answer = [0_u8; 1];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut answer));
        match length.at(stage::HOOK, what)? {
            // It has told why by itself.
            0 => Err(LaunchError::refused(stage::HOOK, what(), Errno::CANCELED)),
            _ => Ok(()),
        }
    }

    /// Runs the hooks of a stage in this process' place.
    pub(super) fn run(
        &self,
        stage: &'static str,
        plan: &LaunchPlan,
        confinement: Option<&Confinement>,
    ) -> Result<(), LaunchError> {
        let hooks = plan.spec.hooks().as_ref();
        let hooks = hooks.and_then(|hooks| match stage {
            "createContainer" => hooks.create_container().as_deref(),
            _ => hooks.start_container().as_deref(),
        });
        // Its number inside is no use to anybody.
        let state = State::of(plan, "created", None);
        run_all(
            stage,
            hooks.unwrap_or_default(),
            &state,
            &self.record,
            confinement,
        )
    }
}

/// Runs hooks one after the other; the first that fails is the last.
fn run_all(
    stage: &'static str,
    hooks: &[Hook],
    state: &State,
    mut record: &File,
    confinement: Option<&Confinement>,
) -> Result<(), LaunchError> {
    for hook in hooks {
        let (said, result) = program::run(hook, &state.to_json(), confinement);
        let ran = Ran {
            stage: stage.to_owned(),
            path: hook.path().display().to_string(),
            said,
            error: result.as_ref().err().map(ToString::to_string),
        };
        let mut line = serde_json::to_vec(&ran).unwrap_or_default();
        line.push(b'\n');
        // One write: others of the container append to the same file.
        let _ = record.write_all(&line);
        result.map_err(|error| {
            let said = if ran.said.is_empty() {
                String::new()
            } else {
                format!(": {}", ran.said)
            };
            let message = format!("{stage} hook {:?}: {error}{said}", ran.path);
            LaunchError::invalid(stage::HOOK, message)
        })?;
    }
    Ok(())
}
