//! From what an operator types to one image.

use anyhow::bail;

use crate::cli::output::{LISTING, Record};
use crate::image::Reference;
use crate::state::inspect::{Inspector, Value};

/// By id, by the beginning of one, or by a name as people write it.
const SQL: &str = "SELECT * FROM v_images WHERE desired = 'present' AND (
     EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?2)
     OR EXISTS (SELECT 1 FROM json_each(digests) WHERE value = ?2)
     OR (length(?1) >= 4 AND substr(id, 1, length(?1) + 7) = 'sha256:' || ?1))";

/// The image's row of `v_images`.
pub(super) async fn find(inspector: &mut Inspector, name: &str) -> anyhow::Result<Record> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_hex = hex
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let known = name.parse::<Reference>();
    let known = known.map_or_else(|_| String::new(), |reference| reference.known_as());
    let parameters = [
        Value::Text(if is_hex { hex } else { "" }.to_owned()),
        Value::Text(known),
    ];
    let (rows, _) = inspector.rows(SQL, &parameters, LISTING).await?;
    let mut found = Record::all(rows);
    match (found.pop(), found.len()) {
        (Some(image), 0) => Ok(image),
        (Some(_), more) => bail!(
            "{name:?} is the beginning of {} ids: give more of it",
            more + 1
        ),
        (None, _) => bail!("there is no image {name:?} (quiltd images lists them)"),
    }
}

/// The texts of a column that holds a JSON array.
pub(super) fn list(image: &Record, column: &str) -> Vec<String> {
    serde_json::from_str(image.text(column)).unwrap_or_default()
}

/// The manifest and the configuration, byte for byte; none of an image from an older version.
pub(super) async fn documents(
    inspector: &mut Inspector,
    id: &str,
) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let sql = "SELECT m.content AS manifest, c.content AS config FROM image_documents m
         JOIN image_documents c ON c.image_id = m.image_id AND c.kind = 'config'
         WHERE m.image_id = ?1 AND m.kind = 'manifest'";
    let (rows, _) = inspector
        .rows(sql, &[Value::Text(id.to_owned())], LISTING)
        .await?;
    let bytes = |value: &Value| match value {
        Value::Blob(bytes) => Some(bytes.clone()),
        _ => None,
    };
    Ok(Record::all(rows)
        .first()
        .and_then(|row| bytes(row.get("manifest")).zip(bytes(row.get("config")))))
}
