//! `quiltd db check`

use std::io::Write;

use anyhow::bail;

use super::Patience;
use crate::cli::output::{Format, stdout};
use crate::cli::place::Place;
use crate::cli::table::harmless;
use crate::state::schema;
use crate::state::upkeep;

#[derive(clap::Args)]
pub(in crate::cli) struct Check {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    patience: Patience,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(check: &Check) -> anyhow::Result<()> {
    let file = check.place.database()?;
    let findings = upkeep::check(&file, check.patience.timeout()).await?;
    let mut out = stdout();
    match check.output {
        Format::Json => {
            let answer = serde_json::json!({
                "database": file.display().to_string(),
                "schema_version": findings.version,
                "newest_known_version": schema::newest_known(),
                "problems": findings.problems,
            });
            writeln!(out, "{answer}")?;
        }
        Format::Table if findings.problems.is_empty() => {
            let version = findings.version;
            writeln!(out, "{}: sound, schema version {version}", file.display())?;
        }
        Format::Table => {
            for problem in &findings.problems {
                writeln!(out, "{}", harmless(problem))?;
            }
        }
    }
    out.flush()?;
    match findings.problems.len() {
        0 => Ok(()),
        count => bail!("{count} problem(s) in {}", file.display()),
    }
}
