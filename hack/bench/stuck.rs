//! Containers that cannot be ended: frozen by cgroup v1's freezer, which SIGKILL does not get
//! through. Callers keep asking for their end all the while.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::client::Cri;
use crate::phase::Pair;

/// Where the freezer is mounted, where it is.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
/// How long each caller waits before it asks again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Frozen containers and those who wait for their end.
pub(crate) struct Stuck {
    frozen: Vec<PathBuf>,
    callers: JoinSet<()>,
}

impl Stuck {
    /// Freezes the containers and has each one stopped. `None` where that cannot be.
    pub(crate) async fn freeze(cri: &mut Cri, pods: &[Pair]) -> Result<Option<Self>> {
        if !Path::new(FREEZER).is_dir() {
            return Ok(None);
        }
        let mut stuck = Self {
            frozen: Vec::new(),
            callers: JoinSet::new(),
        };
        for (_, container) in pods {
            let pid = cri.pid(container).await?;
            let state = freezer_of(pid)?.join("freezer.state");
            fs::write(&state, "FROZEN").with_context(|| format!("freeze {}", state.display()))?;
            stuck.frozen.push(state);
            let (mut cri, id) = (cri.clone(), container.clone());
            stuck.callers.spawn(async move {
                // The call ends at its deadline, and kubelet would ask again.
                while cri.stop_within(&id, PATIENCE).await.is_err() {}
            });
        }
        Ok(Some(stuck))
    }

    /// Lets everything go and waits for the callers.
    pub(crate) async fn thaw(mut self) {
        self.let_go();
        while self.callers.join_next().await.is_some() {}
    }

    fn let_go(&mut self) {
        for state in self.frozen.drain(..) {
            // What has ended all the same is gone.
            let _ = fs::write(state, "THAWED");
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The freezer cgroup of a process (cgroups(7), `/proc/<pid>/cgroup`).
fn freezer_of(pid: i32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("find a cgroup")?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let path = lines.find_map(|(_, rest)| {
        let (controllers, path) = rest.split_once(':')?;
        let freezer = controllers.split(',').any(|name| name == "freezer");
        freezer.then_some(path)
    });
    let path = path.context("the container is in no freezer cgroup")?;
    let path = path.trim_start_matches('/');
    anyhow::ensure!(!path.is_empty(), "the container is in the freezer's root");
    Ok(Path::new(FREEZER).join(path))
}
