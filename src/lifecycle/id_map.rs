//! Which ids of the node stand behind those of a user namespace (user_namespaces(7), KEP-127).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Ranges in one map, as the kernel takes them.
const RANGES_MAX: usize = 340;

/// Ids in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first one inside.
    pub container_id: u32,
    /// The one of the node that it is.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    fn overlaps(self, other: Self) -> bool {
        let meet = |a: u32, b: u32| {
            u64::from(a) < u64::from(b) + u64::from(other.length)
                && u64::from(b) < u64::from(a) + u64::from(self.length)
        };
        meet(self.container_id, other.container_id) || meet(self.host_id, other.host_id)
    }

    /// Whether both ends are ids: the largest number is none (setresuid(2)).
    fn fits(self) -> bool {
        let ends = |first: u32| u64::from(first) + u64::from(self.length) <= u64::from(u32::MAX);
        self.length > 0 && ends(self.container_id) && ends(self.host_id)
    }
}

/// `CONTAINER:HOST:LENGTH`.
impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.container_id, self.host_id, self.length)
    }
}

/// The maps of users and of groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

impl IdMaps {
    /// Who of the node stands behind user and group 0; `None` where 0 is not mapped.
    #[must_use]
    pub fn root(&self) -> Option<(u32, u32)> {
        Some((outside(&self.uids, 0)?, outside(&self.gids, 0)?))
    }
}

/// `uids 0:70000:65536, gids 0:70000:65536`.
impl fmt::Display for IdMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |ranges: &[IdRange]| {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            ranges.join(" ")
        };
        write!(f, "uids {}, gids {}", list(&self.uids), list(&self.gids))
    }
}

/// The id of the node behind one inside.
#[must_use]
pub fn outside(ranges: &[IdRange], inside: u32) -> Option<u32> {
    let offset = |range: &IdRange| {
        let offset = inside.checked_sub(range.container_id)?;
        (offset < range.length).then(|| range.host_id + offset)
    };
    ranges.iter().find_map(offset)
}

/// The ranges as `/proc/PID/uid_map` takes them.
#[must_use]
pub fn lines(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| {
        format!(
            "{} {} {}\n",
            range.container_id, range.host_id, range.length
        )
    };
    ranges.iter().map(line).collect()
}

/// What is wrong with a map, if anything: of a mount, or of anything else.
///
/// # Errors
/// Which rule it breaks.
pub fn check(ranges: &[IdRange]) -> Result<(), String> {
    if ranges.is_empty() || ranges.len() > RANGES_MAX {
        let count = ranges.len();
        return Err(format!("has {count} ranges; it takes 1 to {RANGES_MAX}"));
    }
    for (index, range) in ranges.iter().enumerate() {
        if !range.fits() {
            return Err(format!(
                "has the range {range}, which is empty or leaves the 32 bits of ids"
            ));
        }
        if let Some(other) = ranges[..index].iter().find(|other| range.overlaps(**other)) {
            return Err(format!("has the ranges {other} and {range}, which overlap"));
        }
    }
    Ok(())
}

/// The same for the map of a pod: one range from its root on, and not the node's own root.
///
/// # Errors
/// Which rule it breaks.
pub fn check_pods(ranges: &[IdRange]) -> Result<(), String> {
    check(ranges)?;
    let [range] = ranges else {
        return Err(format!("has {} ranges; a pod takes one", ranges.len()));
    };
    if range.container_id != 0 {
        return Err(format!(
            "begins at {} inside; a pod's begins at 0",
            range.container_id
        ));
    }
    if range.host_id == 0 {
        return Err("begins at the node's own root, which no pod is given".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(container_id: u32, host_id: u32, length: u32) -> IdRange {
        IdRange {
            container_id,
            host_id,
            length,
        }
    }

    #[test]
    fn a_pod_takes_one_range_from_its_root_on_and_not_the_nodes() {
        assert_eq!(check_pods(&[range(0, 1000, 100_000)]), Ok(()));
        assert_eq!(check_pods(&[range(0, u32::MAX - 10, 10)]), Ok(()));
        for wrong in [
            vec![],
            vec![range(0, 1000, 10), range(10, 2000, 10)],
            vec![range(1, 1000, 10)],
            vec![range(0, 0, 10)],
            vec![range(0, 1000, 0)],
            vec![range(0, u32::MAX - 10, 11)],
        ] {
            assert!(check_pods(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn ids_beyond_the_ranges_are_nobody() {
        let ranges = [range(0, 1000, 10), range(20, 5000, 1)];
        assert_eq!(outside(&ranges, 9), Some(1009));
        assert_eq!(outside(&ranges, 10), None);
        assert_eq!(outside(&ranges, 20), Some(5000));
        assert_eq!(lines(&ranges), "0 1000 10\n20 5000 1\n");
    }

    proptest! {
        #[test]
        fn no_id_has_two_meanings_in_a_map_that_passes(
            parts in proptest::collection::vec((0_u32..50, 0_u32..50, 0_u32..20), 1..4)
        ) {
            let ranges: Vec<_> = parts.into_iter().map(|(a, b, c)| range(a, b, c)).collect();
            if check(&ranges).is_ok() {
                let behind: Vec<_> = (0..80).filter_map(|id| outside(&ranges, id)).collect();
                let mut once = behind.clone();
                once.sort_unstable();
                once.dedup();
                prop_assert_eq!(once.len(), behind.len());
                let all: u32 = ranges.iter().map(|range| range.length).sum();
                prop_assert_eq!(behind.len(), all as usize);
            }
        }
    }
}
