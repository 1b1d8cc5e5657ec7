//! CRI log files, read strictly: a line that is not to the byte what kubelet expects fails.

use std::fs;
use std::path::Path;

/// One line of a CRI log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) time: String,
    /// `stdout` or `stderr`.
    pub(crate) stream: String,
    /// Whether the content goes on in the next line of the same stream.
    pub(crate) partial: bool,
    pub(crate) content: Vec<u8>,
}

/// Reads a log; absent is empty. A last line without its end is an error too.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let bytes = fs::read(path).unwrap_or_default();
    assert!(
        bytes.is_empty() || bytes.ends_with(b"\n"),
        "{} ends in a line",
        path.display()
    );
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| parse(&line[..line.len() - 1])).collect()
}

/// The contents of one stream as lines, partial ones joined. What a stream ends with without a line
/// end may be tagged as either.
pub(crate) fn contents(lines: &[Line], stream: &str) -> Vec<String> {
    let mut whole = Vec::new();
    let mut bytes = Vec::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        bytes.extend(&line.content);
        if !line.partial {
            whole.push(String::from_utf8_lossy(&bytes).into_owned());
            bytes.clear();
        }
    }
    if !bytes.is_empty() {
        whole.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    whole
}

/// `RFC3339Nano SP stdout|stderr SP P|F SP content`.
fn parse(line: &[u8]) -> Line {
    let shown = || String::from_utf8_lossy(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let mut word = || {
        let part = parts
            .next()
            .unwrap_or_else(|| panic!("too few fields: {}", shown()));
        part.to_vec()
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("ASCII before the content");
    let (time, stream, tag) = (text(word()), text(word()), text(word()));
    let content = word();
    assert!(
        is_rfc3339_nano(&time),
        "not RFC 3339 with nanoseconds: {time}"
    );
    assert!(
        matches!(stream.as_str(), "stdout" | "stderr"),
        "no stream: {}",
        shown()
    );
    assert!(
        matches!(tag.as_str(), "P" | "F"),
        "neither partial nor full: {}",
        shown()
    );
    Line {
        time,
        stream,
        partial: tag == "P",
        content,
    }
}

/// `2026-11-21T07:04:11.123456789Z`, or an offset in place of `Z`. Go leaves zeros out at the end
/// of the fraction; kubelet reads both.
fn is_rfc3339_nano(time: &str) -> bool {
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let Some(rest) = shape.strip_prefix("0000-00-00T00:00:00") else {
        return false;
    };
    let zone = rest
        .strip_prefix('.')
        .map_or(rest, |f| f.trim_start_matches('0'));
    let fraction = rest.len() - zone.len();
    fraction <= 10 && matches!(zone, "Z" | "+00:00" | "-00:00")
}

#[test]
fn the_reader_refuses_what_kubelet_would() {
    assert!(is_rfc3339_nano("2026-11-21T07:04:11.123456789Z"));
    assert!(is_rfc3339_nano(
        "2026-11-21T07:04:11.1+02:00"
            .replace("02:00", "00:00")
            .as_str()
    ));
    assert!(!is_rfc3339_nano("2026-11-21 07:04:11Z"));
    assert!(!is_rfc3339_nano("2026-11-21T07:04:11.1234567890Z"));
    let line = parse(b"2026-11-21T07:04:11.5Z stderr P  two spaces");
    assert_eq!(
        (line.partial, line.content.as_slice()),
        (true, b" two spaces".as_slice())
    );
}
