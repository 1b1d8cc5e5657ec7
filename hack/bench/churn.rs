//! How long status calls take while pods come and go, and while some containers cannot be ended.
//!
//! The calls that are timed are made by a thread and a connection of their own, so that what the
//! bench itself does meanwhile is not measured with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use quilt::proto::cri::NamespaceMode;
use tokio::task::JoinSet;

use crate::client::Cri;
use crate::phase::{self, Pair, Plan};
use crate::pod::Maker;
use crate::report::{Churn, Report};
use crate::stuck::Stuck;

/// Pods on their way at once; a runtime that cannot keep up gets no more.
const UNDER_WAY: usize = 64;
/// Between two timed calls: kubelet's own polls are far rarer.
const PAUSE: Duration = Duration::from_millis(2);
/// So many statuses, then one list.
const STATUSES: usize = 10;

/// The names of the three kinds of calls in the report. Version reads no state: it shows what the
/// machine itself adds to a call just then.
struct Names {
    status: &'static str,
    list: &'static str,
    version: &'static str,
}

/// What the calls of each kind took.
#[derive(Default)]
struct Times {
    statuses: Vec<Duration>,
    lists: Vec<Duration>,
    versions: Vec<Duration>,
}

/// Standing pods, pods that come and go, and timed reads; then the same beside stuck containers.
pub(crate) async fn churn(
    cri: &mut Cri,
    maker: &Arc<Maker>,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    if plan.churn_s == 0 {
        return Ok(());
    }
    let standing = phase::up(cri, maker, plan.crowd, plan.concurrency).await?;
    let names = Names {
        status: "ContainerStatus churn",
        list: "ListContainers churn",
        version: "Version churn",
    };
    let pods = timed(cri, maker, plan, &standing, report, &names).await?;
    report.churn(Churn {
        standing: standing.len(),
        seconds: plan.churn_s,
        rate: plan.churn_rate,
        pods,
    });
    if plan.stuck > 0 {
        let more = phase::up(cri, maker, plan.stuck, plan.concurrency).await?;
        match Stuck::freeze(cri, &more).await? {
            Some(stuck) => {
                let names = Names {
                    status: "ContainerStatus stuck",
                    list: "ListContainers stuck",
                    version: "Version stuck",
                };
                let ended = timed(cri, maker, plan, &standing, report, &names).await;
                stuck.thaw().await;
                ended?;
            }
            None => eprintln!("nothing can be made stuck here: there is no cgroup v1 freezer"),
        }
        phase::down(cri, more, plan.concurrency).await?;
    }
    phase::down(cri, standing, plan.concurrency).await
}

/// Times reads while pods come and go; returns how many of these there were.
async fn timed(
    cri: &Cri,
    maker: &Arc<Maker>,
    plan: &Plan,
    standing: &[Pair],
    report: &mut Report,
    names: &Names,
) -> Result<usize> {
    let stop = Arc::new(AtomicBool::new(false));
    let socket = plan.runtime.socket.clone();
    let containers: Vec<String> = standing.iter().map(|(_, id)| id.clone()).collect();
    let stopped = Arc::clone(&stop);
    let reader = std::thread::spawn(move || -> Result<Times> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime for the timed calls")?;
        // What is timed is the runtime, not how long this thread waits for a CPU.
        quilt::sys::scheduling::set_slice(Some(quilt::sys::scheduling::SHORTEST_SLICE))
            .context("shorten the slices of the thread that times")?;
        runtime.block_on(async {
            let mut cri = Cri::connect(&socket).await?;
            read(&mut cri, &containers, &stopped).await
        })
    });
    let pods = come_and_go(cri, maker, plan).await;
    stop.store(true, Ordering::Relaxed);
    let read = reader
        .join()
        .map_err(|_| anyhow!("the timed calls panicked"))?;
    let times = read?;
    for (name, kind) in [
        (names.status, times.statuses),
        (names.list, times.lists),
        (names.version, times.versions),
    ] {
        kind.into_iter().for_each(|took| report.time(name, took));
    }
    pods
}

async fn read(cri: &mut Cri, containers: &[String], stopped: &AtomicBool) -> Result<Times> {
    let mut times = Times::default();
    let mut turn = 0;
    while !stopped.load(Ordering::Relaxed) {
        for _ in 0..STATUSES {
            let container = &containers[turn % containers.len()];
            turn += 1;
            times.statuses.push(cri.status(container).await?.1);
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            cri.version().await?;
            times.versions.push(begun.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
        let (count, took) = cri.list().await?;
        ensure!(
            count >= containers.len(),
            "only {count} containers are listed"
        );
        times.lists.push(took);
    }
    Ok(times)
}

/// Pods at a fixed rate, each through its whole life.
async fn come_and_go(cri: &Cri, maker: &Arc<Maker>, plan: &Plan) -> Result<usize> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / plan.churn_rate.max(1));
    let end = Instant::now() + Duration::from_secs(plan.churn_s);
    let mut lives = JoinSet::new();
    let mut pods = 0;
    while Instant::now() < end {
        ticks.tick().await;
        if lives.len() < UNDER_WAY {
            lives.spawn(life(cri.clone(), Arc::clone(maker)));
        }
        while let Some(ended) = lives.try_join_next() {
            ended.context("a pod of the bench panicked")??;
            pods += 1;
        }
    }
    while let Some(ended) = lives.join_next().await {
        ended.context("a pod of the bench panicked")??;
        pods += 1;
    }
    Ok(pods)
}

async fn life(mut cri: Cri, maker: Arc<Maker>) -> Result<()> {
    let config = maker.pod(NamespaceMode::Pod);
    let (pod, _) = cri.run_pod(config.clone()).await?;
    let (container, _) = cri.create(&pod, config, maker.running()).await?;
    cri.start(&container).await?;
    cri.stop(&container, 0).await?;
    cri.remove(&container).await?;
    cri.stop_pod(&pod).await?;
    cri.remove_pod(&pod).await.map(drop)
}
