//! `quiltd info`

use std::io::Write;

use super::output::{Format, object, stdout};
use super::{Asking, link};
use crate::proto::admin::InfoRequest;

pub(super) async fn run(asking: &Asking) -> anyhow::Result<()> {
    let mut client = link::connect(&asking.daemon.state).await?;
    let info = link::answer(client.info(InfoRequest {}).await)?;
    let facts = [
        ("version", serde_json::Value::from(info.version)),
        ("pid", info.pid.into()),
        ("endpoint", info.endpoint.into()),
        ("root", info.root.into()),
        ("state", info.state.into()),
        ("started_at", info.started_at_ns.into()),
        ("last_rebuild", info.last_rebuild.clone().into()),
        ("storage_problem", info.storage_problem.clone().into()),
    ];
    let mut out = stdout();
    match asking.output {
        Format::Json => {
            let facts = facts.iter().map(|(name, value)| (*name, value.to_string()));
            writeln!(out, "{}", object(facts))?;
        }
        Format::Table => {
            for (name, value) in &facts[..5] {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                writeln!(out, "{name:<9} {text}")?;
            }
            for (name, text) in [
                ("rebuilt", info.last_rebuild),
                ("trouble", info.storage_problem),
            ] {
                if !text.is_empty() {
                    writeln!(out, "{name:<9} {text}")?;
                }
            }
        }
    }
    Ok(out.flush()?)
}
