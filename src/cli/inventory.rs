//! `quiltd inventory`

use std::path::Path;

use super::link;
use crate::proto::admin::InventoryRequest;

pub(super) async fn run(state: &Path) -> anyhow::Result<()> {
    let mut client = link::connect(state).await?;
    let inventory = link::answer(client.inventory(InventoryRequest {}).await)?;
    let mut rows: Vec<_> = inventory.rows.into_iter().collect();
    rows.sort();
    for (table, count) in rows {
        println!("{table} {count}");
    }
    Ok(())
}
