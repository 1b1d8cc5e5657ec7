//! `quiltd image inspect`

use std::io::Write;

use serde_json::{Value as Json, json};

use super::find;
use crate::cli::output::{self, LISTING, Record};
use crate::cli::place::Place;
use crate::state::inspect::Value;

#[derive(clap::Args)]
pub(in crate::cli) struct Inspect {
    /// Name, id, or beginning of an id.
    image: String,
    #[command(flatten)]
    place: Place,
}

const LAYERS: &str = "WITH RECURSIVE chain (chain_id, parent, depth) AS (
         SELECT chain_id, parent_chain_id, 0 FROM layers WHERE chain_id = ?1
         UNION ALL
         SELECT l.chain_id, l.parent_chain_id, depth + 1
         FROM layers l JOIN chain ON l.chain_id = chain.parent
     ) SELECT l.chain_id, l.diff_id, l.digest, l.size_bytes, l.inodes, l.state
       FROM layers l JOIN chain USING (chain_id) ORDER BY chain.depth DESC";

const USERS: &str = "SELECT id AS container_id, namespace, pod, name, state, 'rootfs' AS used_as
         FROM v_containers WHERE image_id = ?1
     UNION ALL
     SELECT c.id, c.namespace, c.pod, c.name, c.state, 'volume'
         FROM image_volumes v JOIN v_containers c ON c.id = v.container_id WHERE v.image_id = ?1
     ORDER BY namespace, pod, name, used_as";

pub(super) async fn run(inspect: &Inspect) -> anyhow::Result<()> {
    let mut inspector = inspect.place.open().await?;
    inspector.hold_still().await?;
    let image = find::find(&mut inspector, &inspect.image).await?;
    let id = image.text("id");
    let documents = find::documents(&mut inspector, id).await?;
    let (manifest, config) = documents.unwrap_or_default();
    let mut rows = async |sql: &str, of: &Value| -> anyhow::Result<Vec<Json>> {
        let (rows, _) = inspector
            .rows(sql, std::slice::from_ref(of), LISTING)
            .await?;
        let records = Record::all(rows);
        let parsed = records
            .iter()
            .map(|record| serde_json::from_str(&record.json()));
        Ok(parsed.collect::<Result<_, _>>()?)
    };
    let layers = rows(LAYERS, image.get("top_chain_id")).await?;
    let users = rows(USERS, image.get("id")).await?;
    let mut whole: Json = serde_json::from_str(&image.json())?;
    // A document that is no JSON was refused when it came.
    let document = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or(Json::Null);
    whole["manifest"] = document(&manifest);
    whole["config"] = document(&config);
    whole["layers"] = json!(layers);
    whole["used_by"] = json!(users);
    let mut out = output::stdout();
    writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
    Ok(out.flush()?)
}
