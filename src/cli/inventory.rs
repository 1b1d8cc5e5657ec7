//! `quiltd inventory`

use std::io::Write;

use super::output::{Format, LISTING, Reading, object, stdout};

pub(super) async fn run(reading: &Reading) -> anyhow::Result<()> {
    let mut inspector = reading.place.open().await?;
    inspector.hold_still().await?;
    let mut counts = Vec::new();
    for table in inspector.tables().await? {
        if table.starts_with('_') {
            continue;
        }
        // Of cleanup tasks those count that still stand for something.
        let which = match table.as_str() {
            "cleanup_tasks" => " WHERE status <> 'completed'",
            _ => "",
        };
        let sql = format!("SELECT count(*) FROM \"{table}\"{which}");
        let (rows, _) = inspector.rows(&sql, &[], LISTING).await?;
        let count = rows.rows.first().and_then(|row| row.first()?.integer());
        counts.push((table, count.unwrap_or(0)));
    }
    let mut out = stdout();
    match reading.output {
        Format::Json => {
            let members = counts.iter();
            let members = members.map(|(table, count)| (table.as_str(), count.to_string()));
            writeln!(out, "{}", object(members))?;
        }
        Format::Table => {
            for (table, count) in &counts {
                writeln!(out, "{table} {count}")?;
            }
        }
    }
    Ok(out.flush()?)
}
