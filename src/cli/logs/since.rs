//! `--since`: how long ago, as Go writes durations, or a time. Pure.

use crate::shim::log::timestamp;

/// From when on lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// So many nanoseconds before now.
    Ago(i64),
    /// Nanoseconds since 1970.
    At(i64),
}

impl Since {
    /// The same in nanoseconds since 1970.
    pub(super) fn at_ns(self, now_ns: i64) -> i64 {
        match self {
            Self::Ago(ns) => now_ns.saturating_sub(ns),
            Self::At(ns) => ns,
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let at = timestamp::parse(text.as_bytes()).map(Self::At);
        at.or_else(|| duration(text).map(Self::Ago)).ok_or_else(|| {
            "neither how long ago (90s, 10m, 1h30m) nor a time (2026-01-31T12:00:00Z)".to_owned()
        })
    }
}

const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Nanoseconds of `1h30m` or `1.5s`, and of `0`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "as many seconds as nanoseconds fit into 63 bits, checked"
)]
fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c))?);
        let unit = after.find(is_number).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        total += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    (!text.is_empty() && total < 9e18).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_times_are_told_apart() {
        let parse = |text| Since::parse(text).ok();
        assert_eq!(parse("10m"), Some(Since::Ago(600_000_000_000)));
        assert_eq!(parse("1h30m"), Some(Since::Ago(5_400_000_000_000)));
        assert_eq!(parse("1.5s"), Some(Since::Ago(1_500_000_000)));
        assert_eq!(parse("0"), Some(Since::Ago(0)));
        assert_eq!(parse("250ms"), Some(Since::Ago(250_000_000)));
        let at = Since::At(1_475_713_029_000_000_000);
        assert_eq!(parse("2016-10-06T00:17:09Z"), Some(at));
        for bad in [
            "",
            "10",
            "m",
            "-5m",
            "10 m",
            "1d",
            "yesterday",
            "1..5s",
            "9999999999h",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(Since::Ago(10).at_ns(30), 20);
        assert_eq!(Since::At(10).at_ns(30), 10);
    }
}
