//! How much a pod may receive and send, by Kubernetes' annotations. Values are its quantities
//! (`k8s.io/apimachinery/pkg/api/resource`) of bits a second, from 1k to 1P, as kubelet's own
//! network plugins took them.

use super::spec::Map;

/// The annotation for what comes to the pod.
pub const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// The annotation for what the pod sends.
pub const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Bits a second, at least and at most.
const LEAST: u64 = 1_000;
const MOST: u64 = 1_000_000_000_000_000;

/// Limits of a pod, in bits a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Of what comes to the pod.
    pub ingress_bps: Option<u64>,
    /// Of what the pod sends.
    pub egress_bps: Option<u64>,
}

impl Bandwidth {
    /// What the annotations of a pod ask for.
    ///
    /// # Errors
    /// The annotation that cannot be met, and why.
    pub fn of(annotations: &Map) -> Result<Self, (&'static str, String)> {
        let limit = |name| match annotations.get(name) {
            None => Ok(None),
            Some(text) => parse(text).map(Some).map_err(|why| (name, why)),
        };
        Ok(Self {
            ingress_bps: limit(INGRESS)?,
            egress_bps: limit(EGRESS)?,
        })
    }

    /// Whether there is any limit.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.ingress_bps.is_some() || self.egress_bps.is_some()
    }
}

fn parse(text: &str) -> Result<u64, String> {
    let value = quantity(text)
        .ok_or_else(|| format!("{text:?} is not a quantity, such as 10M (bits a second)"))?;
    if !(LEAST..=MOST).contains(&value) {
        return Err(format!("{text:?} is not between 1k and 1P (bits a second)"));
    }
    Ok(value)
}

/// The whole number a quantity stands for, rounded up; `None` for what is none, is negative or does
/// not fit.
fn quantity(text: &str) -> Option<u64> {
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let text = text.strip_prefix('+').unwrap_or(text);
    let split = text.find(|c| !digits(c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, part].concat();
    // Eighteen digits fit, and no limit has more.
    if digits.is_empty() || digits.len() > 18 || part.contains('.') {
        return None;
    }
    let (base, exponent) = scale(suffix)?;
    let places = u32::try_from(part.len()).ok()?;
    let value: u128 = digits.parse().ok()?;
    let divisor = 10_u128.pow(places);
    let (multiplied, divisor) = match u32::try_from(exponent) {
        Ok(exponent) => (value.checked_mul(base.checked_pow(exponent)?)?, divisor),
        Err(_) => {
            let power = base.checked_pow(exponent.unsigned_abs())?;
            (value, divisor.checked_mul(power)?)
        }
    };
    u64::try_from(multiplied.div_ceil(divisor)).ok()
}

/// What a suffix multiplies by: a power of a base.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: [(&str, i32); 6] = [
        ("Ki", 1),
        ("Mi", 2),
        ("Gi", 3),
        ("Ti", 4),
        ("Pi", 5),
        ("Ei", 6),
    ];
    let found = |table: &[(&str, i32)]| {
        let entry = table.iter().find(|(name, _)| *name == suffix);
        entry.map(|(_, exponent)| *exponent)
    };
    if let Some(exponent) = found(&DECIMAL) {
        return Some((10, exponent));
    }
    if let Some(exponent) = found(&BINARY) {
        return Some((1024, exponent));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-18..=18).contains(&exponent).then_some((10, exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(text: &str) -> Result<Bandwidth, (&'static str, String)> {
        Bandwidth::of(&Map::from([(EGRESS.to_owned(), text.to_owned())]))
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bits) in [
            ("10M", 10_000_000),
            ("1k", 1_000),
            ("1P", 1_000_000_000_000_000),
            ("1.5G", 1_500_000_000),
            ("0.5Ki", 512),
            ("1Mi", 1_048_576),
            ("2e6", 2_000_000),
            ("2E3", 2_000),
            ("+4000", 4_000),
            ("1000000m", 1_000),
            ("1000.1", 1_001),
            ("5.", 5),
            (".5M", 500_000),
        ] {
            assert_eq!(quantity(text), Some(bits), "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        assert_eq!(Bandwidth::of(&Map::new()), Ok(Bandwidth::default()));
        for bad in [
            "",
            "M",
            "999",
            "1.1P",
            "-5M",
            "10 M",
            "10Mb",
            "1e",
            "1e99",
            "1..5M",
            "1.5.5M",
            "0x10M",
            "9999999999999999999",
            "10m",
            "٣M",
            "1E",
            "1Ei",
        ] {
            let error = limit(bad).expect_err(bad);
            assert_eq!(error.0, EGRESS, "{bad:?}");
        }
        assert_eq!(limit("10M").expect("a limit").egress_bps, Some(10_000_000));
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in ".{0,40}") {
            if let Ok(bandwidth) = limit(&text) {
                let bits = bandwidth.egress_bps.expect("a limit");
                prop_assert!((LEAST..=MOST).contains(&bits));
            }
        }
    }
}
