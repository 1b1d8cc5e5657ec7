//! Numbers and records inside tar headers: octal, base-256, PAX records, PAX times.
//!
//! Pure. Formats: POSIX pax (IEEE Std 1003.1, "pax Interchange Format"), GNU tar manual "Basic Tar
//! Format". The record parser goes by length, because values may hold newlines.

/// A number field: octal text, or big-endian two's complement when its first bit is set.
///
/// An empty field is zero, as common writers leave it; `None` for anything malformed.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        let head = if negative { first } else { first & 0x7f };
        for byte in std::iter::once(&head).chain(rest) {
            if value != (value << 8) >> 8 {
                return None;
            }
            value = (value << 8) | i64::from(*byte);
        }
        return Some(value);
    }
    // Some readers pass over NULs in front of the digits: to those it would be another number.
    if first == 0 && field.iter().any(|b| !matches!(b, 0 | b' ')) {
        return None;
    }
    let text = field.split(|b| *b == 0).next().unwrap_or(field);
    let text = text.trim_ascii();
    let octal = |sum: i64, digit: &u8| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    };
    text.iter().try_fold(0, octal)
}

/// A decimal number of a PAX record.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// A PAX time: decimal seconds, perhaps negative, perhaps with a fraction.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos = format!("{fraction:0<9}");
    let nanoseconds: u32 = nanos.get(..9)?.parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

/// Splits the first PAX record `LENGTH KEY=VALUE\n` off `data`: key, value, rest.
pub(super) fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(12).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length > data.len() || length < space + 3 || data[length - 1] != b'\n' {
        return None;
    }
    let body = &data[space + 1..length - 1];
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &data[length..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  17 \0\0\0"), Some(0o17));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(b"\0\x00000644"), None);
        assert_eq!(number(b"\0 \0"), Some(0));
        assert_eq!(number(b"777777777777"), Some(0o777_777_777_777));
    }

    #[test]
    fn times_keep_their_fraction_and_sign() {
        let t = |seconds, nanoseconds| {
            Some(Time {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(time(b"12"), t(12, 0));
        assert_eq!(time(b"12.5"), t(12, 500_000_000));
        assert_eq!(time(b"1.1234567899"), t(1, 123_456_789));
        assert_eq!(time(b"-1.25"), t(-2, 750_000_000));
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"1.-5"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn a_record_goes_by_its_length() {
        let data = b"13 a=b\nc\nd=e\n8 x=yzw\n";
        let (key, value, rest) = record(data).unwrap();
        assert_eq!((key, value), (&b"a"[..], &b"b\nc\nd=e"[..]));
        assert_eq!(record(rest).unwrap().0, b"x");
        for bad in [
            &b""[..],
            b"5 a=b",
            b"99 a=b\n",
            b"0 a=b\n",
            b"6 ab c\n",
            b"-6 a=b\n",
        ] {
            assert!(record(bad).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsers_survive_any_bytes(data in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = number(&data);
            let _ = time(&data);
            if let Some((key, value, rest)) = record(&data) {
                prop_assert!(key.len() + value.len() + rest.len() < data.len());
            }
        }
    }
}
