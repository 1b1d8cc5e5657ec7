//! `quiltd db …`: the database as a file. What only reads works while the daemon runs; what puts
//! another file in its place takes the daemon's own lock first.

mod backup;
mod check;
mod dump;
mod query;
mod reset;
mod restore;

use std::time::Duration;

use crate::cli::link;

/// Bounds of `--timeout`, in seconds.
const TIMEOUT_S: std::ops::RangeInclusive<u64> = 1..=86_400;

#[derive(clap::Subcommand)]
pub(super) enum Db {
    /// Print every row of every table as JSON.
    Dump(dump::Dump),
    /// Run one SELECT and print what it finds.
    Query(query::Query),
    /// Check pages, references and schema; exit with 1 when something is wrong.
    Check(check::Check),
    /// Copy the database to a new file, while the daemon goes on.
    Backup(backup::Backup),
    /// Put a copy in the database's place; the daemon must not run.
    Restore(restore::Restore),
    /// Remove the database; the daemon must not run.
    Reset(reset::Reset),
}

pub(super) fn run(db: &Db) -> anyhow::Result<()> {
    match db {
        Db::Dump(dump) => link::block_on(dump::run(dump)),
        Db::Query(query) => link::block_on(query::run(query)),
        Db::Check(check) => link::block_on(check::run(check)),
        Db::Backup(backup) => link::block_on(backup::run(backup)),
        Db::Restore(restore) => link::block_on(restore::run(restore)),
        Db::Reset(reset) => reset::run(reset),
    }
}

/// How long a command may work.
#[derive(clap::Args)]
struct Patience {
    /// Longest time to work, in seconds.
    #[arg(long, default_value_t = 600, value_parser = seconds)]
    timeout: u64,
}

impl Patience {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// A time in whole seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wanted = || {
        let (least, most) = (TIMEOUT_S.start(), TIMEOUT_S.end());
        format!("a number of seconds from {least} to {most} is wanted")
    };
    let seconds = text.parse().map_err(|_| wanted())?;
    if TIMEOUT_S.contains(&seconds) {
        Ok(seconds)
    } else {
        Err(wanted())
    }
}
