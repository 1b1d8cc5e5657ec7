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
/// 400 years.
const DAYS_PER_ERA: i64 = 146_097;
/// From the first day of the calendar's eras to 1970-01-01.
const FROM_0000_03_01: i64 = 719_468;

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
    /// A clock for a log whose last entry has this time (nanoseconds since 1970, UTC): it does not
    /// go back behind that.
    #[must_use]
    pub fn not_before(last_ns: i64) -> LogClock {
        LogClock {
            last_ns: last_ns.max(0),
            ..LogClock::default()
        }
    }

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

/// The time that an RFC 3339 text says, in nanoseconds since 1970, UTC: `2016-10-06T00:17:09Z`,
/// with up to nine digits of a second, or an offset in place of `Z`. `None` for any other text.
#[must_use]
pub fn parse(text: &[u8]) -> Option<i64> {
    let (whole, rest) = text.split_at_checked("2016-10-06T00:17:09".len())?;
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| whole[*at] != *byte) {
        return None;
    }
    let (month, day) = (number(&whole[5..7])?, number(&whole[8..10])?);
    let (hour, minute) = (number(&whole[11..13])?, number(&whole[14..16])?);
    let second = number(&whole[17..19])?;
    let days = days_from_civil(number(&whole[0..4])?, month, day)?;
    // A leap second is the first of the next minute here.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (nanos, zone) = fraction(rest)?;
    let of_day = hour * 3600 + minute * 60 + second - offset(zone)?;
    let seconds = days * SECONDS_PER_DAY + of_day;
    seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(nanos)
}

/// Nanoseconds of `.123…`, which may be missing, and what follows it.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(rest) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let scale = 10_i64.pow(u32::try_from(9_usize.checked_sub(length)?).ok()?);
    Some((number(&rest[..length])? * scale, &rest[length..]))
}

/// Seconds by which `Z` or `+01:30` is ahead of UTC.
fn offset(zone: &[u8]) -> Option<i64> {
    if zone == b"Z" {
        return Some(0);
    }
    let sign = match zone.first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    if zone.len() != "+01:30".len() || zone[3] != b':' {
        return None;
    }
    let (hours, minutes) = (number(&zone[1..3])?, number(&zone[4..6])?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Decimal digits, at least one, and nothing else.
pub(super) fn number(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + i64::from(digit - b'0'))
    })
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

/// The inverse of [`civil_from_days`]; `None` for what is no day.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let years = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let era = years.div_euclid(400);
    let year_of_era = years.rem_euclid(400);
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    let days = era * DAYS_PER_ERA + of_era - FROM_0000_03_01;
    // The 31st of a shorter month is a day of the next one.
    (civil_from_days(days) == (year, month, day)).then_some(days)
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
            assert_eq!(
                days_from_civil(expected.0, expected.1, expected.2),
                Some(days)
            );
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

    #[test]
    fn texts_of_others_are_understood_or_refused() {
        let at = 1_475_713_029 * NANOS_PER_SECOND;
        let good: [(&str, i64); 5] = [
            ("2016-10-06T00:17:09Z", at),
            ("2016-10-06T00:17:09.5Z", at + NANOS_PER_SECOND / 2),
            ("2016-10-06T02:17:09.000000001+02:00", at + 1),
            ("2016-10-05T18:47:09-05:30", at),
            ("1969-12-31T23:59:59Z", -NANOS_PER_SECOND),
        ];
        for (text, expected) in good {
            assert_eq!(parse(text.as_bytes()), Some(expected), "{text}");
        }
        for text in [
            "",
            "2016-10-06",
            "2016-10-06T00:17:09",
            "2016-10-06 00:17:09Z",
            "2016-02-30T00:00:00Z",
            "2016-13-01T00:00:00Z",
            "2016-10-06T24:00:00Z",
            "2016-10-06T00:17:09.Z",
            "2016-10-06T00:17:09.1234567890Z",
            "2016-10-06T00:17:09+2:00",
            "2016-10-06T00:17:09ZZ",
            "9999-12-31T23:59:59Z",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_clock_goes_on_where_another_has_stopped() {
        let mut clock = LogClock::not_before(1_475_713_029_669_794_202);
        assert_eq!(clock.stamp(5), b"2016-10-06T00:17:09.669794202Z");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(time in 0..i64::MAX) {
            prop_assert_eq!(parse(LogClock::default().stamp(time)), Some(time));
        }

        #[test]
        fn any_bytes_are_a_time_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&bytes);
        }

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
