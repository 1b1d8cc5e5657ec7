//! A command in a running container: it runs as the container's own process does, with the same
//! user, environment, capabilities, namespaces and cgroup, in a leaf of that cgroup, so that it can
//! be ended with its children.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::leaf::Leaf;
use crate::id::ContainerId;
use crate::runtime::plan::{ExecPlan, LaunchPlan};
use crate::shim::client::{ExecExit, ShimClient, ShimClientError};
use crate::shim::protocol::ExitRecord;

/// The plan of a command in a container whose files are below `state_dir`.
///
/// # Errors
/// Why the container's launch plan cannot be read, in words.
pub(crate) async fn plan(
    state_dir: &Path,
    id: &ContainerId,
    args: Vec<String>,
) -> Result<ExecPlan, String> {
    let none = "it has no process";
    let plan = launch_plan(state_dir, id).await?;
    plan.exec(args)
        .ok_or_else(|| format!("cannot read the launch plan of {id}: {none}"))
}

/// The launch plan of a container.
///
/// # Errors
/// As [`plan`].
pub(super) async fn launch_plan(state_dir: &Path, id: &ContainerId) -> Result<LaunchPlan, String> {
    let path = state_dir
        .join("containers")
        .join(id.as_str())
        .join("plan.json");
    let unreadable = |why: &dyn std::fmt::Display| {
        format!("cannot read the launch plan {}: {why}", path.display())
    };
    let text = tokio::fs::read(&path).await.map_err(|e| unreadable(&e))?;
    serde_json::from_slice(&text).map_err(|e| unreadable(&e))
}

/// A command that runs.
pub(super) struct Running {
    exit: ExecExit,
    pidfd: OwnedFd,
    leaf: Option<Leaf>,
    /// The master side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
}

impl Running {
    /// Starts it; with `None` for its streams it gets a terminal.
    pub(super) async fn start(
        shim: &ShimClient,
        id: &ContainerId,
        mut plan: ExecPlan,
        streams: Option<[OwnedFd; 3]>,
    ) -> Result<Self, String> {
        // Exec ids are never seen by clients.
        let exec_id = ContainerId::random();
        let leaf = Leaf::make(plan.cgroup.clone(), exec_id.clone()).await;
        if let Some(leaf) = &leaf {
            plan.cgroup.unified_dir = Some(leaf.dir().to_owned());
        }
        let started = shim
            .exec(exec_id.as_str(), id.as_str(), &plan, streams)
            .await;
        let (launched, exit) = started.map_err(|error| match error {
            ShimClientError::Launch(error) => error.message,
            error => error.to_string(),
        })?;
        Ok(Self {
            exit,
            pidfd: launched.pidfd,
            leaf,
            terminal: launched.terminal,
        })
    }

    /// Waits until it has ended.
    pub(super) async fn wait(&mut self) -> Result<ExitRecord, String> {
        self.exit.wait().await.map_err(|error| error.to_string())
    }

    /// Ends it because nobody listens any more: hung up at once, as a terminal does it, and killed
    /// with its children after `grace`.
    pub(super) async fn hang_up(mut self, grace: Duration) {
        // One that has ended meanwhile needs no signal.
        let _ = pidfd_send_signal(&self.pidfd, Signal::HUP);
        if tokio::time::timeout(grace, self.exit.wait()).await.is_ok() {
            return;
        }
        if !self.leaf.as_ref().is_some_and(Leaf::kill) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        // So that its leaf is empty when it is removed.
        let _ = tokio::time::timeout(grace, self.exit.wait()).await;
    }
}
