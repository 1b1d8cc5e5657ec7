//! `quiltd jobs`

use super::output::{self, Reading, Show};

pub(super) async fn run(reading: &Reading) -> anyhow::Result<()> {
    let sql = "SELECT * FROM v_jobs ORDER BY next_attempt_at, key";
    let shown = [
        ("OBJECT", "object_kind", Show::Plain),
        ("ID", "object_id", Show::Id),
        ("STATUS", "status", Show::Plain),
        ("ATTEMPTS", "attempts", Show::Plain),
        ("CREATED", "created_at", Show::Age),
        ("NEXT", "next_attempt_at", Show::Age),
        ("LAST ERROR", "last_error", Show::Long),
    ];
    output::list(reading, sql, &[], &shown).await
}
