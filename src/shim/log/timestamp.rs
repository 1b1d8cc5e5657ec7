//! When a log line was read: UTC, nine digits of nanoseconds, never before the line above it.
//!
//! Go's `time.RFC3339Nano`, with which the kubelet parses, accepts any number of digits; nine keep
//! every entry's prefix equally long.

use std::time::{SystemTime, UNIX_EPOCH};

/// Length of `2016-10-06T00:17:09.669794202Z`.
pub const TIMESTAMP_LEN: usize = 30;

const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// 9999-12-31T23:59:59.999999999Z does not fit into nanoseconds, 2262-04-11 does: all of them have
/// four digits in the year.
const SECONDS_PER_DAY: i64 = 86_400;

/// A clock that formats, and that does not go backwards when the system's does.
#[derive(Debug)]
pub struct LogClock {
    last_ns: i64,
    second: i64,
    text: [u8; TIMESTAMP_LEN],
}

impl Default for LogClock {
    fn default() -> LogClock {
        LogClock {
            last_ns: 0,
            second: -1,
            text: *b"1970-01-01T00:00:00.000000000Z",
        }
    }
}

impl LogClock {
    /// The text of `now_ns` (nanoseconds since 1970, UTC), or of the latest time given before when
    /// that is later.
    pub fn stamp(&mut self, now_ns: i64) -> &[u8; TIMESTAMP_LEN] {
        self.last_ns = self.last_ns.max(now_ns);
        let second = self.last_ns / NANOS_PER_SECOND;
        if second != self.second {
            self.second = second;
            write_second(&mut self.text, second);
        }
        digits(&mut self.text[20..29], self.last_ns % NANOS_PER_SECOND);
        &self.text
    }
}

/// Nanoseconds since 1970, UTC, now.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn write_second(text: &mut [u8; TIMESTAMP_LEN], second: i64) {
    let (year, month, day) = civil_from_days(second / SECONDS_PER_DAY);
    let of_day = second % SECONDS_PER_DAY;
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], of_day / 3600);
    digits(&mut text[14..16], of_day / 60 % 60);
    digits(&mut text[17..19], of_day % 60);
}

fn digits(text: &mut [u8], mut number: i64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are
/// counted from March, so that the leap day is the last of its year and months need no table.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097; // 400 years
    const FROM_0000_03_01: i64 = 719_468;
    let shifted = days + FROM_0000_03_01;
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(ns: i64) -> String {
        String::from_utf8(LogClock::default().stamp(ns).to_vec()).unwrap()
    }

    #[test]
    fn known_moments_have_their_known_texts() {
        assert_eq!(
            text(1_475_713_029_669_794_202),
            "2016-10-06T00:17:09.669794202Z"
        );
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            text(951_782_400_000_000_001),
            "2000-02-29T00:00:00.000000001Z"
        );
        assert_eq!(
            text(1_709_251_199_999_999_999),
            "2024-02-29T23:59:59.999999999Z"
        );
        assert_eq!(
            text(4_107_542_400_000_000_000),
            "2100-03-01T00:00:00.000000000Z"
        );
    }

    #[test]
    fn every_day_of_five_centuries_follows_the_one_before() {
        let mut expected = (1970, 1, 1);
        for days in 0..182_621 {
            assert_eq!(civil_from_days(days), expected);
            let (year, month, day) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + i64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (day == length, month) {
                (false, _) => (year, month, day + 1),
                (true, 12) => (year + 1, 1, 1),
                (true, _) => (year, month + 1, 1),
            };
        }
    }

    proptest! {
        #[test]
        fn stamps_never_go_backwards(times in prop::collection::vec(0..i64::MAX, 1..50)) {
            let mut clock = LogClock::default();
            let mut last = [0; TIMESTAMP_LEN];
            for time in times {
                let stamp = *clock.stamp(time);
                prop_assert!(stamp >= last);
                last = stamp;
            }
        }
    }
}
