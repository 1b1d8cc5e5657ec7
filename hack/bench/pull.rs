//! The pull of a large image: how long, how much of the processor, how much memory; and the pull of
//! the same image when it is there.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::client::Cri;
use crate::memory;
use crate::report::{Pull, Report};

/// Pulls of the whole image.
const ROUNDS: usize = 3;
/// Pulls of the image that is there.
const AGAIN: usize = 20;
/// What `/proc/<pid>/stat` counts in (`USER_HZ`, which Linux keeps at 100 for programs).
const TICKS_PER_SECOND: f64 = 100.0;

/// What is pulled.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Nothing is, without one.
    pub(crate) image: Option<String>,
    pub(crate) socket: PathBuf,
    /// Whether nothing else is measured.
    pub(crate) alone: bool,
}

/// Pulls the image some times; it is gone afterwards.
pub(crate) async fn measure(cri: &mut Cri, plan: &Plan, report: &mut Report) -> Result<()> {
    let Some(image) = &plan.image else {
        return Ok(());
    };
    let daemon = memory::listener(&plan.socket)?;
    let mut best: Option<Pull> = None;
    let mut peak = 0;
    for round in 0..ROUNDS {
        // What the last round has left to be removed is not this one's work.
        quiet(daemon)?;
        forget_peak(daemon)?;
        let before = cpu_s(daemon)?;
        let took = cri.pull(image).await?;
        let cpu_s = cpu_s(daemon)? - before;
        peak = peak.max(peak_rss(daemon)?);
        report.time("PullImage large", took);
        let wall_s = took.as_secs_f64();
        if best.as_ref().is_none_or(|best| wall_s < best.wall_s) {
            best = Some(Pull {
                image_bytes: cri.image_bytes(image).await?,
                wall_s,
                cpu_s,
                peak_rss_bytes: 0,
            });
        }
        if round + 1 == ROUNDS {
            for _ in 0..AGAIN {
                report.time("PullImage present", cri.pull(image).await?);
            }
        }
        cri.remove_image(image).await?;
    }
    if let Some(mut best) = best {
        best.peak_rss_bytes = peak;
        report.pull(best);
    }
    Ok(())
}

/// Returns when a process has done next to nothing for a while, or after a minute.
fn quiet(pid: i32) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let before = cpu_s(pid)?;
        std::thread::sleep(Duration::from_millis(300));
        if cpu_s(pid)? - before < 0.015 || Instant::now() > end {
            return Ok(());
        }
    }
}

/// Processor time of a process, user and system (proc(5), `/proc/<pid>/stat`, fields 14 and 15).
fn cpu_s(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("read the daemon's stat")?;
    // The name, in parentheses, may hold spaces.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Begins the peak anew (proc(5), `/proc/<pid>/clear_refs`, 5).
fn forget_peak(pid: i32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the daemon's peak")
}

/// Most that was resident, in bytes (proc(5), `VmHWM`).
fn peak_rss(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    Ok(kilobytes.unwrap_or(0) * 1024)
}
