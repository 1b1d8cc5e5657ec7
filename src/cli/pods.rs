//! `quiltd pods`

use super::output::{self, Reading, Show};

pub(super) async fn run(reading: &Reading) -> anyhow::Result<()> {
    let sql = "SELECT * FROM v_pods ORDER BY created_at DESC, id";
    let shown = [
        ("POD ID", "id", Show::Id),
        ("CREATED", "created_at", Show::Age),
        ("STATE", "state", Show::Plain),
        ("WANTED", "desired", Show::Plain),
        ("NAME", "name", Show::Plain),
        ("NAMESPACE", "namespace", Show::Plain),
        ("ATTEMPT", "attempt", Show::Plain),
        ("ADDRESS", "address", Show::Plain),
        ("RUNNING", "running_containers", Show::Plain),
        ("ERROR", "error", Show::Long),
    ];
    output::list(reading, sql, &[], &shown).await
}
