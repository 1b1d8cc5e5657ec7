//! What a cgroup uses, in the terms of CRI and kubelet.

use super::error::CgroupError;
use super::file::{keyed, read_if_present, read_number};
use super::layout::Cgroups;
use super::path::CgroupPath;

/// At or beyond this a v1 limit is none: the kernel rounds "unlimited" down to whole pages.
const NO_LIMIT_BYTES: u64 = i64::MAX as u64 - 0xffff;

/// Use of resources by a cgroup and all below it. What no controller counts is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupStats {
    /// CPU time in nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// Memory in use, with the page cache.
    pub memory_usage_bytes: Option<u64>,
    /// Memory in use less the inactive page cache, which is what kubelet evicts by.
    pub memory_working_set_bytes: Option<u64>,
    /// Anonymous memory.
    pub memory_rss_bytes: Option<u64>,
    /// Limit less working set; `None` when there is no limit.
    pub memory_available_bytes: Option<u64>,
    /// Memory limit; `None` when there is none.
    pub memory_limit_bytes: Option<u64>,
    /// Page faults, minor and major.
    pub page_faults: Option<u64>,
    /// Page faults that waited for a device.
    pub major_page_faults: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Swap in use.
    pub swap_usage_bytes: Option<u64>,
}

/// Where each number is, in one cgroup version.
struct MemoryFiles {
    usage: &'static str,
    limit: &'static str,
    rss: &'static str,
    inactive_file: &'static str,
    page_faults: &'static str,
    major_page_faults: &'static str,
}

/// v1 counts each level for itself; the `total_` keys are with all below.
const V1: MemoryFiles = MemoryFiles {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    rss: "total_rss",
    inactive_file: "total_inactive_file",
    page_faults: "total_pgfault",
    major_page_faults: "total_pgmajfault",
};

const V2: MemoryFiles = MemoryFiles {
    usage: "memory.current",
    limit: "memory.max",
    rss: "anon",
    inactive_file: "inactive_file",
    page_faults: "pgfault",
    major_page_faults: "pgmajfault",
};

impl Cgroups {
    /// Reads what a cgroup uses now. A cgroup that is gone uses nothing that could be told: every
    /// field is `None`.
    ///
    /// # Errors
    ///
    /// When a file exists and cannot be read.
    pub fn stats(&self, path: &CgroupPath) -> Result<CgroupStats, CgroupError> {
        let mut stats = CgroupStats::default();
        match self.fill(path, &mut stats) {
            // It was removed while it was being read.
            Err(error) if error.is(libc::ENODEV) => Ok(CgroupStats::default()),
            other => other.map(|()| stats),
        }
    }

    fn fill(&self, path: &CgroupPath, stats: &mut CgroupStats) -> Result<(), CgroupError> {
        if let Some(dir) = self.v1_dir("cpuacct", path) {
            stats.cpu_usage_ns = read_number(&dir, "cpuacct.usage")?;
        } else if let Some(dir) = self.unified_dir(path) {
            // Every v2 cgroup counts CPU time, also without the controller.
            let text = read_if_present(&dir, "cpu.stat")?.unwrap_or_default();
            stats.cpu_usage_ns = keyed(&text, "usage_usec").map(|us| us.saturating_mul(1000));
        }
        if let Some(dir) = self.v1_dir("memory", path) {
            let text = fill_memory(&dir, &V1, stats)?;
            stats.swap_usage_bytes = keyed(&text, "total_swap");
        } else if let Some(dir) = self.v2_dir("memory", path) {
            fill_memory(&dir, &V2, stats)?;
            stats.swap_usage_bytes = read_number(&dir, "memory.swap.current")?;
        }
        if let Some(dir) = self
            .v1_dir("pids", path)
            .or_else(|| self.v2_dir("pids", path))
        {
            stats.pids = read_number(&dir, "pids.current")?;
        }
        Ok(())
    }
}

/// Returns the text of `memory.stat`.
fn fill_memory(
    dir: &std::path::Path,
    files: &MemoryFiles,
    stats: &mut CgroupStats,
) -> Result<String, CgroupError> {
    let usage = read_number(dir, files.usage)?;
    let text = read_if_present(dir, "memory.stat")?.unwrap_or_default();
    let inactive = keyed(&text, files.inactive_file).unwrap_or_default();
    stats.memory_usage_bytes = usage;
    stats.memory_working_set_bytes = usage.map(|usage| usage.saturating_sub(inactive));
    stats.memory_rss_bytes = keyed(&text, files.rss);
    stats.page_faults = keyed(&text, files.page_faults);
    stats.major_page_faults = keyed(&text, files.major_page_faults);
    stats.memory_limit_bytes =
        read_number(dir, files.limit)?.filter(|limit| *limit < NO_LIMIT_BYTES);
    stats.memory_available_bytes = stats
        .memory_limit_bytes
        .zip(stats.memory_working_set_bytes)
        .map(|(limit, used)| limit.saturating_sub(used));
    Ok(text)
}
