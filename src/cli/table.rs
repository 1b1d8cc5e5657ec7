//! Tables for people: aligned columns, short ids, ages, sizes. What a cell holds may come from
//! anybody, so control characters never reach the terminal.

use std::io::{self, Write};

/// Digits of a short id, as crictl shows them.
const SHORT_ID: usize = 13;
/// Characters of a cell that is cut.
const CELL: usize = 60;

/// Rows that are printed together.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these titles.
    pub(super) fn new<'a>(titles: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            rows: vec![titles.into_iter().map(harmless).collect()],
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| harmless(&cell)).collect());
    }

    /// Prints it. The last column is as long as it likes; nothing ends in blanks.
    pub(super) fn print(&self, to: &mut impl Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let blanks = width - cell.chars().count() + 2;
                line.extend(std::iter::repeat_n(' ', blanks));
            }
            writeln!(to, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Text without line breaks and control characters.
pub(super) fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(' '),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// The beginning of an id; of a digest without its algorithm.
pub(super) fn short(id: &str) -> String {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    if digits.len() >= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        digits[..SHORT_ID].to_owned()
    } else {
        id.to_owned()
    }
}

/// Text that is cut where it is too long for a table.
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// How long ago (or until) a time is; both in ns since 1970.
pub(super) fn age(now: i64, at: i64) -> String {
    let distance = now.saturating_sub(at);
    let span = span(distance.unsigned_abs());
    if distance < 0 {
        format!("in {span}")
    } else {
        format!("{span} ago")
    }
}

/// A span of time, in its two largest units at most.
fn span(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m"),
        3600..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// A size in the largest unit of 1024 of which there is one.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub(super) fn size(bytes: i64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value.abs() < 1024.0 {
            return if unit == "B" {
                format!("{bytes}B")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1}TiB")
}

/// A time (ns since 1970) as UTC with milliseconds.
pub(super) fn utc(at: i64) -> String {
    let stamp = *crate::shim::log::timestamp::LogClock::default().stamp(at);
    let text = String::from_utf8_lossy(&stamp).into_owned();
    format!("{}Z", &text[..23])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_ends_in_blanks() {
        let mut table = Table::new(["ID", "NAME", "WHY"]);
        table.row(["1".into(), "längst".into(), "a\nb".into()]);
        table.row(["22".into(), "x".into(), String::new()]);
        let mut text = Vec::new();
        table.print(&mut text).expect("a vector takes all");
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text, "ID  NAME    WHY\n1   längst  a b\n22  x\n");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\u{9b}c\r"), "a\\u{1b}[2Jb\\u{9b}c\\r");
    }

    #[test]
    fn ids_are_cut_and_other_words_are_not() {
        assert_eq!(short(&"ab".repeat(32)), "ababababababa");
        assert_eq!(
            short(&format!("sha256:{}", "12".repeat(32))),
            "1212121212121"
        );
        assert_eq!(
            short("docker.io/library/busybox:latest"),
            "docker.io/library/busybox:latest"
        );
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let second = 1_000_000_000;
        assert_eq!(age(10 * second, 7 * second), "3s ago");
        assert_eq!(age(400 * second, 0), "6m ago");
        assert_eq!(age(90_000 * second, 0), "25h ago");
        assert_eq!(age(900_000 * second, 0), "10d ago");
        assert_eq!(age(0, 5 * second), "in 5s");
        assert_eq!(age(i64::MAX, i64::MIN), "106751d ago");
        assert_eq!(size(1023), "1023B");
        assert_eq!(size(1536), "1.5KiB");
        assert_eq!(size(5 << 40), "5.0TiB");
        assert_eq!(utc(1_473_987_609_669_794_202), "2016-09-16T01:00:09.669Z");
    }
}
