//! The exit journal: a record is in the file before the daemon hears of it, and stays until the
//! daemon says that it has it too.
//!
//! A text file, one record per line, written with one write(2):
//!
//! ```text
//! quilt-exits 1 next=42 3f2a90b1
//! exit {"sequence":42,"id":"…","kind":"container","code":0,…} 8c11d2e7
//! ```
//!
//! Each line ends with the CRC-32 of what stands before it. The first line carries the next
//! sequence number across a rewrite. A torn line ends the reading: its exit was never announced,
//! and is found out again by adoption. Loading rewrites the file, and so does an acknowledgement
//! that leaves little of it. Acknowledgements themselves are not written: after a shim's death
//! some records are sent twice.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::fstatfs;

use super::protocol::{ExitRecord, ProcessId, ProcessKind};

/// A journal of more than this is not ours.
const FILE_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Rewritten when it is longer than this and mostly acknowledged.
const REWRITE_BYTES: u64 = 64 * 1024;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{doing} exit journal {path}")]
pub struct JournalError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// How a process ended, before it has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// As in [`ExitRecord`].
    pub code: i32,
    /// As in [`ExitRecord`].
    pub signal: Option<i32>,
    /// As in [`ExitRecord`].
    pub lost: bool,
    /// As in [`ExitRecord`].
    pub at_ns: i64,
    /// As in [`ExitRecord`].
    pub oom_kills: Option<u64>,
}

/// The journal and what of it is not acknowledged.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    sync: bool,
    /// A write failed: the file lacks a record, or ends in a torn one.
    behind: bool,
    next: u64,
    waiting: BTreeMap<u64, ExitRecord>,
}

impl Journal {
    /// Reads `path`, or begins an empty journal there.
    ///
    /// # Errors
    /// [`JournalError`] when the file can be neither read nor written. A damaged one is no error.
    pub fn load(path: &Path) -> Result<Journal, JournalError> {
        let fail = |doing| {
            move |source| JournalError {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let mut text = Vec::new();
        match File::open(path) {
            Ok(file) => {
                file.take(FILE_MAX_BYTES)
                    .read_to_end(&mut text)
                    .map_err(fail("read"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail("open")(error)),
        }
        let (next, waiting) = parse(&text);
        let (file, length) = rewrite(path, next, &waiting).map_err(fail("write"))?;
        let kind = fstatfs(&file).map_or(0, |status| status.f_type as u64);
        let sync = !matches!(kind, TMPFS_MAGIC | RAMFS_MAGIC);
        Ok(Journal {
            path: path.to_owned(),
            file,
            length,
            sync,
            behind: false,
            next,
            waiting,
        })
    }

    /// Gives an exit its number and writes it down. When the file cannot be written the record is
    /// kept in memory all the same, and the error is for the shim's own log: an exit that is
    /// announced but would not survive the shim is better than one that is not announced.
    ///
    /// # Errors
    /// [`JournalError`]; the record beside it is valid.
    pub fn append(
        &mut self,
        id: &ProcessId,
        kind: ProcessKind,
        status: ExitStatus,
    ) -> (ExitRecord, Result<(), JournalError>) {
        let ExitStatus {
            code,
            signal,
            lost,
            at_ns,
            oom_kills,
        } = status;
        let id = id.clone();
        let record = ExitRecord {
            sequence: self.next,
            id,
            kind,
            code,
            signal,
            lost,
            at_ns,
            oom_kills,
        };
        self.next += 1;
        self.waiting.insert(record.sequence, record.clone());
        let written = if self.behind {
            self.rewrite()
        } else {
            self.write_line(&record)
        };
        (record, written)
    }

    fn write_line(&mut self, record: &ExitRecord) -> Result<(), JournalError> {
        let line = exit_line(record);
        let written = match self.file.write(&line) {
            Ok(length) if length == line.len() => {
                self.length += line.len() as u64;
                if self.sync {
                    self.file.sync_data()
                } else {
                    Ok(())
                }
            }
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        };
        written.map_err(|source| {
            self.behind = true;
            JournalError {
                doing: "append to",
                path: self.path.clone(),
                source,
            }
        })
    }

    /// The daemon has this record: it need not be kept. Unknown numbers are ignored.
    ///
    /// # Errors
    /// [`JournalError`] of a rewrite; nothing is lost by it.
    pub fn acknowledge(&mut self, sequence: u64) -> Result<(), JournalError> {
        if self.waiting.remove(&sequence).is_none() {
            return Ok(());
        }
        let mostly_done =
            self.length > REWRITE_BYTES && self.waiting.len() as u64 * 1024 < self.length;
        if self.waiting.is_empty() || mostly_done {
            self.rewrite()
        } else {
            Ok(())
        }
    }

    /// Records that nobody has acknowledged, from `sequence` on, in order.
    pub fn waiting_from(&self, sequence: u64) -> impl Iterator<Item = &ExitRecord> {
        self.waiting.range(sequence..).map(|(_, record)| record)
    }

    /// How many unacknowledged records come before `sequence`.
    #[must_use]
    pub fn waiting_before(&self, sequence: u64) -> usize {
        self.waiting.range(..sequence).count()
    }

    /// Whether every exit has been acknowledged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    fn rewrite(&mut self) -> Result<(), JournalError> {
        // With nothing waiting and nothing damaged the file is cut to nothing but its head: no
        // rename, for this happens after every single exit of a quiet node.
        let written = if self.waiting.is_empty() && !self.behind {
            let head = head_line(self.next);
            cut_to(&self.file, &head).map(|()| self.length = head.len() as u64)
        } else {
            rewrite(&self.path, self.next, &self.waiting).map(|(file, length)| {
                (self.file, self.length) = (file, length);
                self.behind = false;
            })
        };
        written.map_err(|source| {
            self.behind = true;
            JournalError {
                doing: "rewrite",
                path: self.path.clone(),
                source,
            }
        })
    }
}

/// A shim that dies between the two calls leaves an empty file, and the next one would count from
/// one again: so the head is written over the old one, of the same length, before the rest goes.
fn cut_to(file: &File, head: &[u8]) -> io::Result<()> {
    file.write_all_at(head, 0)?;
    file.set_len(head.len() as u64)?;
    let mut file = file;
    file.seek(SeekFrom::End(0)).map(drop)
}

fn rewrite(path: &Path, next: u64, waiting: &BTreeMap<u64, ExitRecord>) -> io::Result<(File, u64)> {
    let mut text = head_line(next);
    for record in waiting.values() {
        text.extend_from_slice(&exit_line(record));
    }
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&text)?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    Ok((file, text.len() as u64))
}

fn head_line(next: u64) -> Vec<u8> {
    seal(format!("quilt-exits 1 next={next:020}"))
}

fn exit_line(record: &ExitRecord) -> Vec<u8> {
    // Numbers, short strings and booleans always have a JSON form.
    seal(format!(
        "exit {}",
        serde_json::to_string(record).unwrap_or_default()
    ))
}

fn seal(text: String) -> Vec<u8> {
    let sum = crc32(text.as_bytes());
    format!("{text} {sum:08x}\n").into_bytes()
}

fn unseal(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (text, sum) = line.rsplit_once(' ')?;
    (format!("{:08x}", crc32(text.as_bytes())) == sum).then_some(text)
}

fn parse(bytes: &[u8]) -> (u64, BTreeMap<u64, ExitRecord>) {
    let mut waiting = BTreeMap::new();
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let head = lines.next().and_then(unseal);
    let next = head
        .and_then(|text| text.strip_prefix("quilt-exits 1 next="))
        .and_then(|number| number.parse().ok());
    let mut next: u64 = next.unwrap_or(1);
    for line in lines {
        let record = unseal(line).and_then(|text| text.strip_prefix("exit "));
        let Some(record) = record.and_then(|r| serde_json::from_str::<ExitRecord>(r).ok()) else {
            break;
        };
        next = next.max(record.sequence.saturating_add(1));
        waiting.insert(record.sequence, record);
    }
    (next, waiting)
}

/// CRC-32 (IEEE 802.3, reflected), bit by bit: records are short and rare.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc = (crc >> 1) ^ (carry * 0xedb8_8320);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(code: i32) -> ExitStatus {
        ExitStatus {
            code,
            signal: None,
            lost: false,
            at_ns: 1,
            oom_kills: None,
        }
    }

    fn id(number: u64) -> ProcessId {
        ProcessId::try_from(format!("{number:064x}")).unwrap()
    }

    fn codes(journal: &Journal) -> Vec<(u64, i32)> {
        journal
            .waiting_from(0)
            .map(|record| (record.sequence, record.code))
            .collect()
    }

    #[test]
    fn the_checksum_is_the_one_everybody_knows() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_is_not_acknowledged_is_there_after_a_restart_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exits");
        let mut journal = Journal::load(&path).unwrap();
        for code in 0..3 {
            let (record, written) = journal.append(&id(1), ProcessKind::Exec, status(code));
            written.unwrap();
            assert_eq!(record.sequence, code as u64 + 1);
        }
        journal.acknowledge(2).unwrap();
        journal.acknowledge(77).unwrap();
        assert_eq!(codes(&journal), [(1, 0), (3, 2)]);
        let mut journal = Journal::load(&path).unwrap();
        assert_eq!(
            codes(&journal),
            [(1, 0), (2, 1), (3, 2)],
            "2 may come twice, never not at all"
        );
        for sequence in 1..4 {
            journal.acknowledge(sequence).unwrap();
        }
        assert!(journal.is_settled());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
        let mut journal = Journal::load(&path).unwrap();
        assert!(journal.is_settled());
        assert_eq!(
            journal
                .append(&id(2), ProcessKind::Container, status(9))
                .0
                .sequence,
            4
        );
        assert_eq!(codes(&Journal::load(&path).unwrap()), [(4, 9)]);
    }

    #[test]
    fn a_long_journal_is_rewritten_while_something_still_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exits");
        let mut journal = Journal::load(&path).unwrap();
        for number in 0..1000 {
            journal
                .append(&id(number), ProcessKind::Container, status(0))
                .1
                .unwrap();
        }
        for sequence in 2..=1000 {
            journal.acknowledge(sequence).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() < REWRITE_BYTES);
        assert_eq!(codes(&Journal::load(&path).unwrap())[0], (1, 0));
    }

    #[test]
    fn a_journal_of_garbage_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exits");
        fs::write(&path, b"\xff\xff\n\n what").unwrap();
        assert!(Journal::load(&path).unwrap().is_settled());
        assert!(Journal::load(dir.path()).is_err());
    }

    proptest! {
        #[test]
        fn wherever_it_is_torn_what_stands_before_is_kept(cut in any::<prop::sample::Index>()) {
            let mut waiting = BTreeMap::new();
            let mut text = head_line(5);
            let mut ends = vec![(text.len(), 0)];
            for sequence in 5..9 {
                let record = ExitRecord {
                    sequence, id: id(sequence), kind: ProcessKind::PodInit, code: 1, signal: None,
                    lost: true, at_ns: 3, oom_kills: Some(1),
                };
                text.extend_from_slice(&exit_line(&record));
                waiting.insert(sequence, record);
                ends.push((text.len(), waiting.len()));
            }
            let cut = cut.index(text.len() + 1);
            let whole = ends.iter().rfind(|(end, _)| *end <= cut).map_or(0, |(_, count)| *count);
            let (next, found) = parse(&text[..cut]);
            prop_assert_eq!(found.len(), whole);
            prop_assert!(next <= 9 && found.iter().all(|(key, record)| waiting[key] == *record));
        }
    }
}
