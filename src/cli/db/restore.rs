//! `quiltd db restore`

use std::path::PathBuf;

use anyhow::Context;

use super::Patience;
use crate::cli::output::Format;
use crate::cli::place::Place;
use crate::daemon::Lock;
use crate::state::upkeep::{self, Restored};

#[derive(clap::Args)]
pub(in crate::cli) struct Restore {
    /// A file that `quiltd db backup` has made.
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    patience: Patience,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(restore: &Restore) -> anyhow::Result<()> {
    let root = restore.place.root()?;
    let _lock = Lock::take(&root).context("end the daemon first")?;
    let database = restore.place.file()?;
    let timeout = restore.patience.timeout();
    let Restored {
        version,
        kept,
        changed,
    } = upkeep::restore(&database, &restore.file, timeout).await?;
    let kept = kept.map(|kept| kept.display().to_string());
    if restore.output == Format::Json {
        let answer = serde_json::json!({
            "database": database.display().to_string(),
            "schema_version": version,
            "kept": kept,
            "changed": changed,
        });
        println!("{answer}");
        return Ok(());
    }
    let database = database.display();
    if changed {
        println!("{database}: restored, schema version {version}");
    } else {
        println!("{database}: is what the backup holds already, nothing was done");
    }
    if let Some(kept) = kept {
        println!("the database that was there before is {kept}");
    }
    Ok(())
}
