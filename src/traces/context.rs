//! Whose trace a request belongs to: the header `traceparent` (W3C Trace Context, level 1).

/// The span of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its trace.
    pub trace_id: [u8; 16],
    /// Its own id.
    pub span_id: [u8; 8],
    /// Whether the client records its spans.
    pub sampled: bool,
}

impl Parent {
    /// Reads the header: `00-` trace id `-` parent id `-` flags, in lower-case hex. Later versions
    /// may have more behind that; version ff is none. `None` when it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let trace_id: [u8; 16] = hex(parts.next()?)?;
        let span_id: [u8; 8] = hex(parts.next()?)?;
        let [flags] = hex(parts.next()?)?;
        let more = parts.next().is_some();
        let wrong = version == [0xff] || (version == [0] && more);
        let empty = trace_id == [0; 16] || span_id == [0; 8];
        (!wrong && !empty).then_some(Self {
            trace_id,
            span_id,
            sampled: flags & 1 == 1,
        })
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_header_is_read_as_the_recommendation_has_it() {
        let parent = Parent::parse(GOOD).expect("the example of the recommendation");
        assert_eq!(parent.trace_id[0], 0x0a);
        assert_eq!(parent.span_id[7], 0x31);
        assert!(parent.sampled);
        let later = GOOD.replace("00-0af", "01-0af") + "-what-the-future-has";
        assert!(Parent::parse(&later).is_some());
        for bad in [
            String::new(),
            GOOD.replace("00-0af", "ff-0af"),
            format!("{GOOD}-more"),
            GOOD.to_uppercase(),
            GOOD.replace("b7ad6b7169203331", "0000000000000000"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("-01", "-1"),
            GOOD.replace("-01", ""),
            "00-é".into(),
        ] {
            assert_eq!(Parent::parse(&bad), None, "{bad}");
        }
    }
}
