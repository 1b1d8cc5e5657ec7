//! `quiltd db query`

use std::io::Write;
use std::time::Duration;

use super::seconds;
use crate::cli::output::{Format, JsonRows, LISTING, Reading, stdout, whole};
use crate::cli::table::{Table, cut};
use crate::state::inspect::Bounds;

#[derive(clap::Args)]
pub(in crate::cli) struct Query {
    /// One SELECT, WITH, VALUES, or EXPLAIN of one.
    sql: String,
    /// Longest time to work, in seconds.
    #[arg(long, default_value_t = 10, value_parser = seconds)]
    timeout: u64,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn run(query: &Query) -> anyhow::Result<()> {
    let mut inspector = query.reading.place.open().await?;
    let bounds = Bounds {
        timeout: Duration::from_secs(query.timeout),
        ..LISTING
    };
    let mut out = stdout();
    let end = match query.reading.output {
        Format::Json => {
            let mut rows = JsonRows::new(&mut out);
            let end = inspector.query(&query.sql, &[], bounds, &mut rows).await?;
            rows.end()?;
            writeln!(out)?;
            end
        }
        Format::Table => {
            let (rows, end) = inspector.rows(&query.sql, &[], bounds).await?;
            let mut table = Table::new(rows.columns.iter().map(String::as_str));
            let whole = query.reading.no_trunc;
            for row in &rows.rows {
                let texts = row.iter().map(ToString::to_string);
                table.row(texts.map(|text| if whole { text } else { cut(&text) }));
            }
            table.print(&mut out)?;
            end
        }
    };
    out.flush()?;
    whole(end)
}
