//! The limits that a cgroup has, read back from either version's files.

use super::error::CgroupError;
use super::file::{read_if_present, read_number};
use super::layout::Cgroups;
use super::path::CgroupPath;
use super::resources::weight_from_shares;
use crate::lifecycle::limits::Held;
use crate::lifecycle::spec::Resources;

/// A limit of v1 from here on is none: it has the greatest multiple of a page for it.
const NO_LIMIT: u64 = 1 << 62;
/// What stands for no limit.
const UNLIMITED: i64 = -1;

impl Cgroups {
    /// Reads the limits of a cgroup; `asked` says of which sizes of huge pages and which files of
    /// v2. A cgroup that is gone has none that could be told.
    ///
    /// # Errors
    ///
    /// When a file is there and cannot be read.
    pub fn limits(&self, path: &CgroupPath, asked: &Resources) -> Result<Held, CgroupError> {
        let mut held = Held::default();
        self.cpu_limits(path, asked, &mut held)?;
        self.memory_limits(path, &mut held)?;
        let cpuset = self
            .v1_dir("cpuset", path)
            .or_else(|| self.v2_dir("cpuset", path));
        if let Some(dir) = cpuset {
            held.cpuset_cpus = read_if_present(&dir, "cpuset.cpus")?;
            held.cpuset_mems = read_if_present(&dir, "cpuset.mems")?;
        }
        for (size, _) in &asked.hugepage_limits {
            let v1 = self.v1_dir("hugetlb", path);
            let limit = match (v1, self.v2_dir("hugetlb", path)) {
                (Some(dir), _) => read_number(&dir, &format!("hugetlb.{size}.limit_in_bytes"))?,
                (None, Some(dir)) => read_number(&dir, &format!("hugetlb.{size}.max"))?,
                (None, None) => None,
            };
            held.huge_pages
                .extend(limit.map(|bytes| (size.clone(), bytes)));
        }
        if let Some(dir) = self.unified_dir(path) {
            for name in asked.unified.keys() {
                let value = read_if_present(&dir, name)?;
                held.unified
                    .extend(value.map(|value| (name.clone(), value)));
            }
        }
        Ok(held)
    }

    fn cpu_limits(
        &self,
        path: &CgroupPath,
        asked: &Resources,
        held: &mut Held,
    ) -> Result<(), CgroupError> {
        if let Some(dir) = self.v1_dir("cpu", path) {
            held.cpu_shares = read_number(&dir, "cpu.shares")?.map(signed);
            held.cpu_period_us = read_number(&dir, "cpu.cfs_period_us")?.map(signed);
            // Without a quota it says -1.
            let quota = read_if_present(&dir, "cpu.cfs_quota_us")?;
            held.cpu_quota_us = quota.and_then(|text| text.parse().ok());
        } else if let Some(dir) = self.v2_dir("cpu", path) {
            if let Some(weight) = read_number(&dir, "cpu.weight")? {
                let shares = u64::try_from(asked.cpu_shares).unwrap_or(0);
                held.shares_as_asked = shares > 0 && weight_from_shares(shares) == weight;
                held.cpu_shares = Some(signed(shares_from_weight(weight)));
            }
            let text = read_if_present(&dir, "cpu.max")?.unwrap_or_default();
            if let Some((quota, period)) = text.split_once(' ') {
                held.cpu_quota_us = Some(quota.parse().unwrap_or(UNLIMITED));
                held.cpu_period_us = period.parse().ok();
            }
        }
        Ok(())
    }

    fn memory_limits(&self, path: &CgroupPath, held: &mut Held) -> Result<(), CgroupError> {
        if let Some(dir) = self.v1_dir("memory", path) {
            held.memory_bytes = read_number(&dir, "memory.limit_in_bytes")?.map(limit);
            let both = read_number(&dir, "memory.memsw.limit_in_bytes")?;
            held.memory_and_swap_bytes = both.map(limit);
        } else if let Some(dir) = self.v2_dir("memory", path) {
            held.memory_bytes = read_number(&dir, "memory.max")?.map(limit);
            let swap = read_number(&dir, "memory.swap.max")?.map(limit);
            held.memory_and_swap_bytes = match (held.memory_bytes, swap) {
                (Some(memory), Some(swap)) if memory >= 0 && swap >= 0 => Some(memory + swap),
                (_, Some(_)) => Some(UNLIMITED),
                (_, None) => None,
            };
        }
        Ok(())
    }
}

fn limit(bytes: u64) -> i64 {
    match bytes < NO_LIMIT {
        true => signed(bytes),
        false => UNLIMITED,
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The greatest shares that have no more than this weight: the other way round of
/// [`weight_from_shares`], which rounds up.
fn shares_from_weight(weight: u64) -> u64 {
    let (mut enough, mut above) = (2, 262_145);
    while above - enough > 1 {
        let middle = enough + (above - enough) / 2;
        match weight_from_shares(middle) <= weight {
            true => enough = middle,
            false => above = middle,
        }
    }
    enough
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_weights_are_each_others() {
        for weight in [1, 2, 17, 59, 100, 174, 9_999, 10_000] {
            let shares = shares_from_weight(weight);
            assert!(weight_from_shares(shares) <= weight, "{weight}");
            assert!(shares == 262_144 || weight_from_shares(shares + 1) > weight);
        }
        // The normal one is told as the normal one.
        assert_eq!(shares_from_weight(100), 1024);
    }
}
