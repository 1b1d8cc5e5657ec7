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
pub(crate) struct Running {
    exit: ExecExit,
    pidfd: OwnedFd,
    leaf: Option<Leaf>,
    /// The master side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
}

/// The leaf of a command that is being started. Given up before it runs (in a frozen container it
/// may not even have begun), what is in the leaf ends as soon as it can; without a leaf the shim
/// gives the launch up.
struct Starting(Option<Leaf>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(leaf) = &self.0 {
            leaf.kill();
        }
    }
}

impl Running {
    /// Starts it; with `None` for its streams it gets a terminal. Dropped before it is through, it
    /// leaves nothing that runs.
    ///
    /// # Errors
    /// Why it cannot be started, in words.
    pub(crate) async fn start(
        shim: &ShimClient,
        id: &ContainerId,
        mut plan: ExecPlan,
        streams: Option<[OwnedFd; 3]>,
    ) -> Result<Self, String> {
        // Exec ids are never seen by clients.
        let exec_id = ContainerId::random();
        let mut leaf = Starting(Leaf::make(plan.cgroup.clone(), exec_id.clone()).await);
        if let Some(leaf) = &leaf.0 {
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
            leaf: leaf.0.take(),
            terminal: launched.terminal,
        })
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When the shim goes away first, in words.
    pub(crate) async fn wait(&mut self) -> Result<ExitRecord, String> {
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
        self.end(grace).await;
    }

    /// Kills it with its children, and waits for that as long as `patience` allows: its leaf is to
    /// be empty when it is removed.
    pub(crate) async fn end(mut self, patience: Duration) {
        if !self.leaf.as_ref().is_some_and(Leaf::kill) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        let _ = tokio::time::timeout(patience, self.exit.wait()).await;
    }
}
