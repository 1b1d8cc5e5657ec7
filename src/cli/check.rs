//! `quiltd check`

use std::process::ExitCode;

use serde_json::json;

use super::{StateDir, link};
use crate::proto::admin::{CheckRequest, CheckResponse, Difference};

#[derive(clap::Args)]
pub(super) struct Check {
    /// Remove what has no row, and mend what can be mended; nothing of anybody else is touched.
    #[arg(long)]
    repair: bool,
    /// How to print: a table for people, or JSON for scripts.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    daemon: StateDir,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// The answer is in the exit status as well.
pub(super) fn run(check: &Check) -> ExitCode {
    let mut left = 0;
    let checked = link::block_on(async {
        let mut client = link::connect(&check.daemon.state).await?;
        let request = CheckRequest {
            repair: check.repair,
        };
        let response = link::answer(client.check(request).await)?;
        left = response
            .differences
            .iter()
            .filter(|one| !one.mended)
            .count();
        match check.output {
            Output::Table => print_table(&response, check.repair),
            Output::Json => print_json(&response)?,
        }
        Ok(())
    });
    match checked {
        Ok(()) if left == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(1),
        Err(error) => {
            eprintln!("quiltd: cannot check: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn print_table(response: &CheckResponse, repair: bool) {
    for one in &response.differences {
        let Difference {
            kind,
            resource,
            name,
            owner,
            detail,
            repair: mends,
            mended,
            error,
        } = one;
        let owner = match owner.get(..12) {
            Some(short) if name != owner => format!(" of {short}"),
            _ => String::new(),
        };
        println!("{kind:<8} {resource:<20} {name}{owner}: {detail}");
        let outcome = match (repair, mended, error.is_empty()) {
            (true, true, _) => "mended".to_owned(),
            (true, false, false) => format!("left: {error}"),
            _ => mends.clone(),
        };
        println!("         -> {outcome}");
    }
    let found = response.differences.len();
    let mended = response.differences.iter().filter(|one| one.mended).count();
    match (found, mended) {
        (0, _) => println!("nothing differs"),
        (_, 0) => println!("{found} found"),
        _ => println!("{found} found, {mended} mended"),
    }
}

fn print_json(response: &CheckResponse) -> anyhow::Result<()> {
    let differences: Vec<_> = response
        .differences
        .iter()
        .map(|one| {
            json!({
                "kind": one.kind,
                "resource": one.resource,
                "name": one.name,
                "owner": one.owner,
                "detail": one.detail,
                "repair": one.repair,
                "mended": one.mended,
                "error": one.error,
            })
        })
        .collect();
    let answer = json!({ "differences": differences, "duration_ns": response.duration_ns });
    println!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(())
}
