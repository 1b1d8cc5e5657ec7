//! Which network new pods get: ours, or the one that the directory of configurations describes. The
//! directory is looked at every second, plugins are asked whether they are ready, and what is no
//! pod's any more is collected.
//!
//! ```text
//! directory changed? ─► read, find the programs, agree on a version ─┐
//! STATUS, every few seconds ─────────────────────────────────────────┴─► NetworkReady
//! GC and CHECK, every now and then
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Back, ReconcileError, blocking, node_network, pod_network};
use crate::causes::with_causes;
use crate::lifecycle::attachment::State;
use crate::network::cni::{Call, Directory, NetworkList, Plugins};
use crate::network::{self, NetworkConfig, NetworkMode};
use crate::state::health::{PluginReport, Report};
use crate::state::now_ns;

/// Between two looks at the directory.
const LOOK: Duration = Duration::from_secs(1);
/// Before plugins that were ready, or were not, are asked again.
const STATUS_AGAIN: Duration = Duration::from_secs(10);
const STATUS_SOON: Duration = Duration::from_secs(2);
/// Longest time of a call that is about the network as a whole: while plugins collect what is stale
/// no pod is connected, and while they say how they are, nothing else is heard of them.
const WHOLE: Duration = Duration::from_secs(10);
/// Longest wait of the daemon's start for the first look.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Checks that are asked for at once.
const CHECKS: u32 = 4;
/// Longest wait of an operator's check for those of all pods, and between two looks.
const CHECKS_PATIENCE: Duration = Duration::from_secs(10);
const CHECKS_PAUSE: Duration = Duration::from_millis(20);

/// The network that plugins make, shared by all parts of the back.
pub struct PluginNetwork {
    mode: NetworkMode,
    dir: PathBuf,
    plugins: Plugins,
    /// Time between two collections, and between two checks of a pod; zero is never.
    verify: Duration,
    current: Mutex<Current>,
    gate: Mutex<Gate>,
    /// Whether there were attachments at the start.
    attached: AtomicBool,
    /// Whether what is stale is still to be collected since the network was last changed.
    collect: AtomicBool,
}

/// What new pods get.
#[derive(Debug, Clone)]
enum Current {
    Native,
    Network(Box<NetworkList>),
    Unusable(String),
}

/// Who is inside: calls that connect or disconnect pods, or one collection.
#[derive(Debug, Default)]
struct Gate {
    calls: usize,
    collecting: bool,
}

/// A call that connects or disconnects a pod.
pub(super) struct Inside<'g>(&'g Mutex<Gate>);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).calls -= 1;
    }
}

/// A collection.
struct Collecting<'g>(&'g Mutex<Gate>);

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        let mut gate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gate.collecting = false;
    }
}

impl PluginNetwork {
    /// As the configuration says; nothing has been looked at.
    #[must_use]
    pub fn new(config: &NetworkConfig, mark: String) -> Self {
        let current = match config.mode {
            NetworkMode::Native => Current::Native,
            NetworkMode::Auto | NetworkMode::Cni => {
                let dir = config.cni_conf_dir.display();
                Current::Unusable(format!("the network in {dir} has not been looked at yet"))
            }
        };
        Self {
            mode: config.mode,
            dir: config.cni_conf_dir.clone(),
            plugins: Plugins {
                dirs: config.cni_bin_dirs.clone(),
                timeout: Duration::from_secs(config.cni_timeout_s),
                mark,
            },
            verify: Duration::from_secs(config.cni_verify_s),
            current: Mutex::new(current),
            gate: Mutex::default(),
            attached: AtomicBool::new(false),
            collect: AtomicBool::new(true),
        }
    }

    pub(super) fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    /// Plugins that are asked about the network as a whole.
    fn soon(&self) -> Plugins {
        self.plugins.within(WHOLE)
    }

    fn current(&self) -> Current {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// The network that a pod is to be connected to now, or why there is none.
    pub(super) fn network(&self) -> Result<NetworkList, String> {
        match self.current() {
            Current::Network(list) => Ok(*list),
            Current::Unusable(why) => Err(why),
            Current::Native => Err(format!("there is no network in {}", self.dir.display())),
        }
    }

    /// Whether new pods get addresses of ours.
    pub(super) fn is_native(&self) -> bool {
        matches!(self.current(), Current::Native)
    }

    /// Whether a pod may be connected by plugins: new ones are, or older ones were.
    pub(super) fn may_attach(&self) -> bool {
        self.mode != NetworkMode::Native || self.attached.load(Ordering::Relaxed)
    }

    /// Lets a call in that connects or disconnects a pod; `None` while plugins collect what is
    /// stale, which the specification forbids at the same time.
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.collecting {
            return None;
        }
        gate.calls += 1;
        Some(Inside(&self.gate))
    }

    /// Tells of what new pods get, and why plugins that could connect them are not ready.
    fn report(&self, health: &watch::Sender<Report>, not_ready: Option<String>) {
        let report = match self.current() {
            Current::Native => None,
            Current::Unusable(why) => Some(PluginReport {
                usable: false,
                problem: Some(why),
            }),
            Current::Network(_) => Some(PluginReport {
                usable: true,
                problem: not_ready,
            }),
        };
        health.send_if_modified(|health| {
            let changed = health.plugins != report;
            if changed {
                let problem = report.as_ref().and_then(|report| report.problem.as_deref());
                match problem {
                    Some(problem) => tracing::warn!(problem, "plugins cannot connect pods"),
                    None => tracing::info!("the network of new pods has changed"),
                }
                health.plugins = report;
            }
            changed
        });
    }

    fn begin_collection(&self) -> Option<Collecting<'_>> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.calls > 0 || gate.collecting {
            return None;
        }
        gate.collecting = true;
        Some(Collecting(&self.gate))
    }
}

/// Counts calls, and writes down what plugins have said.
pub(super) fn count(back: &Back, calls: &[Call]) {
    for call in calls {
        let labels = [call.verb.as_str(), call.outcome];
        back.store.metrics().plugins.get(labels).observe(call.took);
        let (plugin, verb, said) = (&call.plugin, call.verb, &call.said);
        let ms = call.took.as_millis();
        tracing::debug!(plugin, %verb, ms, outcome = call.outcome, said, "called a plugin");
    }
}

/// The first look, before anything is answered: ends what a former daemon's plugins still do, and
/// finds out which network new pods get. [`run`] goes on from what was seen.
///
/// # Errors
/// When the database cannot be read.
pub async fn begin(back: &Back, health: &watch::Sender<Report>) -> Result<Watch, ReconcileError> {
    let mut first = Watch::default();
    let states = back.store.attachment_states().await?;
    if back.plugins.mode == NetworkMode::Native && states.is_empty() {
        return Ok(first);
    }
    back.plugins
        .attached
        .store(!states.is_empty(), Ordering::Relaxed);
    let unsettled: BTreeSet<String> = states
        .into_iter()
        .filter(|(_, state)| matches!(state, State::Adding | State::Leaving))
        .map(|(id, _)| id.into())
        .collect();
    let mark = back.paths.marker();
    let ended = blocking(move || {
        network::cni::end_leftovers(&mark, &unsettled)
            .map_err(ReconcileError::file("look for plugins in", "/proc"))
    });
    match ended.await {
        Ok(0) => {}
        Ok(count) => tracing::warn!(count, "plugins of a former daemon were still running"),
        Err(error) => {
            let error = error.full_text();
            tracing::warn!(error, "plugins of a former daemon may still be running");
        }
    }
    if tokio::time::timeout(FIRST_LOOK, first.look(back, health))
        .await
        .is_err()
    {
        tracing::warn!("plugins do not say yet how they are; pods wait for that");
        back.plugins.report(health, None);
    }
    if !pod_network::is_native(back).await? {
        withdraw(back).await;
    }
    Ok(first)
}

/// What an earlier daemon needed to connect pods itself, and no pod needs any more.
async fn withdraw(back: &Back) {
    let back = back.clone();
    let withdrawn = blocking(move || {
        let (bridge, mark) = (&back.network.bridge, back.paths.marker());
        network::remove_rules(&back.netfilter, bridge, &mark)?;
        Ok(network::remove_bridge(bridge, &mark)?)
    });
    if let Err(error) = withdrawn.await {
        let error = error.full_text();
        tracing::warn!(error, "a bridge or packet rules stay that no pod needs");
    }
}

/// What was seen of the directory and of the plugins.
#[derive(Default)]
pub struct Watch {
    seen: Option<Result<Directory, String>>,
    /// Whether the network was read from what was seen, with nothing wrong.
    settled: bool,
    asked_at: Option<Instant>,
    not_ready: Option<String>,
    verified_at: Option<Instant>,
}

/// Looks at the directory and the plugins until `stop` turns true, from what was `seen` on.
pub async fn run(
    back: Back,
    health: watch::Sender<Report>,
    seen: Watch,
    mut stop: watch::Receiver<bool>,
) {
    if back.plugins.mode == NetworkMode::Native {
        return;
    }
    let mut watch = seen;
    loop {
        let look = async {
            watch.look(&back, &health).await;
            watch.verify(&back).await;
            tokio::time::sleep(LOOK).await;
        };
        tokio::select! {
            _ = stop.changed() => return,
            () = look => {}
        }
    }
}

impl Watch {
    /// Finds out which network new pods get, if that may have changed, and tells of it.
    async fn look(&mut self, back: &Back, health: &watch::Sender<Report>) {
        let own = &back.plugins;
        if own.mode == NetworkMode::Native {
            return;
        }
        let dir = own.dir.clone();
        let seen = blocking(move || Ok(Directory::look(&dir).map_err(|error| with_causes(&error))));
        let Ok(seen) = seen.await else { return };
        // What was not right is looked at again: a program may have come.
        if self.seen.as_ref() != Some(&seen) || !self.settled {
            self.settled = self.read(back, health, &seen).await;
            self.seen = Some(seen);
            self.asked_at = None;
        }
        self.ask_status(back).await;
        own.report(health, self.not_ready.clone());
    }

    /// Reads the network and makes it the one that new pods get. `false` says that something is
    /// wrong with it.
    async fn read(
        &mut self,
        back: &Back,
        health: &watch::Sender<Report>,
        seen: &Result<Directory, String>,
    ) -> bool {
        let own = &back.plugins;
        let next = match seen {
            Err(why) => Current::Unusable(why.clone()),
            Ok(seen) if own.mode == NetworkMode::Auto && !seen.holds_any() => Current::Native,
            Ok(seen) => match load(back, seen.clone()).await {
                Ok(Some(list)) => Current::Network(Box::new(list)),
                Ok(None) => Current::Unusable(format!(
                    "there is no network configuration in {}",
                    own.dir.display()
                )),
                Err(why) => Current::Unusable(why),
            },
        };
        if let Current::Network(list) = &next {
            own.collect.store(true, Ordering::Relaxed);
            let plugins: Vec<_> = list.plugin_names().collect();
            let (network, version, plugins) = (&list.name, list.version, plugins.join(", "));
            tracing::info!(network, %version, plugins, "new pods are connected by plugins");
        }
        let right = !matches!(next, Current::Unusable(_));
        let anew = matches!(next, Current::Native) && !own.is_native();
        *own.current.lock().unwrap_or_else(PoisonError::into_inner) = next;
        if anew {
            // Before the first pod that needs it: the front hears of this afterwards.
            node_network::mend(back, health).await;
        }
        right
    }

    async fn ask_status(&mut self, back: &Back) {
        let Current::Network(list) = back.plugins.current() else {
            self.not_ready = None;
            return;
        };
        let again = match self.not_ready {
            Some(_) => STATUS_SOON,
            None => STATUS_AGAIN,
        };
        if self.asked_at.is_some_and(|at| at.elapsed() < again) {
            return;
        }
        let mut calls = Vec::new();
        let status = back.plugins.soon().status(&list, &mut calls).await;
        count(back, &calls);
        self.asked_at = Some(Instant::now());
        self.not_ready = status
            .err()
            .map(|error| ReconcileError::Plugin(error).full_text());
    }

    /// Collects what is stale, and asks for checks, when it is time.
    async fn verify(&mut self, back: &Back) {
        let own = &back.plugins;
        if own.verify.is_zero() {
            return;
        }
        let due = self.verified_at.is_none_or(|at| at.elapsed() > own.verify);
        if due {
            own.collect.store(true, Ordering::Relaxed);
            self.verified_at = Some(Instant::now());
        }
        let verify = i64::try_from(own.verify.as_nanos()).unwrap_or(i64::MAX);
        let before = now_ns().saturating_sub(verify);
        if let Err(error) = ask_checks(back, before, CHECKS).await {
            tracing::warn!(error = error.full_text(), "pods are not checked");
        }
        if own.collect.load(Ordering::Relaxed) && collect(back).await {
            own.collect.store(false, Ordering::Relaxed);
        }
    }
}

/// Asks for checks of pods that have had none since `before` (ns since 1970). Nothing is written
/// when there are none.
async fn ask_checks(back: &Back, before: i64, limit: u32) -> Result<(), ReconcileError> {
    if back.store.unchecked(before).await? > 0 {
        back.observed.ask_checks(before, limit).await?;
    }
    Ok(())
}

/// Has all pods checked that plugins have connected, and waits for that, a while.
///
/// # Errors
/// When the database fails.
pub(super) async fn check_all(back: &Back) -> Result<(), ReconcileError> {
    if !back.plugins.may_attach() {
        return Ok(());
    }
    ask_checks(back, i64::MAX, u32::MAX).await?;
    let end = Instant::now() + CHECKS_PATIENCE;
    while back.store.checks_left().await? > 0 && Instant::now() < end {
        tokio::time::sleep(CHECKS_PAUSE).await;
    }
    Ok(())
}

/// The network in a directory, with its programs found and its version agreed on.
async fn load(back: &Back, seen: Directory) -> Result<Option<NetworkList>, String> {
    let loaded = blocking(move || Ok(seen.load().map_err(|error| with_causes(&error))));
    let loaded = loaded.await.map_err(|error| error.full_text())??;
    let Some(mut list) = loaded else {
        return Ok(None);
    };
    let mut calls = Vec::new();
    let agreed = back.plugins.soon().agree(&mut list, &mut calls).await;
    count(back, &calls);
    agreed.map_err(|error| ReconcileError::Plugin(error).full_text())?;
    Ok(Some(list))
}

/// Has plugins forget what is of no pod that has a row. `false` says that it was not the moment.
async fn collect(back: &Back) -> bool {
    let Current::Network(list) = back.plugins.current() else {
        return true;
    };
    let Some(_alone) = back.plugins.begin_collection() else {
        return false;
    };
    // Read when nothing can be added any more. What leaves is not gone yet: DEL is for that.
    let valid: Vec<String> = match back.store.attachment_states().await {
        Ok(states) => states.into_iter().map(|(id, _)| id.into()).collect(),
        Err(error) => {
            tracing::warn!(%error, "what is stale is not collected");
            return false;
        }
    };
    let mut calls = Vec::new();
    let errors = back.plugins.soon().collect(&list, &valid, &mut calls).await;
    count(back, &calls);
    let errors: Vec<_> = errors
        .into_iter()
        .map(|error| ReconcileError::Plugin(error).full_text())
        .collect();
    if !errors.is_empty() {
        let error = errors.join("; ");
        tracing::warn!(error, "not everything that is stale was collected");
        let told = back.observed.node_event("collection_failed", error).await;
        if let Err(error) = told {
            tracing::warn!(%error, "an event is lost");
        }
    }
    true
}
