//! `quiltd events`

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::output::{Format, LISTING, Reading, Record, array, stdout, whole};
use super::table::{harmless, short, utc};
use crate::state::inspect::{End, Inspector, Value};

/// Pause between two looks for something new.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(super) struct Events {
    /// Go on and show what happens, one event a line, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Only events with a larger sequence number.
    #[arg(long, value_name = "SEQ")]
    since: Option<i64>,
    /// Only events of objects whose id begins with this.
    #[arg(long, value_name = "ID")]
    object: Option<String>,
    /// Without --since: how many of the newest to begin with.
    #[arg(long, default_value_t = 200)]
    limit: u32,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn run(events: &Events) -> anyhow::Result<()> {
    let mut inspector = events.reading.place.open().await?;
    let (found, end) = match events.since {
        Some(since) => after(events, &mut inspector, since).await?,
        None => newest(events, &mut inspector).await?,
    };
    let json = events.reading.output == Format::Json;
    if json && !events.follow {
        let mut out = stdout();
        writeln!(out, "{}", array(found.iter().map(Record::json)))?;
        out.flush()?;
        return whole(end);
    }
    if !json {
        let mut out = stdout();
        let titles = ["SEQ", "TIME", "OBJECT", "ID", "NAME", "EVENT"];
        writeln!(out, "{} MESSAGE", line(titles))?;
        out.flush()?;
    }
    show(events, &found)?;
    if !events.follow {
        return whole(end);
    }
    let last = found.last().and_then(|event| event.integer("sequence"));
    follow(events, inspector, last.or(events.since).unwrap_or(0)).await
}

/// Shows what comes after `last`, for ever. A database that was put back or made anew is followed.
async fn follow(events: &Events, mut inspector: Inspector, mut last: i64) -> anyhow::Result<()> {
    let identity = |path: &std::path::Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let mut file = identity(inspector.path());
    loop {
        let (found, _) = after(events, &mut inspector, last).await?;
        show(events, &found)?;
        if let Some(sequence) = found.last().and_then(|event| event.integer("sequence")) {
            last = sequence;
            continue;
        }
        tokio::time::sleep(PAUSE).await;
        let now = identity(inspector.path());
        if now.is_some() && now != file {
            inspector = events.reading.place.open().await?;
            file = now;
            let sql = "SELECT coalesce(max(sequence), 0) FROM v_events";
            let (rows, _) = inspector.rows(sql, &[], LISTING).await?;
            let newest = rows.rows.first().and_then(|row| row.first()?.integer());
            last = last.min(newest.unwrap_or(0));
        }
    }
}

fn object(events: &Events) -> Value {
    events.object.clone().map_or(Value::Null, Value::Text)
}

async fn after(
    events: &Events,
    inspector: &mut Inspector,
    sequence: i64,
) -> anyhow::Result<(Vec<Record>, End)> {
    let sql = "SELECT * FROM v_events WHERE sequence > ?2
               AND (?1 IS NULL OR substr(object_id, 1, length(?1)) = ?1) ORDER BY sequence";
    let parameters = [object(events), Value::Integer(sequence)];
    let (rows, end) = inspector.rows(sql, &parameters, LISTING).await?;
    Ok((Record::all(rows), end))
}

async fn newest(events: &Events, inspector: &mut Inspector) -> anyhow::Result<(Vec<Record>, End)> {
    let sql = "SELECT * FROM (SELECT * FROM v_events
                   WHERE ?1 IS NULL OR substr(object_id, 1, length(?1)) = ?1
                   ORDER BY sequence DESC LIMIT ?2) ORDER BY sequence";
    let parameters = [object(events), Value::Integer(events.limit.into())];
    let (rows, end) = inspector.rows(sql, &parameters, LISTING).await?;
    Ok((Record::all(rows), end))
}

fn show(events: &Events, found: &[Record]) -> anyhow::Result<()> {
    let mut out = stdout();
    for event in found {
        if events.reading.output == Format::Json {
            writeln!(out, "{}", event.json())?;
            continue;
        }
        let id = event.text("object_id");
        let id = if events.reading.no_trunc {
            id.to_owned()
        } else {
            short(id)
        };
        let names = ["namespace", "pod", "container"].map(|column| event.text(column));
        let names: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
        let cells = line([
            &event.integer("sequence").unwrap_or(0).to_string(),
            &utc(event.integer("at").unwrap_or(0)),
            event.text("object_kind"),
            &harmless(&id),
            &harmless(&names.join("/")),
            event.text("kind"),
        ]);
        let text = format!("{cells} {}", harmless(event.text("message")));
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(out.flush()?)
}

/// Columns of a width that suits most, for lines that come one by one.
fn line(cells: [&str; 6]) -> String {
    let [sequence, time, kind, id, name, event] = cells;
    format!("{sequence:>8} {time:<24} {kind:<9} {id:<13} {name:<32} {event:<9}")
}
