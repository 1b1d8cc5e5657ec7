//! `quiltd ps`

use super::output::{self, Reading, Show};
use crate::state::inspect::Value;

#[derive(clap::Args)]
pub(super) struct Ps {
    /// Show containers that do not run as well.
    #[arg(short, long)]
    all: bool,
    /// Only those of the pod whose id begins with this.
    #[arg(long)]
    pod: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn run(ps: &Ps) -> anyhow::Result<()> {
    let sql = "SELECT * FROM v_containers WHERE (?1 = 1 OR state = 'running')
               AND (?2 IS NULL OR substr(sandbox_id, 1, length(?2)) = ?2)
               ORDER BY created_at DESC, id";
    let pod = ps.pod.clone().map_or(Value::Null, Value::Text);
    let parameters = [Value::Integer(ps.all.into()), pod];
    let shown = [
        ("CONTAINER", "id", Show::Id),
        ("IMAGE", "image", Show::Long),
        ("CREATED", "created_at", Show::Age),
        ("STATE", "state", Show::Plain),
        ("EXIT", "exit_code", Show::Plain),
        ("NAME", "name", Show::Plain),
        ("ATTEMPT", "attempt", Show::Plain),
        ("POD ID", "sandbox_id", Show::Id),
        ("POD", "pod", Show::Plain),
        ("NAMESPACE", "namespace", Show::Plain),
    ];
    output::list(&ps.reading, sql, &parameters, &shown).await
}
