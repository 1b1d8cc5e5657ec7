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

/// The names of the two kinds of calls in the report.
struct Names {
    status: &'static str,
    list: &'static str,
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
    let reader = std::thread::spawn(move || -> Result<(Vec<Duration>, Vec<Duration>)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime for the timed calls")?;
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
    let (statuses, lists) = read?;
    for took in statuses {
        report.time(names.status, took);
    }
    for took in lists {
        report.time(names.list, took);
    }
    pods
}

async fn read(
    cri: &mut Cri,
    containers: &[String],
    stopped: &AtomicBool,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut statuses, mut lists) = (Vec::new(), Vec::new());
    let mut turn = 0;
    while !stopped.load(Ordering::Relaxed) {
        for _ in 0..STATUSES {
            let container = &containers[turn % containers.len()];
            turn += 1;
            statuses.push(cri.status(container).await?.1);
            tokio::time::sleep(PAUSE).await;
        }
        let (count, took) = cri.list().await?;
        ensure!(
            count >= containers.len(),
            "only {count} containers are listed"
        );
        lists.push(took);
    }
    Ok((statuses, lists))
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
