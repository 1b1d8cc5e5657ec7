//! Where the last lines of a log begin, found from its end. Pure but for reading the file.
//!
//! A line is whole with its last entry, and its other entries stand before that, with entries of
//! the other stream between them. So from the entry with which the last lines are complete it goes
//! back until the beginning of each of them is there; whole lines of the other stream on the way
//! are to be left out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::entry::{HEAD_BYTES, Kind, kind};

/// Read at once.
const CHUNK_BYTES: u64 = 64 * 1024;

/// Counts lines backwards, entry by entry, over several files.
#[derive(Debug)]
pub(super) struct Tail {
    wanted: u64,
    found: u64,
    /// Of each stream.
    streams: [Seen; 2],
    /// Whole lines before those that are wanted, passed on the way to their beginnings.
    passed: u64,
    /// How many of those follow the first entry that is wanted.
    skip: u64,
}

/// What has been seen of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Seen {
    /// Nothing, or nothing of it that is wanted.
    #[default]
    Nothing,
    /// A line whose beginning may lie before.
    End,
    /// Its wanted lines are all there.
    All,
}

impl Tail {
    pub(super) fn new(wanted: u64) -> Self {
        Self {
            wanted,
            found: 0,
            streams: Default::default(),
            passed: 0,
            skip: 0,
        }
    }

    /// Whether nothing before matters.
    pub(super) fn is_done(&self) -> bool {
        self.found == self.wanted && !self.streams.contains(&Seen::End)
    }

    /// Whole lines to be left out from the first wanted entry on.
    pub(super) fn skip(&self) -> u64 {
        self.skip
    }

    /// Takes the entry before the last one that was taken, and says whether it is wanted: then the
    /// log is to be shown from there on.
    pub(super) fn take(&mut self, kind: Kind) -> bool {
        let seen = &mut self.streams[kind.stream as usize];
        // The end of a line; the last line of a stream may lack its end.
        let ends = !kind.partial || *seen == Seen::Nothing;
        if ends && self.found < self.wanted {
            self.found += 1;
            *seen = Seen::End;
        } else if !kind.partial {
            self.passed += 1;
            *seen = Seen::All;
            return false;
        } else if *seen != Seen::End {
            *seen = Seen::All;
            return false;
        }
        self.skip = self.passed;
        true
    }
}

/// The end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    /// Where the first entry begins that is wanted, if there is any.
    pub(super) first: Option<u64>,
    /// Where its last line ends: what follows is not whole yet.
    pub(super) end: u64,
}

/// Takes the entries of a file from its end on, as far as they matter.
pub(super) fn of_file(file: &File, tail: &mut Tail) -> io::Result<Last> {
    let (mut first, mut end) = (None, None);
    let length = file.metadata()?.len();
    let mut upto = length;
    let mut chunk = Vec::new();
    while upto > 0 && (end.is_none() || !tail.is_done()) {
        let from = upto.saturating_sub(CHUNK_BYTES);
        // The head of a line that begins at the end of the chunk as well.
        let with_head = length.min(upto + HEAD_BYTES as u64);
        chunk.resize(usize::try_from(with_head - from).unwrap_or(0), 0);
        file.read_exact_at(&mut chunk, from)?;
        let own = usize::try_from(upto - from).unwrap_or(0);
        let newlines = memchr::memrchr_iter(b'\n', &chunk[..own]);
        let begins = newlines.map(|newline| newline + 1);
        let begins = begins.chain((from == 0).then_some(0));
        for begin in begins {
            let at = from + begin as u64;
            // Behind the last newline is no entry.
            if end.is_none() {
                end = Some(at);
                continue;
            }
            if tail.is_done() {
                break;
            }
            if let Some(kind) = kind(head(&chunk[begin..]))
                && tail.take(kind)
            {
                first = Some(at);
            }
        }
        upto = from;
    }
    let end = end.unwrap_or(0);
    Ok(Last { first, end })
}

/// Up to the end of the line, or as much as is needed of it.
fn head(line: &[u8]) -> &[u8] {
    let line = &line[..line.len().min(HEAD_BYTES)];
    memchr::memchr(b'\n', line).map_or(line, |newline| &line[..newline])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::super::entry::parse;
    use super::super::lines::{Lines, Wanted};
    use super::*;

    fn shown(text: &[u8], skip: u64) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut lines = Lines::new(Wanted::default(), &mut out, &mut err);
        lines.skip(skip);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            lines.take(line.strip_suffix(b"\n").unwrap()).unwrap();
        }
        lines.finish().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out), text(err))
    }

    fn last(text: &str, wanted: u64) -> (String, String) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut tail = Tail::new(wanted);
        match of_file(&file, &mut tail).unwrap().first {
            Some(first) => shown(
                &text.as_bytes()[usize::try_from(first).unwrap()..],
                tail.skip(),
            ),
            None => Default::default(),
        }
    }

    #[test]
    fn lines_are_counted_from_the_end_and_shown_whole() {
        let at = "2016-10-06T00:00:01Z";
        let log = format!(
            "{at} stdout F one\n{at} stdout P tw\n{at} stderr F w\n{at} stdout F o\n\
             {at} stderr F x\n"
        );
        let texts = |out: &str, err: &str| (out.to_owned(), err.to_owned());
        assert_eq!(last(&log, 0), texts("", ""));
        assert_eq!(last(&log, 1), texts("", "x\n"));
        // The beginning of "two" stands before "w", which is left out.
        assert_eq!(last(&log, 2), texts("two\n", "x\n"));
        assert_eq!(last(&log, 3), texts("two\n", "w\nx\n"));
        assert_eq!(last(&log, 9), texts("one\ntwo\n", "w\nx\n"));
        let cut = &log[..log.len() - 2];
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(cut.as_bytes()).unwrap();
        let mut tail = Tail::new(1);
        let Last { first, end } = of_file(&file, &mut tail).unwrap();
        let first = usize::try_from(first.unwrap()).unwrap();
        assert!(cut[first..].contains(" tw\n"));
        assert!(cut[..usize::try_from(end).unwrap()].ends_with(" o\n"));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"no newline").unwrap();
        let nothing = Last {
            first: None,
            end: 0,
        };
        assert_eq!(of_file(&file, &mut Tail::new(1)).unwrap(), nothing);
    }

    #[test]
    fn long_lines_and_many_chunks_are_gone_through() {
        let at = "2016-10-06T00:00:01Z stdout";
        let piece = "y".repeat(16_384);
        let mut log = String::from("nonsense\n");
        for _ in 0..40 {
            log += &format!("{at} P {piece}\n");
        }
        log += &format!("{at} F end\n");
        log += &format!("{at} F short\n").repeat(5000);
        let (out, _) = last(&log, 5001);
        assert_eq!(out.len(), 40 * 16_384 + 4 + 5000 * 6);
        assert_eq!(last(&log, 4999).0.len(), 4999 * 6);
    }

    #[test]
    fn a_last_line_without_an_end_counts() {
        let at = "2016-10-06T00:00:01Z";
        let log = format!("{at} stdout F one\n{at} stdout P tw\n{at} stdout P o\n");
        assert_eq!(last(&log, 1).0, "two");
        assert_eq!(last(&log, 2).0, "one\ntwo");
    }

    proptest! {
        #[test]
        fn it_is_what_counting_forwards_shows(
            entries in prop::collection::vec((any::<bool>(), any::<bool>(), 0_usize..5000), 0..60),
            wanted in 0_u64..12,
        ) {
            let mut log = String::new();
            let ends = [(false, false, 0), (true, false, 0)];
            for (number, (err, partial, length)) in entries.iter().chain(&ends).enumerate() {
                let stream = if *err { "stderr" } else { "stdout" };
                let tag = if *partial { "P" } else { "F" };
                let fill = "z".repeat(*length);
                log += &format!("2016-10-06T00:00:01Z {stream} {tag} {number}{fill}\n");
            }
            let kinds = log.lines().map(|line| parse(line.as_bytes()).unwrap().kind);
            let total = kinds.filter(|kind| !kind.partial).count() as u64;
            let expected = shown(log.as_bytes(), total.saturating_sub(wanted));
            prop_assert!(last(&log, wanted) == expected);
        }
    }
}
