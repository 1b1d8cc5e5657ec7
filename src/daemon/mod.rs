//! `quiltd serve`: builds the parts and joins them. The only file that names front and back.

mod apparmor;
mod cgroups;
mod database;
mod handlers;
mod listen;
mod servers;
mod snapshots;
mod trace_export;
mod user_namespaces;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::admin::{
    AdminService, Check, CheckedDifference, ImageCheck, Import, MetricsPage, endpoint,
};
use crate::cgroup::Driver;
use crate::config::{Config, MetricsConfig};
use crate::containerd::Reader;
use crate::cri::{self, Front, KnownHandlers, NodeInfo, Signals};
use crate::engine::Engine;
use crate::image::{Depth, ImageDriver};
use crate::lifecycle::address;
use crate::metrics::Metrics;
use crate::network::{self, Netfilter};
use crate::reconcile::plugin_network::PluginNetwork;
use crate::reconcile::{
    self, Back, Parts, Paths, Processes, collector, image_check, layer_usage, monitor,
    node_network, plugin_network, prepared, pruner, records, recovery, sampler, shim_link, sweep,
    worker,
};
use crate::snapshot::Kind;
use crate::state::health::Report;
use crate::state::now_ns;
use crate::streaming;
use crate::traces::{Tracer, TracingConfig};

pub use listen::Endpoint;
pub(crate) use listen::Lock;
use listen::{bind, bind_admin};
use servers::{Servers, Sockets};

/// Longest wait for the first shim before calls are answered without one.
const SHIM_PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for calls and steps under way when the daemon is told to end.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Imports that may wait.
const IMPORTS: usize = 8;
/// Checks that may wait.
const CHECKS: usize = 8;

/// What the command line says.
pub struct Options {
    /// The configuration file's content.
    pub config: Config,
    /// What outlives a reboot.
    pub root: PathBuf,
    /// What does not.
    pub state: PathBuf,
    /// Where CRI is answered.
    pub listen: Endpoint,
}

/// Runs the daemon until SIGTERM or SIGINT. Containers live on.
///
/// # Errors
/// When another daemon owns the socket or a directory, or a part cannot be started.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options {
        config,
        root,
        state,
        listen,
    } = options;
    let paths = Paths {
        root: make_directory(&root)?,
        state: make_directory(&state)?,
    };
    // Whoever owns the directories owns what is in them; whoever owns the socket is asked.
    let _root_lock = Lock::take(&paths.root)?;
    let _state_lock = Lock::take(&paths.state)?;
    Engine::remember_root(&paths.state, &paths.root)
        .with_context(|| format!("cannot write in {}", paths.state.display()))?;
    let admin_path = paths.state.join("admin.sock");
    let (cri, socket_is_ours) = bind(&listen).await?;
    let sockets = Sockets {
        cri,
        admin: bind_admin(&admin_path).await?,
    };
    let metrics = bind_metrics(&config.metrics).await?;
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let (requests, check_requests) = mpsc::channel(1);
    apparmor::ensure_loaded().await;
    make_directories(&paths)?;
    let (front, back) = start(&config, &paths, &mut tasks, &stopped, check_requests).await?;
    let engine = Engine {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        endpoint: listen.to_string(),
        admin_socket: admin_path.clone(),
        root: paths.root.clone(),
        started_at_ns: now_ns(),
    };
    let pool = prepared::pool(&config.network);
    let page = MetricsPage::new(back.store.clone(), address::capacity(&pool));
    if let Some(listener) = metrics {
        tasks.spawn(endpoint::run(listener, page.clone(), stopped.clone()));
    }
    let admin = operators(&back, &engine, page, requests, &mut tasks, &stopped);
    // Before the first answer: who has got one may look for the daemon by this file.
    engine
        .write(&paths.state)
        .context("cannot write engine.json")?;
    let reader = Reader::new(front.store().clone(), &paths.root);
    let mut servers = Servers::start(sockets, front, reader, admin, &stopped);
    tracing::info!(endpoint = %listen, root = %paths.root.display(), "ready");
    notify(&[sd_notify::NotifyState::Ready]);

    wait_for_signal(&mut servers).await?;
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("ending; containers go on");
    stop.send_replace(true);
    wait_for_end(&mut servers, &mut tasks).await;
    leave_nothing_unused(&back).await;
    back.store.close().await;
    Engine::remove(&paths.state);
    if socket_is_ours {
        listen.remove();
    }
    let _ = std::fs::remove_file(admin_path);
    Ok(())
}

/// What answers operators, and the tasks that do what they ask for.
fn operators(
    back: &Back,
    engine: &Engine,
    page: MetricsPage,
    sweeper: mpsc::Sender<sweep::Request>,
    tasks: &mut JoinSet<()>,
    stopped: &watch::Receiver<bool>,
) -> AdminService {
    let (imports, import_queue) = mpsc::channel(IMPORTS);
    tasks.spawn(run_imports(back.clone(), import_queue));
    let (checks, check_queue) = mpsc::channel(CHECKS);
    tasks.spawn(run_checks(sweeper, check_queue));
    let (image_checks, image_check_queue) = mpsc::channel(CHECKS);
    let (looks, look_queue) = mpsc::channel(1);
    tasks.spawn(run_image_checks(looks, image_check_queue));
    tasks.spawn(image_check::run(back.clone(), look_queue, stopped.clone()));
    AdminService::new(
        back.store.clone(),
        engine.clone(),
        back.paths.state.clone(),
        imports,
        (checks, image_checks),
        page,
    )
}

/// Opens the database and starts the back; returns when calls can be answered.
async fn start(
    config: &Config,
    paths: &Paths,
    tasks: &mut JoinSet<()>,
    stopped: &watch::Receiver<bool>,
    checks: mpsc::Receiver<sweep::Request>,
) -> anyhow::Result<(Front, Back)> {
    let database::Opened {
        store,
        desired,
        observed,
        loss,
    } = database::open(paths).await?;
    let (health, health_seen) = watch::channel(Report::default());
    let snapshots = snapshots::choose(&config.snapshot, &paths.root, &store, &observed).await?;
    let executable = std::env::current_exe().context("cannot find this executable")?;
    let (processes, watched) = Processes::new();
    let (shim, shim_seen) = watch::channel(None);
    let back = Back::new(Parts {
        store: store.for_back(),
        observed,
        shim: shim_seen.clone(),
        processes,
        cgroups: cgroups::find(&config.cgroup, &executable).await?,
        images: ImageDriver::new(&paths.root, config.image.driver())?,
        snapshots,
        network: config.network.clone(),
        netfilter: Netfilter::default(),
        plugins: PluginNetwork::new(&config.network, paths.marker()),
        paths: paths.clone(),
        cgroup_root: config.cgroup.root()?,
        block_io: config.cgroup.block_io.clone(),
        boot_id: recovery::boot_id()?,
        image_records: tokio::sync::Notify::new(),
        image_rules: config.image.rules().map_err(anyhow::Error::msg)?,
        log_limits: config.logs.limits(),
        hooks: config.hooks.clone(),
        ulimits: config.container.limits().map_err(anyhow::Error::msg)?,
        handlers: config.runtimes.clone(),
        unused_layers: tokio::sync::Notify::new(),
        cdi_directories: config.cdi.directories.clone(),
    });
    if let Some(loss) = loss {
        database::rebuild(&back, &executable, &loss).await?;
    }
    look_back(&back, config).await?;
    let seen = plugin_network::begin(&back, &health).await?;
    node_network::mend(&back, &health).await;
    let sweeper = sweep::Sweeper {
        back: back.clone(),
        health: health.clone(),
        interval: Duration::from_secs(config.cleanup.interval_s),
    };
    let link = shim_link::Link {
        executable,
        shim,
        health,
    };
    let range_told = Arc::new(Notify::new());
    follow_networks(&back, &sweeper.health, (&range_told, seen), tasks, stopped);
    meet_shim(&back, link, watched, tasks, stopped).await;
    sweeper.at_start().await;
    spawn_upkeep(&back, config, sweeper, checks, tasks, stopped);
    let signals = Signals {
        shim: shim_seen,
        health: health_seen,
        stopped: stopped.clone(),
        range_told: Arc::clone(&range_told),
    };
    let info = node_info(config, paths, snapshots, tasks);
    let door = open_door(config, paths, &signals, tasks, store.metrics()).await?;
    let tracer = trace(config, tasks, stopped, store.metrics())?;
    let front = Front::new(store, desired, signals, info, (door, tracer));
    attend(&front, tasks);
    Ok((front, back))
}

/// Brings the rows in line with this boot and this configuration.
async fn look_back(back: &Back, config: &Config) -> anyhow::Result<()> {
    recovery::prepare(back).await?;
    cgroups::keep_driver(back, config.cgroup.driver).await?;
    let pins = back.image_rules.pins.clone();
    Ok(back.observed.pin_images(pins).await?)
}

/// Keeps the pod networks as they should be from here on.
fn follow_networks(
    back: &Back,
    health: &watch::Sender<Report>,
    (range_told, seen): (&Arc<Notify>, plugin_network::Watch),
    tasks: &mut JoinSet<()>,
    stopped: &watch::Receiver<bool>,
) {
    tasks.spawn(node_network::run(
        back.clone(),
        health.clone(),
        Arc::clone(range_told),
        stopped.clone(),
    ));
    tasks.spawn(plugin_network::run(
        back.clone(),
        health.clone(),
        seen,
        stopped.clone(),
    ));
}

/// Sends spans of calls from here on, if a collector is configured.
fn trace(
    config: &Config,
    tasks: &mut JoinSet<()>,
    stopped: &watch::Receiver<bool>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Tracer> {
    let TracingConfig {
        endpoint,
        sampling_rate_per_million: rate,
    } = &config.tracing;
    if endpoint.is_empty() {
        return Ok(Tracer::default());
    }
    let collector = tonic::transport::Endpoint::from_shared(endpoint.clone());
    let collector = collector.with_context(|| format!("tracing.endpoint: {endpoint:?}"))?;
    let (tracer, spans) = Tracer::new(*rate, Arc::clone(metrics));
    let export = trace_export::run(collector, spans, Arc::clone(metrics), stopped.clone());
    tasks.spawn(export);
    Ok(tracer)
}

/// What the front does beside its calls.
fn attend(front: &Front, tasks: &mut JoinSet<()>) {
    tasks.spawn(cri::events::keep_given(front.clone()));
    tasks.spawn(cri::abandoned::run(front.clone()));
}

/// What lies in the root and state directories from the start.
fn make_directories(paths: &Paths) -> anyhow::Result<()> {
    for dir in [paths.sandboxes(), paths.containers(), paths.mount_point()] {
        make_directory(&dir)?;
    }
    Ok(network::ensure_pin_directory(&paths.sandboxes())?)
}

/// Serves exec, attach and port-forward from here on.
async fn open_door(
    config: &Config,
    paths: &Paths,
    signals: &Signals,
    tasks: &mut JoinSet<()>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<streaming::Door> {
    let (shim, stopped) = (signals.shim.clone(), signals.stopped.clone());
    let (state, metrics) = (paths.state.clone(), Arc::clone(metrics));
    let (server, door) =
        streaming::Server::bind(&config.streaming, state, shim, stopped, metrics).await?;
    tasks.spawn(server.run());
    Ok(door)
}

/// Keeps a shim connected from here on, and waits a while for the first one.
async fn meet_shim(
    back: &Back,
    link: shim_link::Link,
    watched: mpsc::UnboundedReceiver<reconcile::Watched>,
    tasks: &mut JoinSet<()>,
    stopped: &watch::Receiver<bool>,
) {
    tasks.spawn(shim_link::run(back.clone(), link, stopped.clone()));
    tasks.spawn(monitor::run(back.clone(), watched, stopped.clone()));
    let mut first_shim = back.shim.clone();
    let connected = first_shim.wait_for(Option::is_some);
    if tokio::time::timeout(SHIM_PATIENCE, connected)
        .await
        .is_err()
    {
        tracing::error!("no shim yet; calls that need one fail until there is");
    }
}

/// Starts what goes on for as long as the daemon lives.
fn spawn_upkeep(
    back: &Back,
    config: &Config,
    sweeper: sweep::Sweeper,
    checks: mpsc::Receiver<sweep::Request>,
    tasks: &mut JoinSet<()>,
    stopped: &watch::Receiver<bool>,
) {
    let rules = config.jobs.rules();
    tasks.spawn(worker::run(back.clone(), rules, stopped.clone()));
    tasks.spawn(worker::prune(back.clone(), rules, stopped.clone()));
    let interval = Duration::from_secs(config.stats.interval_s.get());
    tasks.spawn(sampler::run(back.clone(), interval, stopped.clone()));
    tasks.spawn(layer_usage::run(back.clone(), stopped.clone()));
    tasks.spawn(records::run(back.clone(), stopped.clone()));
    tasks.spawn(collector::run(back.clone(), stopped.clone()));
    let history = back.store.clone();
    tasks.spawn(async move { history.check_history().await });
    tasks.spawn(sweeper.run(checks, stopped.clone()));
    tasks.spawn(pruner::run(
        back.clone(),
        retention(config),
        stopped.clone(),
    ));
}

async fn bind_metrics(config: &MetricsConfig) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = config.address().map_err(anyhow::Error::msg)? else {
        return Ok(None);
    };
    let listener = endpoint::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen for metrics on {address}"))?;
    Ok(Some(listener))
}

fn make_directory(path: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::canonicalize(path).with_context(|| format!("cannot resolve {}", path.display()))
}

/// What the front is to know; what other runtimes can do it is told later.
fn node_info(config: &Config, paths: &Paths, snapshots: Kind, tasks: &mut JoinSet<()>) -> NodeInfo {
    let handlers = Arc::new(KnownHandlers::new(config.runtimes.keys()));
    let asked = handlers::probe(config.runtimes.clone(), Arc::clone(&handlers));
    tasks.spawn(asked);
    NodeInfo {
        handlers,
        pool: prepared::pool(&config.network),
        image_root: paths.root.join("layers"),
        snapshot_root: paths.root.join("snapshots"),
        state_dir: paths.state.clone(),
        default_deadline: config.cri.default_deadline(),
        abandoned_after: config.cri.abandoned_after(),
        recursive_read_only: true,
        user_namespaces: user_namespaces::probe(paths, snapshots == Kind::Overlay),
        cdi_directories: config.cdi.directories.clone(),
        systemd_cgroups: config.cgroup.driver == Driver::Systemd,
        block_io_classes: config.cgroup.block_io.keys().cloned().collect(),
    }
}

fn retention(config: &Config) -> pruner::Retention {
    pruner::Retention {
        events: config.state.events_kept,
        events_age: Some(Duration::from_secs(config.state.events_kept_s))
            .filter(|age| !age.is_zero()),
        operations: config.state.operations_kept,
    }
}

async fn run_imports(back: Back, mut queue: mpsc::Receiver<Import>) {
    while let Some(Import {
        path,
        reference,
        mut answer,
    }) = queue.recv().await
    {
        let name = reference.as_deref();
        // A command that was interrupted does not wait, and has its import given up.
        let imported = reconcile::import(&back, &path, name, answer.closed()).await;
        let _ = answer.send(imported.map_err(|error| error.full_text()));
    }
}

/// Makes a panic the end of the process, except where it is caught and counts as a failed step:
/// what goes on without one of its parts is worse than what is started anew.
pub fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        if !reconcile::caught::is_here() {
            std::process::abort();
        }
    }));
}

/// Passes checks to the sweep, which makes one at a time.
async fn run_checks(sweeper: mpsc::Sender<sweep::Request>, mut queue: mpsc::Receiver<Check>) {
    while let Some(Check { repair, answer }) = queue.recv().await {
        let (done, checked) = oneshot::channel();
        let request = sweep::Request {
            repair,
            answer: done,
        };
        if sweeper.send(request).await.is_err() {
            return;
        }
        let Ok(checked) = checked.await else { return };
        let _ = answer.send(checked.map(|checked| {
            let sweep::Checked {
                differences,
                mut left,
                duration_ns,
            } = checked;
            let differences = differences.into_iter().enumerate();
            let differences = differences.map(|(index, difference)| {
                let left = left.remove(&index);
                CheckedDifference {
                    difference,
                    mended: left.is_none(),
                    error: left.unwrap_or_default(),
                }
            });
            (differences.collect(), duration_ns)
        }));
    }
}

/// Passes checks of images to the back, which makes one at a time.
async fn run_image_checks(
    back: mpsc::Sender<image_check::Request>,
    mut queue: mpsc::Receiver<ImageCheck>,
) {
    while let Some(check) = queue.recv().await {
        let request = image_check::Request {
            images: check.images,
            depth: match check.quick {
                true => Depth::Quick,
                false => Depth::Whole,
            },
            repair: check.repair,
            answers: check.answers,
        };
        if back.send(request).await.is_err() {
            return;
        }
    }
}

/// Waits until calls and steps under way have ended, for a while.
async fn wait_for_end(servers: &mut Servers, tasks: &mut JoinSet<()>) {
    let ended = async {
        servers.end().await;
        while tasks.join_next().await.is_some() {}
    };
    if tokio::time::timeout(END_PATIENCE, ended).await.is_err() {
        tracing::warn!("not everything ended in time; the next start goes on with it");
    }
}

async fn wait_for_signal(servers: &mut Servers) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = servers.fail() => ended,
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// A node without a pod keeps nothing of ours but files.
async fn leave_nothing_unused(back: &Back) {
    let used = match back.store.all_sandbox_ids().await {
        Ok(sandboxes) => !sandboxes.is_empty(),
        Err(_) => true,
    };
    if used {
        return;
    }
    if let Err(error) = prepared::end(back).await {
        tracing::warn!(error = error.full_text(), "prepared networks stay behind");
    }
    let back = back.clone();
    let removed = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        network::remove_rules(&back.netfilter, &back.network.bridge, &back.paths.marker())?;
        network::remove_bridge(&back.network.bridge, &back.paths.marker())?;
        network::remove_pin_directory(&back.paths.sandboxes())?;
        if back.cgroups.exists(&back.cgroup_root) {
            back.cgroups.remove(&back.cgroup_root)?;
        }
        Ok(())
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "something stays behind"),
        Err(error) => tracing::warn!(%error, "something stays behind"),
    }
}
