//! What was measured, as JSON for programs and as a table for people, beside the goals.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::cost::Cost;
use crate::memory::Process;
use crate::probes::Probes;
use crate::stats::Stats;

/// What the project promises on its development machine, image present, one call after the other:
/// the median in milliseconds.
const GOALS_MS: [(&str, f64); 8] = [
    ("RunPodSandbox", 10.0),
    ("CreateContainer", 3.0),
    ("StartContainer", 10.0),
    ("ExecSync true", 8.0),
    ("ContainerStatus", 1.0),
    ("ListContainers", 3.0),
    ("PullImage large", 3000.0),
    ("PullImage present", 20.0),
];
/// What 99 of 100 calls must not exceed, in milliseconds.
const GOALS_P99_MS: [(&str, f64); 7] = [
    ("ListContainerStats", 5.0),
    ("ListPodSandboxMetrics", 5.0),
    ("StreamContainers", 50.0),
    ("ContainerStatus churn", 1.0),
    ("ContainerStatus stuck", 1.0),
    ("ListContainers churn", 3.0),
    ("ListContainers stuck", 3.0),
];
/// What no call must exceed, in milliseconds.
const GOALS_MAX_MS: [(&str, f64); 2] = [
    ("ContainerStatus churn", 10.0),
    ("ContainerStatus stuck", 10.0),
];
/// The memory of daemon and shim beside 50 running pods, in bytes.
const GOAL_PSS_BYTES: u64 = 60_000_000;

/// The daemon's memory while it pulls a large image, in bytes.
const GOAL_PULL_RSS_BYTES: u64 = 100_000_000;

/// What probes of 100 pods, each every ten seconds, may take of one core.
const GOAL_PROBES_PERCENT: f64 = 5.0;

/// What kubelet's recorded idle minute, and sampling beside 200 containers, may take of one core.
const GOAL_IDLE_PERCENT: f64 = 0.5;
const GOAL_SAMPLING_PERCENT: f64 = 2.0;
/// The largest message of a streamed list, in bytes.
const GOAL_MESSAGE_BYTES: usize = 1 << 20;

/// The whole result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    runtime: String,
    version: String,
    kernel: String,
    cpus: usize,
    calls: BTreeMap<&'static str, Summary>,
    crowd: Option<Crowd>,
    churn: Option<Churn>,
    cost: Option<Cost>,
    memory: Option<Memory>,
    probes: Option<Probes>,
    pull: Option<Pull>,
    stats: Option<Stats>,
    #[serde(skip)]
    samples: BTreeMap<&'static str, Vec<Duration>>,
}

/// One kind of call, in milliseconds.
#[derive(Debug, Serialize)]
struct Summary {
    samples: usize,
    min_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_max_ms: Option<f64>,
}

/// Pods that came and went while reads were timed.
#[derive(Debug, Serialize)]
pub(crate) struct Churn {
    pub(crate) standing: usize,
    pub(crate) seconds: u64,
    pub(crate) rate: u32,
    pub(crate) pods: usize,
}

/// The pull of a large image, the best of some.
#[derive(Debug, Serialize)]
pub(crate) struct Pull {
    /// Unpacked, as the runtime has it.
    pub(crate) image_bytes: u64,
    pub(crate) wall_s: f64,
    /// Of the daemon, user and system.
    pub(crate) cpu_s: f64,
    /// Most that was resident of the daemon during any of them.
    pub(crate) peak_rss_bytes: u64,
}

/// Many pods at once.
#[derive(Debug, Serialize)]
pub(crate) struct Crowd {
    pub(crate) pods: usize,
    pub(crate) concurrency: usize,
    pub(crate) up_s: f64,
    pub(crate) down_s: f64,
}

/// The runtime's own memory beside running pods.
#[derive(Debug, Serialize)]
struct Memory {
    pods: usize,
    pss_bytes: u64,
    goal_pss_bytes: u64,
    processes: Vec<Process>,
}

impl Report {
    pub(crate) fn new(runtime: String, version: String) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            runtime,
            version,
            kernel: kernel.trim_end().to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            calls: BTreeMap::new(),
            crowd: None,
            churn: None,
            cost: None,
            memory: None,
            probes: None,
            pull: None,
            stats: None,
            samples: BTreeMap::new(),
        }
    }

    /// Takes one sample and brings the summary of its kind up to date.
    pub(crate) fn time(&mut self, what: &'static str, took: Duration) {
        let samples = self.samples.entry(what).or_default();
        let place = samples.partition_point(|&earlier| earlier <= took);
        samples.insert(place, took);
        self.calls.insert(what, Summary::of(what, samples));
    }

    pub(crate) fn crowd(&mut self, crowd: Crowd) {
        self.crowd = Some(crowd);
    }

    pub(crate) fn pull(&mut self, pull: Pull) {
        self.pull = Some(pull);
    }

    pub(crate) fn churn(&mut self, churn: Churn) {
        self.churn = Some(churn);
    }

    pub(crate) fn cost(&mut self, cost: Cost) {
        self.cost = Some(cost);
    }

    pub(crate) fn probes(&mut self, probes: Probes) {
        self.probes = Some(probes);
    }

    pub(crate) fn stats(&mut self, stats: Stats) {
        self.stats = Some(stats);
    }

    pub(crate) fn memory(&mut self, pods: usize, processes: Vec<Process>) {
        self.memory = Some(Memory {
            pods,
            pss_bytes: processes.iter().map(|process| process.pss_bytes).sum(),
            goal_pss_bytes: GOAL_PSS_BYTES,
            processes,
        });
    }

    /// JSON to standard output, the table to standard error.
    pub(crate) fn print(&self) -> Result<()> {
        eprintln!(
            "{} {} on {}, {} CPUs",
            self.runtime, self.version, self.kernel, self.cpus
        );
        eprintln!(
            "{:<28}{:>8}{:>10}{:>10}{:>10}  goal",
            "ms", "samples", "p50", "p99", "max"
        );
        for (what, call) in &self.calls {
            eprintln!(
                "{what:<28}{:>8}{:>10.3}{:>10.3}{:>10.3}  {}",
                call.samples,
                call.p50_ms,
                call.p99_ms,
                call.max_ms,
                call.goals()
            );
        }
        if let Some(crowd) = &self.crowd {
            eprintln!(
                "{} pods, {} at a time: up {:.2} s, down {:.2} s",
                crowd.pods, crowd.concurrency, crowd.up_s, crowd.down_s
            );
        }
        if let Some(churn) = &self.churn {
            eprintln!(
                "churn: {} pods in {} s ({} a second wanted) beside {}",
                churn.pods, churn.seconds, churn.rate, churn.standing
            );
        }
        if let Some(cost) = &self.cost {
            eprintln!(
                "a pod up and down costs {:.1} ms of CPU, {:.0} switches (mean of {})",
                cost.cpu_ms, cost.switches, cost.pods
            );
        }
        if let Some(stats) = &self.stats {
            tell_stats(stats);
        }
        if let Some(probes) = &self.probes {
            eprintln!(
                "{} probes of {} pods in {:.1} s: {:.2} % of a core (goal {GOAL_PROBES_PERCENT} %)",
                probes.probes, probes.pods, probes.seconds, probes.core_percent
            );
        }
        if let Some(memory) = &self.memory {
            eprintln!(
                "{} processes of the runtime beside {} pods: {:.1} MB (goal {:.0} MB)",
                memory.processes.len(),
                memory.pods,
                megabytes(memory.pss_bytes),
                megabytes(memory.goal_pss_bytes)
            );
        }
        if let Some(pull) = &self.pull {
            let megabytes_of = megabytes(pull.image_bytes);
            eprintln!(
                "pull of {megabytes_of:.0} MB unpacked: {:.2} s, {:.0} MB/s, {:.2} s of CPU, at \
                 most {:.1} MB resident (goal {:.0} MB)",
                pull.wall_s,
                megabytes_of / pull.wall_s,
                pull.cpu_s,
                megabytes(pull.peak_rss_bytes),
                megabytes(GOAL_PULL_RSS_BYTES)
            );
        }
        println!("{}", serde_json::to_string_pretty(self)?);
        Ok(())
    }

    /// Fails with every goal that was missed.
    pub(crate) fn check(&self) -> Result<()> {
        let mut missed: Vec<String> = Vec::new();
        for (what, call) in &self.calls {
            let figures = [
                ("p50", call.p50_ms, call.goal_p50_ms),
                ("p99", call.p99_ms, call.goal_p99_ms),
                ("max", call.max_ms, call.goal_max_ms),
            ];
            for (figure, ms, goal) in figures {
                if goal.is_some_and(|goal| ms > goal) {
                    missed.push(format!("{what} takes {ms:.3} ms ({figure})"));
                }
            }
        }
        if let Some(memory) = &self.memory
            && memory.pss_bytes > memory.goal_pss_bytes
        {
            missed.push(format!("{:.1} MB in use", megabytes(memory.pss_bytes)));
        }
        if let Some(probes) = &self.probes
            && probes.core_percent > GOAL_PROBES_PERCENT
        {
            missed.push(format!(
                "probes take {:.2} % of a core",
                probes.core_percent
            ));
        }
        if let Some(stats) = &self.stats {
            missed.extend(stats_missed(stats));
        }
        if let Some(pull) = &self.pull
            && pull.peak_rss_bytes > GOAL_PULL_RSS_BYTES
        {
            let used = megabytes(pull.peak_rss_bytes);
            missed.push(format!("{used:.1} MB resident during a pull"));
        }
        if !missed.is_empty() {
            bail!("goals missed: {}", missed.join(", "));
        }
        Ok(())
    }
}

fn tell_stats(stats: &Stats) {
    eprintln!(
        "an idle minute: {:.2} % of a core (goal {GOAL_IDLE_PERCENT} %); sampling {} \
         containers: {:.2} % (goal {GOAL_SAMPLING_PERCENT} %); largest message of {} \
         containers: {} bytes",
        stats.idle_core_percent,
        stats.running,
        stats.sampling_core_percent,
        stats.listed,
        stats.largest_message_bytes
    );
}

fn stats_missed(stats: &Stats) -> Vec<String> {
    let shares = [
        ("an idle minute", stats.idle_core_percent, GOAL_IDLE_PERCENT),
        (
            "sampling",
            stats.sampling_core_percent,
            GOAL_SAMPLING_PERCENT,
        ),
    ];
    let shares = shares.into_iter().filter(|(_, share, goal)| share > goal);
    let mut missed: Vec<String> = shares
        .map(|(what, share, _)| format!("{what} takes {share:.2} % of a core"))
        .collect();
    if stats.largest_message_bytes > GOAL_MESSAGE_BYTES {
        let bytes = stats.largest_message_bytes;
        missed.push(format!("a message of a list has {bytes} bytes"));
    }
    missed
}

impl Summary {
    /// Of samples in ascending order, of which there is at least one.
    fn of(what: &str, samples: &[Duration]) -> Self {
        let at = |share: f64| {
            // The smallest sample that at least this share does not exceed.
            let rank = (share * samples.len() as f64).ceil() as usize;
            let took = samples[rank.clamp(1, samples.len()) - 1];
            took.as_micros() as f64 / 1000.0
        };
        Self {
            samples: samples.len(),
            min_ms: at(0.0),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: at(1.0),
            goal_p50_ms: goal_of(what, &GOALS_MS),
            goal_p99_ms: goal_of(what, &GOALS_P99_MS),
            goal_max_ms: goal_of(what, &GOALS_MAX_MS),
        }
    }

    /// As the table shows them.
    fn goals(&self) -> String {
        let goals = [
            ("p50", self.goal_p50_ms),
            ("p99", self.goal_p99_ms),
            ("max", self.goal_max_ms),
        ];
        let goals = goals.into_iter();
        let texts = goals.filter_map(|(figure, goal)| Some(format!("{figure} ≤ {}", goal?)));
        texts.collect::<Vec<_>>().join(", ")
    }
}

fn goal_of(what: &str, goals: &[(&str, f64)]) -> Option<f64> {
    let found = goals.iter().find(|(goal, _)| *goal == what);
    found.map(|&(_, ms)| ms)
}

/// Bytes as decimal megabytes, as the goals count them.
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
