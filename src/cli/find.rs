//! From what an operator types to one object.

use std::fmt;

use crate::cli::output::{LISTING, Record};
use crate::cli::table::harmless;
use crate::state::inspect::{Inspector, Value};

/// An object that has a row, or had one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// `sandbox`, `container`, `image`, or `pull`.
    pub(super) kind: String,
    pub(super) id: String,
    /// What people call it, if that is still known.
    pub(super) name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind, self.id, harmless(&self.name))
    }
}

/// Ways to find an object, the surest first; the first that finds anything counts. `?1` is what was
/// typed.
const WAYS: [&str; 6] = [
    "SELECT 'sandbox' AS kind, id, namespace || '/' || name AS name FROM v_pods WHERE id = ?1
     UNION ALL
     SELECT 'container', id, namespace || '/' || pod || '/' || name FROM v_containers
     WHERE id = ?1
     UNION ALL
     SELECT 'image', id, tags FROM v_images WHERE id = ?1",
    "SELECT 'sandbox' AS kind, id, namespace || '/' || name AS name FROM v_pods
     WHERE ?1 IN (name, namespace || '/' || name)",
    "SELECT 'container' AS kind, id, namespace || '/' || pod || '/' || name AS name
     FROM v_containers
     WHERE ?1 IN (name, pod || '/' || name, namespace || '/' || pod || '/' || name)",
    "SELECT 'image' AS kind, id, tags AS name FROM v_images
     WHERE EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?1)
        OR EXISTS (SELECT 1 FROM json_each(digests) WHERE value = ?1)",
    // Also what is gone: its events and operations are there for a while.
    "SELECT kind, id, coalesce(
            (SELECT namespace || '/' || name FROM v_pods p WHERE p.id = o.id),
            (SELECT namespace || '/' || pod || '/' || name FROM v_containers c WHERE c.id = o.id),
            '') AS name
     FROM (SELECT object_kind AS kind, object_id AS id FROM v_events
           WHERE substr(object_id, 1, length(?1)) = ?1
              OR substr(object_id, 1, length(?1) + 7) = 'sha256:' || ?1
           UNION
           SELECT 'sandbox', id FROM v_pods WHERE substr(id, 1, length(?1)) = ?1
           UNION
           SELECT 'container', id FROM v_containers WHERE substr(id, 1, length(?1)) = ?1
           UNION
           SELECT 'image', id FROM v_images WHERE substr(id, 1, length(?1)) = ?1
              OR substr(id, 1, length(?1) + 7) = 'sha256:' || ?1) o LIMIT 20",
    "SELECT 'pull' AS kind, object_id AS id, '' AS name FROM v_operations WHERE object_id = ?1
     LIMIT 1",
];

/// Objects that may be meant; at best one.
pub(super) async fn find(inspector: &mut Inspector, name: &str) -> anyhow::Result<Vec<Object>> {
    if name.is_empty() {
        return Ok(Vec::new());
    }
    for way in WAYS {
        let parameters = [Value::Text(name.to_owned())];
        let (rows, _) = inspector.rows(way, &parameters, LISTING).await?;
        let found: Vec<_> = Record::all(rows)
            .iter()
            .map(|record| Object {
                kind: record.text("kind").to_owned(),
                id: record.text("id").to_owned(),
                name: record.text("name").to_owned(),
            })
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}
