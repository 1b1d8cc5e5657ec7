//! `quiltd images`

use super::output::{self, Reading, Show};

pub(super) async fn run(reading: &Reading) -> anyhow::Result<()> {
    let sql = "SELECT * FROM v_images ORDER BY tags, id";
    let shown = [
        ("IMAGE ID", "id", Show::Id),
        ("SIZE", "size_bytes", Show::Size),
        ("CREATED", "created_at", Show::Age),
        ("CONTAINERS", "containers", Show::Plain),
        ("TAGS", "tags", Show::List),
    ];
    output::list(reading, sql, &[], &shown).await
}
