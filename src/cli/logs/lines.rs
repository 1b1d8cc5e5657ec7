//! From entries to lines: pieces are joined, what is not wanted is left out, and each line goes to
//! the stream that the container has written it to.

use std::io::{self, Write};

use super::entry::{self, Entry, Stream};

/// A line is held until it is whole, unless it is longer.
const LINE_BYTES: usize = 1 << 20;

/// What is wanted of the lines that come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    /// Only lines of this time or later, nanoseconds since 1970.
    pub(super) since_ns: i64,
    /// Whether each begins with its time.
    pub(super) timestamps: bool,
}

/// Shows lines.
pub(super) struct Lines<O, E> {
    wanted: Wanted,
    /// So many lines that come first are left out.
    skip: u64,
    begun: [Begun; 2],
    out: O,
    err: E,
    /// Lines of the file that are no entries.
    strange: u64,
}

/// A line whose end has not come.
#[derive(Debug, Default)]
struct Begun {
    /// Whether there is one.
    open: bool,
    /// Whether it is shown.
    shown: bool,
    held: Vec<u8>,
}

impl<O: Write, E: Write> Lines<O, E> {
    pub(super) fn new(wanted: Wanted, out: O, err: E) -> Self {
        Self {
            wanted,
            skip: 0,
            begun: Default::default(),
            out,
            err,
            strange: 0,
        }
    }

    /// Leaves out the next `lines` whole ones.
    pub(super) fn skip(&mut self, lines: u64) {
        self.skip = lines;
    }

    /// Lines so far that were no entries of a log.
    pub(super) fn strange(&self) -> u64 {
        self.strange
    }

    /// Takes a line of the file.
    pub(super) fn take(&mut self, line: &[u8]) -> io::Result<()> {
        match entry::parse(line) {
            Some(entry) => self.add(&entry),
            None => {
                self.strange += 1;
                Ok(())
            }
        }
    }

    /// Takes something that is too long to be an entry.
    pub(super) fn take_strange(&mut self) {
        self.strange += 1;
    }

    fn add(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let stream = entry.kind.stream;
        let begun = &mut self.begun[stream as usize];
        if !begun.open {
            begun.open = true;
            begun.shown = entry.at_ns >= self.wanted.since_ns;
            if begun.shown && self.wanted.timestamps {
                begun.held.extend_from_slice(entry.time);
                begun.held.push(b' ');
            }
        }
        if begun.shown {
            begun.held.extend_from_slice(entry.content);
        }
        if !entry.kind.partial {
            begun.held.push(b'\n');
            let shown = begun.shown && self.skip == 0;
            begun.open = false;
            self.skip = self.skip.saturating_sub(1);
            return self.put(stream, shown);
        }
        if begun.held.len() >= LINE_BYTES {
            let shown = self.skip == 0;
            return self.put(stream, shown);
        }
        Ok(())
    }

    /// Writes what is held of a stream, or throws it away.
    fn put(&mut self, stream: Stream, shown: bool) -> io::Result<()> {
        let held = &mut self.begun[stream as usize].held;
        if shown {
            match stream {
                Stream::Out => {
                    // What comes later is shown later, where both are one terminal.
                    self.err.flush()?;
                    self.out.write_all(held)?;
                }
                Stream::Err => {
                    self.out.flush()?;
                    self.err.write_all(held)?;
                }
            }
        }
        held.clear();
        held.shrink_to(LINE_BYTES / 16);
        Ok(())
    }

    /// Everything so far is to be seen now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.err.flush()
    }

    /// Nothing follows: shows what has no end, without one.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        for stream in [Stream::Out, Stream::Err] {
            let begun = &mut self.begun[stream as usize];
            let shown = begun.open && begun.shown && self.skip == 0;
            begun.open = false;
            self.put(stream, shown)?;
        }
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2016-10-06T00:00:01Z stdout F one\n\
        2016-10-06T00:00:02Z stdout P tw\n\
        2016-10-06T00:00:02Z stderr F warning\n\
        2016-10-06T00:00:03Z stdout F o\n\
        what is this\n\
        2016-10-06T00:00:04Z stdout F \n\
        2016-10-06T00:00:05Z stderr P no end\n";

    fn shown(wanted: Wanted, skip: u64) -> (String, String, u64) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut lines = Lines::new(wanted, &mut out, &mut err);
        lines.skip(skip);
        for line in LOG.lines() {
            lines.take(line.as_bytes()).unwrap();
        }
        lines.finish().unwrap();
        let strange = lines.strange();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out), text(err), strange)
    }

    #[test]
    fn pieces_are_joined_and_streams_kept_apart() {
        let (out, err, strange) = shown(Wanted::default(), 0);
        assert_eq!(
            (out.as_str(), err.as_str()),
            ("one\ntwo\n\n", "warning\nno end")
        );
        assert_eq!(strange, 1);
        let (out, err, _) = shown(Wanted::default(), 2);
        assert_eq!((out.as_str(), err.as_str()), ("two\n\n", "no end"));
    }

    #[test]
    fn a_line_is_as_old_as_its_beginning() {
        let wanted = Wanted {
            since_ns: 1_475_712_003_000_000_000,
            timestamps: true,
        };
        let (out, err, _) = shown(wanted, 0);
        assert_eq!(out, "2016-10-06T00:00:04Z \n");
        assert_eq!(err, "2016-10-06T00:00:05Z no end");
    }

    #[test]
    fn an_endless_line_takes_no_endless_memory() {
        let mut out = Vec::new();
        let mut lines = Lines::new(Wanted::default(), &mut out, Vec::new());
        let piece = format!("2016-10-06T00:00:01Z stdout P {}", "x".repeat(16_384));
        for _ in 0..200 {
            lines.take(piece.as_bytes()).unwrap();
            assert!(lines.begun[0].held.len() < LINE_BYTES + 16_384);
        }
        lines.finish().unwrap();
        assert_eq!(out.len(), 200 * 16_384);
    }
}
