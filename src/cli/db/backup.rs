//! `quiltd db backup`

use std::path::PathBuf;

use super::Patience;
use crate::cli::output::Format;
use crate::cli::place::Place;
use crate::cli::table::size;
use crate::state::upkeep;

#[derive(clap::Args)]
pub(in crate::cli) struct Backup {
    /// The file to make; it must not be there.
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    patience: Patience,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(backup: &Backup) -> anyhow::Result<()> {
    let database = backup.place.database()?;
    let timeout = backup.patience.timeout();
    let bytes = upkeep::backup(&database, &backup.file, timeout).await?;
    let file = backup.file.display();
    match backup.output {
        Format::Json => {
            let answer = serde_json::json!({"file": file.to_string(), "size_bytes": bytes});
            println!("{answer}");
        }
        Format::Table => {
            let bytes = size(i64::try_from(bytes).unwrap_or(i64::MAX));
            println!("{file}: {bytes}, checked");
        }
    }
    Ok(())
}
