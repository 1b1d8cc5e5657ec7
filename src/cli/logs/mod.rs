//! `quiltd logs`: what a container has written, from its files alone, whether a daemon runs or not.

mod container;
mod entry;
mod files;
mod lines;
mod since;
mod tail;

use std::io::{BufWriter, Stderr, Stdout, stderr, stdout};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;

use super::place::Place;
use crate::state::now_ns;
use container::Container;
use files::{FileLines, LogFile};
use lines::{Lines, Wanted};
use since::Since;

/// Pause between two looks for more.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(super) struct Logs {
    /// Id of a container, or its beginning; its name ([[namespace/]pod/]container); or a pod that
    /// has only one.
    id: String,
    /// Go on until the container has ended.
    #[arg(short, long)]
    follow: bool,
    /// Only lines that are not older: so long ago (10m, 1h30m), or a time (2026-01-31T12:00:00Z).
    #[arg(long, value_parser = Since::parse)]
    since: Option<Since>,
    /// Only so many of the last lines; -1 is all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    tail: i64,
    /// Begin each line with its time.
    #[arg(short, long)]
    timestamps: bool,
    #[command(flatten)]
    place: Place,
}

type Shown = Lines<BufWriter<Stdout>, BufWriter<Stderr>>;

pub(super) async fn run(logs: &Logs) -> anyhow::Result<()> {
    let mut container = Container::find(&logs.place, &logs.id).await?;
    let wanted = Wanted {
        since_ns: logs.since.map_or(i64::MIN, |since| since.at_ns(now_ns())),
        timestamps: logs.timestamps,
    };
    let mut lines = Lines::new(wanted, BufWriter::new(stdout()), BufWriter::new(stderr()));
    // Asked before the files are read: what was there then is all there is.
    let ended = container.has_ended().await?;
    let (mut files, current) = files::all(&container.log)?;
    files.extend(current);
    if files.is_empty() && (ended || !logs.follow) {
        let (id, log) = (container.id(), container.log.display());
        bail!("container {id} has no log: there is no {log}, nor what it was before rotation");
    }
    // Anything below zero is everything, as with kubectl.
    let (found, skip) = files::lines_of(&files, u64::try_from(logs.tail).ok())?;
    lines.skip(skip);
    let mut last = None;
    for mut file in found {
        show(&mut file, &mut lines)?;
        last = Some(file);
    }
    lines.skip(0);
    if logs.follow && !ended {
        lines.flush()?;
        // In the middle of a rotation the newest file has its new name already, and goes on all the
        // same until there is another.
        let (current, newest) = match files.pop().zip(last) {
            Some((file, lines)) if !file.is_whole() => {
                (Some(Following::new(file, lines)), files.pop())
            }
            shown => (None, shown.map(|(file, _)| file)),
        };
        let newest = newest.and_then(|file| file.suffix);
        drop(files);
        follow(&mut container, current, newest, &mut lines).await?;
    }
    lines.finish()?;
    if let count @ 1.. = lines.strange() {
        eprintln!(
            "quiltd: {count} lines of {} are no entries of a log, and left out",
            container.log.display()
        );
    }
    Ok(())
}

/// Shows what there is of a file; whether that was anything.
fn show(file: &mut FileLines, lines: &mut Shown) -> anyhow::Result<bool> {
    let mut any = false;
    while let Some(line) = file.next()? {
        any = true;
        match line {
            Some(line) => lines.take(line)?,
            None => lines.take_strange(),
        }
    }
    Ok(any)
}

/// The file that is written now, and how far it is shown.
struct Following {
    file: LogFile,
    lines: FileLines,
    /// How long it was when that was looked at last.
    length: u64,
}

impl Following {
    fn new(file: LogFile, lines: FileLines) -> Self {
        let length = 0;
        Self {
            file,
            lines,
            length,
        }
    }

    /// Shows what has come. Somebody may have emptied the file meanwhile: then from its beginning.
    fn show(&mut self, lines: &mut Shown) -> anyhow::Result<bool> {
        let length = self.file.file.metadata()?.size();
        if length < std::mem::replace(&mut self.length, length) {
            self.lines = self.file.lines()?;
        }
        show(&mut self.lines, lines)
    }
}

/// Shows what comes, over rotations, until the container has ended. `newest` is the suffix of the
/// newest rotated file that was shown.
async fn follow(
    container: &mut Container,
    mut current: Option<Following>,
    mut newest: Option<String>,
    lines: &mut Shown,
) -> anyhow::Result<()> {
    loop {
        let ended = container.has_ended().await?;
        let mut any = false;
        if let Some(file) = &mut current {
            any = file.show(lines)?;
        }
        any |= rotate(&container.log, &mut current, &mut newest, lines)?;
        lines.flush()?;
        if ended && !any {
            return Ok(());
        }
        if !any {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Once another file has the log's name, the one before it is whole: shows its end, the files that
/// came and went since, and the new one.
fn rotate(
    log: &Path,
    current: &mut Option<Following>,
    newest: &mut Option<String>,
    lines: &mut Shown,
) -> anyhow::Result<bool> {
    if let Some(old) = &*current
        && old.file.is_at(log)?
    {
        return Ok(false);
    }
    let Some(next) = LogFile::current(log)? else {
        return Ok(false);
    };
    if let Some(old) = current {
        old.show(lines)?;
        *newest = old.file.present_suffix(log).or(newest.take());
    }
    for file in files::after(log, newest.as_deref())? {
        // Rotated just now: it is the one that is followed next.
        if file.is_same(&next)? {
            break;
        }
        show(&mut file.lines()?, lines)?;
        *newest = file.suffix;
    }
    let from_its_beginning = next.lines()?;
    *current = Some(Following::new(next, from_its_beginning));
    Ok(true)
}
