//! One entry of a CRI log, as any runtime may have written it. Pure.

use crate::shim::log::timestamp;

/// What a container has written, or a piece of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// When, as it stands there.
    pub(super) time: &'a [u8],
    /// The same in nanoseconds since 1970.
    pub(super) at_ns: i64,
    pub(super) kind: Kind,
    pub(super) content: &'a [u8],
}

/// What the entries of a line are told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) stream: Stream,
    /// The line goes on in the next entry of its stream.
    pub(super) partial: bool,
}

/// Where the container has written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out = 0,
    Err = 1,
}

/// The beginning of an entry that is enough for [`kind`].
pub(super) const HEAD_BYTES: usize = 96;

/// The entry that a line without its newline is; `None` when it is none.
pub(super) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let (time, kind, content) = split(line)?;
    let at_ns = timestamp::parse(time)?;
    Some(Entry {
        time,
        at_ns,
        kind,
        content,
    })
}

/// What kind of entry begins like this; `None` for what is none.
pub(super) fn kind(head: &[u8]) -> Option<Kind> {
    split(head).map(|(_, kind, _)| kind)
}

fn split(line: &[u8]) -> Option<(&[u8], Kind, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let stream = match stream {
        b"stdout" => Stream::Out,
        b"stderr" => Stream::Err,
        _ => return None,
    };
    // There may come to be more tags, divided by colons.
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let kind = Kind { stream, partial };
    Some((time, kind, parts.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_any_runtime_are_understood() {
        let entry = parse(b"2016-10-06T00:17:09.5Z stderr P:x  a b\r").unwrap();
        assert_eq!(entry.content, b" a b\r");
        assert_eq!(entry.at_ns, 1_475_713_029_500_000_000);
        let kind = Kind {
            stream: Stream::Err,
            partial: true,
        };
        assert_eq!(entry.kind, kind);
        let empty = parse(b"2016-10-06T02:17:09+02:00 stdout F ").unwrap();
        assert_eq!((empty.content, empty.kind.partial), (&b""[..], false));
        for bad in [
            &b""[..],
            b"a line",
            b"2016-10-06T00:17:09Z stdin F x",
            b"2016-10-06T00:17:09Z stdout X x",
            b"2016-10-06 stdout F x",
        ] {
            assert_eq!(parse(bad), None);
        }
    }
}
