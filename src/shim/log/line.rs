//! The pure line cutter: bytes of a stream in, CRI log entries out.
//!
//! A line longer than [`PIECE_MAX_BYTES`] becomes `P` pieces of exactly that length and an `F`
//! piece with the rest. What a stream leaves unterminated at its end is a `P` piece, as containerd
//! writes it. Content is not looked at otherwise: any byte but `\n` passes through, `\r` as well.
//!
//! State per stream: the unterminated tail, at most one piece.

use super::timestamp::TIMESTAMP_LEN;

/// The longest content of one entry.
pub const PIECE_MAX_BYTES: usize = 16 * 1024;
/// [`LineCutter::cut`] stops once it has written this much.
pub const BATCH_BYTES: usize = 256 * 1024;
/// The most that one call of [`LineCutter::cut`] or [`LineCutter::finish`] can write.
pub const BATCH_MAX_BYTES: usize = BATCH_BYTES + 3 * ENTRY_MAX_BYTES;

/// The longest entry: prefix, content and newline.
pub const ENTRY_MAX_BYTES: usize = PREFIX_LEN + PIECE_MAX_BYTES + 1;

/// What stands before the content of an entry.
pub const PREFIX_LEN: usize = TIMESTAMP_LEN + " stdout F ".len();
const TAG_AT: usize = PREFIX_LEN - 2;
/// A tail of no more than this keeps its memory for the next one.
const KEEP_TAIL_BYTES: usize = 1024;

/// Which stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamName {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What stands before the content of an entry: time, stream and tag.
#[derive(Debug, Clone, Copy)]
pub struct Prefix([u8; PREFIX_LEN]);

impl Prefix {
    /// The prefix of everything read from `stream` at the time that `timestamp` spells.
    #[must_use]
    pub fn new(timestamp: &[u8; TIMESTAMP_LEN], stream: StreamName) -> Prefix {
        let mut bytes = [b' '; PREFIX_LEN];
        bytes[..TIMESTAMP_LEN].copy_from_slice(timestamp);
        let name = match stream {
            StreamName::Stdout => b" stdout F ",
            StreamName::Stderr => b" stderr F ",
        };
        bytes[TIMESTAMP_LEN..].copy_from_slice(name);
        Prefix(bytes)
    }
}

/// Cuts one stream into lines.
#[derive(Debug, Default)]
pub struct LineCutter {
    /// The beginning of a line whose end has not come, at most [`PIECE_MAX_BYTES`].
    tail: Vec<u8>,
}

impl LineCutter {
    /// Appends entries for `input` to `out` and says how much of `input` is done: all of it,
    /// unless `out` has reached [`BATCH_BYTES`] before. The caller writes `out` away and comes
    /// again with the rest.
    pub fn cut(&mut self, input: &[u8], prefix: &Prefix, out: &mut Vec<u8>) -> usize {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', input) {
            let line = &input[start..end];
            if self.tail.is_empty() && line.len() <= PIECE_MAX_BYTES {
                out.extend_from_slice(&prefix.0);
                out.extend_from_slice(&input[start..=end]);
            } else if let Err(taken) = self.lengthen(line, prefix, out) {
                return start + taken;
            } else {
                entry(prefix, b'F', &self.tail, out);
                self.clear_tail();
            }
            start = end + 1;
            if out.len() >= BATCH_BYTES {
                return start;
            }
        }
        match self.lengthen(&input[start..], prefix, out) {
            Ok(()) => input.len(),
            Err(taken) => start + taken,
        }
    }

    /// Appends what is left unterminated, if anything, as a piece: the stream has ended, or its
    /// process has.
    pub fn finish(&mut self, prefix: &Prefix, out: &mut Vec<u8>) {
        if !self.tail.is_empty() {
            entry(prefix, b'P', &self.tail, out);
            self.clear_tail();
        }
    }

    /// Adds `more` to the tail; a full tail with something to follow it becomes a piece. `Err` is
    /// how much was taken when `out` was full before the end.
    fn lengthen(&mut self, more: &[u8], prefix: &Prefix, out: &mut Vec<u8>) -> Result<(), usize> {
        let mut taken = 0;
        while taken < more.len() {
            if self.tail.len() == PIECE_MAX_BYTES {
                if out.len() >= BATCH_BYTES {
                    return Err(taken);
                }
                entry(prefix, b'P', &self.tail, out);
                self.tail.clear();
            }
            let room = (PIECE_MAX_BYTES - self.tail.len()).min(more.len() - taken);
            self.tail.extend_from_slice(&more[taken..taken + room]);
            taken += room;
        }
        Ok(())
    }

    fn clear_tail(&mut self) {
        self.tail.clear();
        self.tail.shrink_to(KEEP_TAIL_BYTES);
    }
}

fn entry(prefix: &Prefix, tag: u8, content: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&prefix.0);
    out[start + TAG_AT] = tag;
    out.extend_from_slice(content);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAMP: &[u8; TIMESTAMP_LEN] = b"2016-10-06T00:17:09.669794202Z";

    fn prefix() -> Prefix {
        Prefix::new(STAMP, StreamName::Stdout)
    }

    /// Cuts `chunks` as the pump does: batch by batch.
    fn cut_all(cutter: &mut LineCutter, chunks: &[&[u8]]) -> Vec<u8> {
        let (mut log, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let mut rest = *chunk;
            while !rest.is_empty() {
                let done = cutter.cut(rest, &prefix(), &mut out);
                assert!(out.len() <= BATCH_MAX_BYTES, "{}", out.len());
                assert!(done > 0 || !out.is_empty(), "no progress");
                log.append(&mut out);
                rest = &rest[done..];
            }
        }
        cutter.finish(&prefix(), &mut log);
        log
    }

    /// What the log must be, written down without any state.
    fn expected(stream: &[u8]) -> Vec<u8> {
        let mut log = Vec::new();
        let mut put = |tag: &str, content: &[u8]| {
            log.extend_from_slice(STAMP);
            log.extend_from_slice(b" stdout ");
            log.extend_from_slice(tag.as_bytes());
            log.push(b' ');
            log.extend_from_slice(content);
            log.push(b'\n');
        };
        for line in stream.split_inclusive(|byte| *byte == b'\n') {
            let (mut content, tag) = match line.strip_suffix(b"\n") {
                Some(content) => (content, "F"),
                None => (line, "P"),
            };
            while content.len() > PIECE_MAX_BYTES {
                put("P", &content[..PIECE_MAX_BYTES]);
                content = &content[PIECE_MAX_BYTES..];
            }
            put(tag, content);
        }
        log
    }

    #[test]
    fn an_entry_is_the_format_of_cri_to_the_byte() {
        let log = cut_all(
            &mut LineCutter::default(),
            &[b"content\n\nbin\0\xff\r\nleft"],
        );
        let stamp = std::str::from_utf8(STAMP).unwrap();
        let mut wanted = format!("{stamp} stdout F content\n{stamp} stdout F \n").into_bytes();
        wanted.extend_from_slice(stamp.as_bytes());
        wanted.extend_from_slice(b" stdout F bin\0\xff\r\n");
        wanted.extend_from_slice(format!("{stamp} stdout P left\n").as_bytes());
        assert_eq!(log, wanted);
    }

    #[test]
    fn a_line_of_exactly_one_piece_is_full_and_one_byte_more_is_split() {
        for (length, entries) in [
            (16_383, 1),
            (16_384, 1),
            (16_385, 2),
            (32_768, 2),
            (32_769, 3),
        ] {
            let mut stream = vec![b'x'; length];
            stream.push(b'\n');
            let log = cut_all(&mut LineCutter::default(), &[&stream]);
            assert_eq!(
                memchr::memchr_iter(b'\n', &log).count(),
                entries,
                "{length}"
            );
            assert_eq!(log, expected(&stream));
        }
    }

    #[test]
    fn a_read_of_nothing_but_newlines_is_written_in_bounded_batches() {
        let stream = vec![b'\n'; 64 * 1024];
        let log = cut_all(&mut LineCutter::default(), &[&stream]);
        assert_eq!(log, expected(&stream));
    }

    #[test]
    fn a_long_tail_does_not_keep_its_memory() {
        let mut cutter = LineCutter::default();
        cut_all(&mut cutter, &[&[b'x'; 16_000]]);
        assert!(cutter.tail.capacity() <= KEEP_TAIL_BYTES);
    }

    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..40),
            2 => Just(vec![b'\n']),
            1 => (16_380_usize..16_390).prop_map(|length| vec![b'y'; length]),
            1 => (0_usize..100_000).prop_map(|length| vec![b'z'; length]),
        ];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn where_reads_fall_makes_no_difference(
            stream in streams(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
            let log = cut_all(&mut LineCutter::default(), &chunks);
            prop_assert!(log == expected(&stream));
        }
    }
}
