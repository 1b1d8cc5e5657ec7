//! `quiltd db reset`

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, bail};

use crate::cli::output::Format;
use crate::cli::place::Place;
use crate::daemon::Lock;
use crate::state::upkeep;

#[derive(clap::Args)]
pub(in crate::cli) struct Reset {
    /// Do not ask.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) fn run(reset: &Reset) -> anyhow::Result<()> {
    let root = reset.place.root()?;
    let _lock = Lock::take(&root).context("end the daemon first")?;
    let database = reset.place.file()?;
    if !reset.force {
        if !io::stdin().is_terminal() {
            bail!("there is no terminal to ask on; --force removes the database without asking");
        }
        eprint!(
            "This removes {} with all history, wishes and queues.\n\
             What runs goes on; at its next start the daemon makes a new database of what kernel, \
             shim and disk still know: pods, containers and images.\n\
             `quiltd db backup FILE` keeps a copy. Remove it? (yes/no) ",
            database.display()
        );
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        if answer.trim() != "yes" {
            bail!("nothing was removed");
        }
    }
    let removed = upkeep::reset(&database)?;
    let removed: Vec<_> = removed
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    match reset.output {
        Format::Json => println!("{}", serde_json::json!({ "removed": removed })),
        Format::Table if removed.is_empty() => println!("there was no database"),
        Format::Table => {
            for file in removed {
                println!("removed {file}");
            }
        }
    }
    Ok(())
}
