//! `quiltd db dump`

use std::io::Write;

use anyhow::bail;

use super::Patience;
use crate::cli::output::{Format, JsonRows, stdout};
use crate::cli::place::Place;
use crate::state::inspect::Bounds;

#[derive(clap::Args)]
pub(in crate::cli) struct Dump {
    /// Only this table.
    #[arg(long)]
    table: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    patience: Patience,
    /// Form of the answer: always JSON.
    #[arg(short, long, value_enum, default_value = "json")]
    output: Format,
}

pub(super) async fn run(dump: &Dump) -> anyhow::Result<()> {
    if dump.output != Format::Json {
        bail!("a dump is JSON; `quiltd db query` prints tables");
    }
    let mut inspector = dump.place.open().await?;
    inspector.hold_still().await?;
    let mut tables = inspector.tables().await?;
    if let Some(wanted) = &dump.table {
        if !tables.contains(wanted) {
            bail!(
                "there is no table {wanted:?}; there are {}",
                tables.join(", ")
            );
        }
        tables.retain(|table| table == wanted);
    }
    let bounds = Bounds::time(dump.patience.timeout());
    let mut out = stdout();
    for (index, table) in tables.iter().enumerate() {
        let before = if index == 0 { "{" } else { "," };
        write!(out, "{before}\n\"{table}\": ")?;
        let mut rows = JsonRows::new(&mut out);
        // The name comes from the schema itself.
        let sql = format!("SELECT * FROM \"{table}\"");
        inspector.query(&sql, &[], bounds, &mut rows).await?;
        rows.end()?;
    }
    writeln!(out, "\n}}")?;
    Ok(out.flush()?)
}
