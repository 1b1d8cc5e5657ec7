//! The limits of a cgroup as properties of its unit (systemd.resource-control(5)), read from the
//! kernel's files.
//!
//! The files say what holds; systemd is told the same, so that it does not write something else
//! when it next sets what it knows (`systemctl daemon-reload`). What it has no property for it
//! leaves alone.

use std::path::Path;

use super::message::{Properties, Value};
use crate::cgroup::error::CgroupError;
use crate::cgroup::file::{read_if_present, write};

/// systemd keeps quotas of CPU in whole per cent: of this many µs in a second.
const PER_CENT_US: u64 = 10_000;
/// CPUs and memory nodes beyond this number are none.
const NUMBER_MAX: usize = 8192;

/// Files with a size or a number, or `max`.
const SIZES: [(&str, &str); 6] = [
    ("memory.min", "MemoryMin"),
    ("memory.low", "MemoryLow"),
    ("memory.high", "MemoryHigh"),
    ("memory.max", "MemoryMax"),
    ("memory.swap.max", "MemorySwapMax"),
    ("pids.max", "TasksMax"),
];

/// Files with a list.
const LISTS: [(&str, &str); 2] = [
    ("cpuset.cpus", "AllowedCPUs"),
    ("cpuset.mems", "AllowedMemoryNodes"),
];

/// The limits that hold in a cgroup of the unified hierarchy.
#[derive(Debug)]
pub(super) struct Held {
    /// The same for systemd.
    pub(super) properties: Properties,
    files: Vec<(&'static str, String)>,
}

/// Reads them.
pub(super) fn held(dir: &Path) -> Result<Held, CgroupError> {
    let mut found = Held {
        properties: Vec::new(),
        files: Vec::new(),
    };
    let mut take = |file: &'static str, of: &dyn Fn(&str) -> Properties| {
        if let Some(text) = read_if_present(dir, file)? {
            found.properties.extend(of(&text));
            found.files.push((file, text));
        }
        Ok(())
    };
    // An idle cgroup has no weight of its own.
    let idle = read_if_present(dir, "cpu.idle")?.is_some_and(|text| text == "1");
    if !idle {
        take("cpu.weight", &|text| weight("CPUWeight", text))?;
    }
    take("cpu.max", &quota)?;
    for (file, name) in SIZES {
        take(file, &|text| number(name, text))?;
    }
    for (file, name) in LISTS {
        take(file, &|text| vec![(name, Value::Bytes(mask(text)))])?;
    }
    take("io.weight", &|text| {
        let default = text.lines().find_map(|line| line.strip_prefix("default "));
        weight("IOWeight", default.unwrap_or_default())
    })?;
    Ok(found)
}

impl Held {
    /// Writes again what systemd has rounded.
    pub(super) fn restore(&self, dir: &Path) -> Result<(), CgroupError> {
        for (file, text) in &self.files {
            if read_if_present(dir, file)?.is_some_and(|now| now != *text) {
                match text.as_str() {
                    // An empty set of CPUs is that of the parent.
                    "" => write(dir, file, "\n")?,
                    lines => lines.lines().try_for_each(|line| write(dir, file, line))?,
                }
            }
        }
        Ok(())
    }
}

fn weight(name: &'static str, text: &str) -> Properties {
    let weight = text.parse().ok().filter(|n| (1..=10_000).contains(n));
    weight
        .map(|weight| (name, Value::Number(weight)))
        .into_iter()
        .collect()
}

/// `max` is the greatest number to systemd.
fn number(name: &'static str, text: &str) -> Properties {
    let value = match text {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    };
    value
        .map(|value| (name, Value::Number(value)))
        .into_iter()
        .collect()
}

/// `cpu.max`: quota and period, µs. What is no whole per cent is rounded up.
fn quota(text: &str) -> Properties {
    let Some((quota, period)) = text.split_once(' ') else {
        return Vec::new();
    };
    let Some(period) = period.parse::<u64>().ok().filter(|period| *period > 0) else {
        return Vec::new();
    };
    let per_second = match quota.parse::<u64>() {
        Ok(quota) => {
            let exact = u128::from(quota) * 1_000_000;
            let exact = exact.div_ceil(period.into());
            let most = u64::MAX - PER_CENT_US;
            let exact = u64::try_from(exact).map_or(most, |exact| exact.min(most));
            exact.next_multiple_of(PER_CENT_US)
        }
        Err(_) => u64::MAX,
    };
    vec![
        ("CPUQuotaPeriodUSec", Value::Number(period)),
        ("CPUQuotaPerSecUSec", Value::Number(per_second)),
    ]
}

/// A list such as `0-2,7` as bits, the lowest number first. An empty one is no restriction.
fn mask(list: &str) -> Vec<u8> {
    let mut mask: Vec<u8> = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            continue;
        };
        for number in first..=last.min(NUMBER_MAX) {
            if mask.len() <= number / 8 {
                mask.resize(number / 8 + 1, 0);
            }
            mask[number / 8] |= 1 << (number % 8);
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_bits() {
        assert_eq!(mask(""), Vec::<u8>::new());
        assert_eq!(mask("0"), [1]);
        assert_eq!(mask("0-2,9"), [0b111, 0b10]);
        assert_eq!(mask("3-1,x,99999999999999999999999"), Vec::<u8>::new());
        assert_eq!(mask("0-999999999").len(), NUMBER_MAX / 8 + 1);
    }

    #[test]
    fn quotas_are_of_a_second_and_in_whole_per_cent() {
        let of = |text| {
            let numbers = quota(text).into_iter().map(|(_, value)| value);
            numbers.collect::<Vec<_>>()
        };
        let numbers = |period, quota| vec![Value::Number(period), Value::Number(quota)];
        assert_eq!(of("max 100000"), numbers(100_000, u64::MAX));
        assert_eq!(of("50000 100000"), numbers(100_000, 500_000));
        assert_eq!(of("12500 100000"), numbers(100_000, 130_000));
        assert_eq!(of("1000 1000000"), numbers(1_000_000, 10_000));
        assert!(of("nonsense").is_empty() && of("1 0").is_empty());
        assert_eq!(of("18446744073709551615 1").len(), 2);
    }

    #[test]
    fn what_the_files_say_is_told_and_put_back_when_it_was_rounded() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("cpu.weight", "59\n");
        write("cpu.max", "12500 100000\n");
        write("memory.max", "max\n");
        write("memory.high", "4096\n");
        write("cpuset.cpus", "\n");
        write("io.weight", "default 200\n8:0 100\n");
        let found = held(dir.path()).unwrap();
        let names: Vec<_> = found.properties.iter().map(|(name, _)| *name).collect();
        let wanted = [
            "CPUWeight",
            "CPUQuotaPeriodUSec",
            "CPUQuotaPerSecUSec",
            "MemoryHigh",
            "MemoryMax",
            "AllowedCPUs",
            "IOWeight",
        ];
        assert_eq!(names, wanted);
        write("cpu.max", "13000 100000\n");
        found.restore(dir.path()).unwrap();
        let now = std::fs::read_to_string(dir.path().join("cpu.max")).unwrap();
        assert_eq!(now.trim(), "12500 100000");
        write("cpu.idle", "1\n");
        assert_eq!(held(dir.path()).unwrap().properties.len(), 6);
    }
}
