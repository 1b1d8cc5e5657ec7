//! `quiltd inspect --oci ID`: what a container was started from, as an OCI runtime spec.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::output::{LISTING, stdout};
use super::place::Place;
use crate::lifecycle::spec::UserIds;
use crate::runtime::launch::Identity;
use crate::runtime::oci;
use crate::runtime::plan::LaunchPlan;
use crate::shim::protocol::PLAN_MAX_BYTES;
use crate::state::inspect::Value;

#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Id of a container that has been started, or the beginning of it.
    id: String,
    /// As the configuration of a bundle of the OCI runtime specification, in JSON.
    #[arg(long, required = true)]
    oci: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) async fn run(inspect: &Inspect) -> anyhow::Result<()> {
    let directory = find(&inspect.place.state().join("containers"), &inspect.id)?;
    let plan = read(&directory.join("plan.json"))?;
    let id = directory.file_name().unwrap_or_default().to_string_lossy();
    let identity = identity(&inspect.place, &id).await?;
    let spec = oci::spec(&plan, identity.as_ref());
    let mut out = stdout();
    writeln!(out, "{}", serde_json::to_string_pretty(&spec)?)?;
    Ok(out.flush()?)
}

/// The one directory whose name begins so.
fn find(containers: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(containers)
        .with_context(|| format!("there are no containers in {}", containers.display()))?;
    let mut found = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let Some(first) = found.next() else {
        bail!("there is no container {prefix:?} (quiltd ps --all lists them)");
    };
    if found.next().is_some() {
        bail!("container {prefix:?} is ambiguous: give more of the id");
    }
    Ok(first.path())
}

fn read(path: &Path) -> anyhow::Result<LaunchPlan> {
    let file = File::open(path)
        .with_context(|| format!("it has not been started: there is no {}", path.display()))?;
    let mut text = Vec::new();
    file.take(PLAN_MAX_BYTES).read_to_end(&mut text)?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
}

/// Who its user was found to be, if it came to that.
async fn identity(place: &Place, id: &str) -> anyhow::Result<Option<Identity>> {
    let sql = "SELECT runs_as FROM containers WHERE id = ?1";
    let mut inspector = place.open().await?;
    let parameters = [Value::Text(id.to_owned())];
    let (rows, _) = inspector.rows(sql, &parameters, LISTING).await?;
    let Some(Value::Text(text)) = rows.rows.first().and_then(|row| row.first()) else {
        return Ok(None);
    };
    let ids: UserIds = serde_json::from_str(text)?;
    Ok(Some(Identity {
        uid: ids.uid,
        gid: ids.gid,
        groups: ids.groups,
    }))
}
