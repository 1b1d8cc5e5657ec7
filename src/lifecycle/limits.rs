//! The limits that a container really has, from what was asked for and what the kernel holds.
//!
//! The kernel rounds, and counts some things otherwise than they are asked for. Where that means
//! the same, the words of the request stay: kubelet compares them with its own. What differs is
//! told as it is.

use super::spec::{Map, Resources};

/// What "no limit" is, where a limit was to be told.
const UNLIMITED: i64 = -1;
/// Largest page of memory that a kernel may count in, bytes.
const PAGE_MAX: i64 = 64 << 10;
/// What cgroups that nobody has given a weight have: v1 shares.
const NORMAL_SHARES: i64 = 1024;

/// What the kernel holds; `None` is what it does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// CPU weight as v1 counts it; from a v2 weight the shares that come nearest.
    pub cpu_shares: Option<i64>,
    /// Whether the shares asked for are that weight (v2 knows fewer of them).
    pub shares_as_asked: bool,
    /// CFS period, µs.
    pub cpu_period_us: Option<i64>,
    /// CFS quota per period, µs; -1 is none.
    pub cpu_quota_us: Option<i64>,
    /// Memory, bytes; -1 is no limit.
    pub memory_bytes: Option<i64>,
    /// Memory and swap together, bytes; -1 is no limit.
    pub memory_and_swap_bytes: Option<i64>,
    /// CPUs, as a list.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as a list.
    pub cpuset_mems: Option<String>,
    /// Huge pages of the sizes asked for, bytes.
    pub huge_pages: Vec<(String, u64)>,
    /// Files of cgroup v2 of the names asked for.
    pub unified: Map,
}

/// The limits in force, in the terms of the request.
#[must_use]
pub fn in_force(asked: &Resources, held: &Held) -> Resources {
    let mut told = asked.clone();
    if let Some(shares) = held.cpu_shares.filter(|_| !held.shares_as_asked) {
        told.cpu_shares = number(asked.cpu_shares, shares, NORMAL_SHARES);
    }
    let quota = held.cpu_quota_us.unwrap_or(asked.cpu_quota_us);
    told.cpu_quota_us = number(asked.cpu_quota_us, quota, UNLIMITED);
    if let Some(period) = held.cpu_period_us
        && (asked.cpu_period_us != 0 || told.cpu_quota_us > 0)
    {
        told.cpu_period_us = period;
    }
    let size = |asked: i64, held: Option<i64>| match held {
        // The kernel counts whole pages.
        Some(held) if held > 0 && (0..PAGE_MAX).contains(&(asked - held)) => asked,
        Some(held) => held,
        None => asked,
    };
    let memory = size(asked.memory_limit_bytes, held.memory_bytes);
    told.memory_limit_bytes = match number(asked.memory_limit_bytes, memory, UNLIMITED) {
        // The interface has no other word for it.
        UNLIMITED => 0,
        bytes => bytes,
    };
    let both = size(asked.memory_swap_limit_bytes, held.memory_and_swap_bytes);
    if asked.memory_swap_limit_bytes != 0 {
        told.memory_swap_limit_bytes = number(asked.memory_swap_limit_bytes, both, UNLIMITED);
    }
    for (told, held) in [
        (&mut told.cpuset_cpus, &held.cpuset_cpus),
        (&mut told.cpuset_mems, &held.cpuset_mems),
    ] {
        // Without a set of its own it has its parent's, whatever that is just now.
        if let Some(held) = held.as_ref().filter(|_| !told.is_empty())
            && members(held) != members(told)
        {
            told.clone_from(held);
        }
    }
    for (size, limit) in &mut told.hugepage_limits {
        let held = held.huge_pages.iter().find(|(name, _)| name == size);
        if let Some((_, bytes)) = held.filter(|(_, bytes)| !is_rounded(*limit, *bytes, size)) {
            *limit = *bytes;
        }
    }
    for (name, value) in &mut told.unified {
        if let Some(held) = held.unified.get(name) {
            value.clone_from(held);
        }
    }
    told
}

/// A number that was not asked for, and is what it is without asking, stays unsaid.
fn number(asked: i64, held: i64, normal: i64) -> i64 {
    match asked == 0 && held == normal {
        true => 0,
        false => held,
    }
}

/// Whether `held` bytes are what the kernel makes of `asked`: whole pages of this size.
fn is_rounded(asked: u64, held: u64, size: &str) -> bool {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &size[digits.len()..] {
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => 1,
    };
    let page = digits.parse::<u64>().unwrap_or(1).saturating_mul(unit);
    asked - asked % page.max(1) == held
}

/// The numbers of a list such as `0-2,7`, as ranges that do not touch.
fn members(list: &str) -> Vec<(u32, u32)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    let mut ranges: Vec<(u32, u32)> = list.split(',').filter_map(range).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Resources {
        Resources {
            cpu_period_us: 100_000,
            cpu_quota_us: 25_000,
            cpu_shares: 300,
            memory_limit_bytes: (64 << 20) + 5,
            memory_swap_limit_bytes: (64 << 20) + 5,
            cpuset_cpus: "1,0".into(),
            hugepage_limits: vec![("2MB".into(), (4 << 20) + 1)],
            unified: [("memory.high".to_owned(), "4097".to_owned())].into(),
            ..Resources::default()
        }
    }

    #[test]
    fn what_the_kernel_rounds_is_told_as_it_was_asked_for() {
        let held = Held {
            cpu_shares: Some(297),
            shares_as_asked: true,
            cpu_period_us: Some(100_000),
            cpu_quota_us: Some(25_000),
            memory_bytes: Some(64 << 20),
            memory_and_swap_bytes: Some(64 << 20),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: Some("0".into()),
            huge_pages: vec![("2MB".into(), 4 << 20)],
            unified: [("memory.high".to_owned(), "4096".to_owned())].into(),
        };
        let mut wanted = asked();
        wanted.unified.insert("memory.high".into(), "4096".into());
        assert_eq!(in_force(&asked(), &held), wanted);
    }

    #[test]
    fn what_differs_is_told_as_the_kernel_has_it() {
        let held = Held {
            cpu_shares: Some(2),
            cpu_period_us: Some(50_000),
            cpu_quota_us: Some(UNLIMITED),
            memory_bytes: Some(32 << 20),
            memory_and_swap_bytes: Some(UNLIMITED),
            cpuset_cpus: Some("0".into()),
            huge_pages: vec![("2MB".into(), 2 << 20)],
            ..Held::default()
        };
        let told = in_force(&asked(), &held);
        assert_eq!((told.cpu_shares, told.cpu_period_us), (2, 50_000));
        assert_eq!(told.cpu_quota_us, UNLIMITED);
        assert_eq!(told.memory_limit_bytes, 32 << 20);
        assert_eq!(told.memory_swap_limit_bytes, UNLIMITED);
        assert_eq!(told.cpuset_cpus, "0");
        assert_eq!(told.hugepage_limits, [("2MB".to_owned(), 2 << 20)]);
    }

    #[test]
    fn what_nobody_asked_for_and_nobody_has_set_stays_unsaid() {
        let held = Held {
            cpu_shares: Some(NORMAL_SHARES),
            cpu_period_us: Some(100_000),
            cpu_quota_us: Some(UNLIMITED),
            memory_bytes: Some(UNLIMITED),
            memory_and_swap_bytes: Some(UNLIMITED),
            cpuset_cpus: Some("0-3".into()),
            ..Held::default()
        };
        let nothing = Resources::default();
        assert_eq!(in_force(&nothing, &held), nothing);
        let held = Held {
            memory_bytes: Some(8 << 20),
            cpu_quota_us: Some(5_000),
            ..held
        };
        let told = in_force(&nothing, &held);
        assert_eq!(told.memory_limit_bytes, 8 << 20);
        assert_eq!((told.cpu_quota_us, told.cpu_period_us), (5_000, 100_000));
        assert_eq!(in_force(&asked(), &Held::default()), asked());
    }

    #[test]
    fn lists_are_compared_by_what_is_in_them() {
        assert_eq!(members("0-2,7"), members("7,0,1,2"));
        assert_eq!(members("0,1,3"), [(0, 1), (3, 3)]);
        assert_ne!(members("0-2"), members("0-3"));
        assert!(members("").is_empty());
        assert!(is_rounded(5, 0, "1GB") && !is_rounded(5 << 30, 4 << 30, "1GB"));
        assert!(is_rounded(7, 7, "odd") && is_rounded(70 << 10, 64 << 10, "64KB"));
    }
}
