//! The sweep: compares what exists with what the rows say (`lifecycle::difference`), has orphans
//! removed and broken things mended. At start, every few minutes, and when an operator asks
//! (`quiltd check`).
//!
//! ```text
//! rows of pods ─► list kernel and disk ─► all rows ─► compare ─► again, after a moment ─► mend
//! ```
//!
//! Nothing is mended here: an orphan becomes a cleanup task, a broken pod gets a look, so that what
//! cannot be mended at once is visible and tried again, and never meets another step at the same
//! pod. Only what is seen twice counts, since the node goes on living meanwhile.

mod list;
mod mend;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::{Back, ReconcileError, node_network, plugin_network, pod_network};
use crate::fault;
use crate::lifecycle::difference::{Difference, Kind, Known, compare};
use crate::state::health::Report;
use crate::state::now_ns;
use crate::state::sandbox::SandboxFilter;
use list::Rows;

/// Between two looks, of which both must show a difference.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// Longest wait of a check for what it has asked to be mended.
const MEND_PATIENCE: Duration = Duration::from_secs(10);
/// First pause between two looks at what is being mended; doubled up to the second one.
const MEND_PAUSE: Duration = Duration::from_millis(50);
const MEND_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Priority of the thread that looks (setpriority(2)): everybody else comes first.
const NICENESS: i32 = 10;

/// What a check has shown.
#[derive(Debug, Default)]
pub struct Checked {
    /// Every difference found.
    pub differences: Vec<Difference>,
    /// Those that are left, after mending if that was asked for, and why if that is known; by
    /// position in `differences`.
    pub left: BTreeMap<usize, String>,
    /// How long it took, ns.
    pub duration_ns: i64,
}

/// A check that somebody waits for.
pub struct Request {
    /// Whether to mend what can be mended.
    pub repair: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Checked, String>>,
}

/// What sweeps.
pub struct Sweeper {
    /// The back.
    pub back: Back,
    /// What is wrong with the node, for Status.
    pub health: watch::Sender<Report>,
    /// Time between two runs; zero is never, but when asked.
    pub interval: Duration,
}

impl Sweeper {
    /// The first sweep, before anything is answered and before any worker runs: what has no row is
    /// handed to cleanup tasks. Pods are not looked at: each has its job already.
    pub async fn at_start(&self) {
        let back = self.back.clone();
        let cleared = super::blocking(move || Ok(back.images.clear_staging()?)).await;
        if let Err(error) = cleared {
            tracing::warn!(error = error.full_text(), "staging is not empty");
        }
        let begun = now_ns();
        let swept = match look(&self.back, Rows::default()).await {
            Ok(differences) => self.settle(differences, begun).await,
            Err(error) => Err(error),
        };
        self.finish(swept.map(drop), begun);
    }

    /// Sweeps every now and then, and when asked, until `stop` turns true.
    pub async fn run(self, mut requests: mpsc::Receiver<Request>, mut stop: watch::Receiver<bool>) {
        loop {
            let pause = async {
                if self.interval.is_zero() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(self.interval).await;
            };
            tokio::select! {
                _ = stop.changed() => return,
                () = pause => {
                    let begun = now_ns();
                    let swept = self.sweep(begun).await;
                    self.finish(swept, begun);
                }
                request = requests.recv() => {
                    let Some(Request { repair, answer }) = request else { return };
                    let checked = tokio::select! {
                        _ = stop.changed() => return,
                        checked = self.check(repair) => checked,
                    };
                    // A command that was interrupted does not wait.
                    let _ = answer.send(checked.map_err(|error| error.full_text()));
                }
            }
        }
    }

    async fn sweep(&self, begun: i64) -> Result<(), ReconcileError> {
        let differences = confirmed(&self.back).await?;
        self.settle(differences, begun).await.map(drop)
    }

    /// Has everything mended that can be, and says what was found.
    async fn settle(
        &self,
        differences: Vec<Difference>,
        begun: i64,
    ) -> Result<Vec<Difference>, ReconcileError> {
        let orphans = differences
            .iter()
            .filter(|one| one.kind == Kind::Orphan)
            .count() as u64;
        let found = differences.len() as u64;
        self.back.store.sweeps().update(|figures| {
            figures.last_differences = found;
            figures.orphans += orphans;
            figures.broken += found - orphans;
        });
        if !differences.is_empty() {
            mend::mend(&self.back, &self.health, &differences).await?;
            let text = summary(&differences, now_ns() - begun);
            tracing::warn!(differences = found, "swept: {text}");
            self.back.observed.node_event("swept", text).await?;
            fault::point("sweep.mended").await?;
        }
        Ok(differences)
    }

    fn finish(&self, swept: Result<(), ReconcileError>, begun: i64) {
        let failed = swept.is_err();
        self.count(failed, begun);
        if let Err(error) = swept {
            tracing::warn!(error = error.full_text(), "the sweep did not finish");
        }
    }

    async fn check(&self, repair: bool) -> Result<Checked, ReconcileError> {
        let begun = now_ns();
        let checked = self.check_since(repair, begun).await;
        let outcome = checked
            .as_ref()
            .map(drop)
            .map_err(ReconcileError::full_text);
        if let Err(error) = &outcome {
            tracing::warn!(error, "a check did not finish");
        }
        self.count(outcome.is_err(), begun);
        checked
    }

    fn count(&self, failed: bool, begun: i64) {
        let now = now_ns();
        self.back.store.metrics().last_sweep_ns.set(now);
        self.back.store.sweeps().update(|figures| {
            figures.runs += 1;
            figures.failures += u64::from(failed);
            figures.last_at = now;
            figures.last_duration_ns = now - begun;
        });
    }

    async fn check_since(&self, repair: bool, begun: i64) -> Result<Checked, ReconcileError> {
        plugin_network::check_all(&self.back).await?;
        let differences = confirmed(&self.back).await?;
        let mut left: BTreeMap<_, _> = (0..differences.len())
            .map(|index| (index, String::new()))
            .collect();
        let differences = if repair && !differences.is_empty() {
            let differences = self.settle(differences, begun).await?;
            left = self.await_mending(&differences).await?;
            differences
        } else {
            differences
        };
        Ok(Checked {
            differences,
            left,
            duration_ns: now_ns() - begun,
        })
    }

    /// Waits, at most [`MEND_PATIENCE`], until what can be mended is; returns what is not.
    async fn await_mending(
        &self,
        asked: &[Difference],
    ) -> Result<BTreeMap<usize, String>, ReconcileError> {
        let end = tokio::time::Instant::now() + MEND_PATIENCE;
        let mut pause = MEND_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MEND_PAUSE_MAX);
            let now = self.look_at_all().await?;
            let left: Vec<usize> = (0..asked.len())
                .filter(|index| now.iter().any(|one| one.key() == asked[*index].key()))
                .collect();
            let waiting = left.iter().any(|index| asked[*index].repair.is_possible());
            if waiting && tokio::time::Instant::now() < end {
                continue;
            }
            let errors = self.back.store.repair_errors().await?;
            return Ok(left
                .into_iter()
                .map(|index| (index, mend::why(&asked[index], &errors)))
                .collect());
        }
    }

    async fn look_at_all(&self) -> Result<Vec<Difference>, ReconcileError> {
        let rows = rows(&self.back).await?;
        look(&self.back, rows).await
    }
}

/// Differences that two looks have shown.
async fn confirmed(back: &Back) -> Result<Vec<Difference>, ReconcileError> {
    let first = look(back, rows(back).await?).await?;
    if first.is_empty() {
        return Ok(first);
    }
    tokio::time::sleep(SECOND_LOOK).await;
    let mut second = look(back, rows(back).await?).await?;
    second.retain(|one| first.iter().any(|other| one.key() == other.key()));
    Ok(second)
}

/// What is to be looked at one by one.
async fn rows(back: &Back) -> Result<Rows, ReconcileError> {
    let filter = SandboxFilter {
        ready: Some(true),
        ..SandboxFilter::default()
    };
    let mut allocations: BTreeMap<_, _> = back
        .store
        .allocations()
        .await?
        .into_iter()
        .map(|allocation| (allocation.sandbox_id.clone(), allocation))
        .collect();
    let sandboxes = back.store.sandboxes(&filter).await?;
    Ok(Rows {
        pods: sandboxes
            .into_iter()
            .map(|sandbox| {
                let allocation = allocations.remove(sandbox.id.as_str());
                (sandbox, allocation)
            })
            .collect(),
        containers: back.store.all_containers().await?,
        network: match pod_network::is_native(back).await? {
            true => Some(node_network::wanted(back).await?),
            false => None,
        },
        check_errors: back.store.check_errors().await?.into_iter().collect(),
    })
}

async fn look(back: &Back, rows: Rows) -> Result<Vec<Difference>, ReconcileError> {
    fault::point("sweep.begun").await?;
    // Listed before all rows are read: what is made later has its row already.
    let back_too = back.clone();
    let found = gently(move || list::list(&back_too, &rows)).await?;
    fault::point("sweep.listed").await?;
    let known = Known {
        marker: back.paths.marker(),
        state_dir: back.paths.state.display().to_string(),
        cgroup_root: back.cgroup_root.to_string(),
        bridge: back.network.bridge.clone(),
        ports: node_network::known_ports(back).await?,
        ..back.store.known().await?
    };
    let differences = compare(&found, &known);
    fault::point("sweep.compared").await?;
    Ok(differences)
}

/// Runs blocking work on a thread of its own that lets everybody else go first.
pub(super) async fn gently<T, F>(work: F) -> Result<T, ReconcileError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ReconcileError> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    let run = move || {
        // On Linux this is about the calling thread alone. Refused or not, the work is the same.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        let _ = answer.send(work());
    };
    std::thread::Builder::new()
        .name("sweep".into())
        .spawn(run)
        .map_err(ReconcileError::file("begin", "the thread of the sweep"))?;
    answered.await.map_err(|_| ReconcileError::Panicked)?
}

/// What was found, in one line.
fn summary(differences: &[Difference], duration_ns: i64) -> String {
    const NAMED: usize = 8;
    let mut named: Vec<String> = differences
        .iter()
        .take(NAMED)
        .map(|one| {
            let (kind, thing) = (one.kind.as_str(), one.thing.as_str());
            format!("{kind} {thing} {}", one.name)
        })
        .collect();
    if differences.len() > NAMED {
        named.push(format!("{} more", differences.len() - NAMED));
    }
    let ms = duration_ns / 1_000_000;
    format!("{} in {ms} ms: {}", differences.len(), named.join(", "))
}
