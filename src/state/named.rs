//! What readers of containerd's API ask that no other call does. cAdvisor asks it for every cgroup
//! of the node, so what an id names is one read by primary keys.

use rusqlite::params;

use super::error::corrupt;
use super::sql::{all, column, first, pair};
use super::{StateError, Store};
use crate::id::{ContainerId, ID_LENGTH, SandboxId};

/// What an id names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A pod.
    Sandbox(SandboxId),
    /// A container.
    Container(ContainerId),
}

/// An image under one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// The name.
    pub name: String,
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// Its length; 0 when it was not kept.
    pub manifest_bytes: i64,
    /// What it says that it is.
    pub media_type: Option<String>,
    /// When the image came, ns since 1970.
    pub created_at: i64,
}

impl Store {
    /// What an id names, whatever state that is in.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn named(&self, id: &str) -> Result<Option<Named>, StateError> {
        if id.len() != ID_LENGTH {
            return Ok(None);
        }
        let kind: Option<String> = self
            .look("find what an id names", |connection| {
                let sql = "SELECT 'container' FROM containers WHERE id = ?1
                     UNION ALL SELECT 'sandbox' FROM sandboxes WHERE id = ?1 LIMIT 1";
                first(connection, sql, [id], column)
            })
            .await?;
        let id = id.to_owned();
        Ok(match kind.as_deref() {
            Some("container") => Some(Named::Container(
                id.try_into().map_err(corrupt("containers.id"))?,
            )),
            Some(_) => Some(Named::Sandbox(
                id.try_into().map_err(corrupt("sandboxes.id"))?,
            )),
            None => None,
        })
    }

    /// A process that lives in a pod's network: its init, or else the oldest of its containers'.
    /// `None` when there is none, or the pod is not up.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn pod_process(&self, id: &SandboxId) -> Result<Option<i32>, StateError> {
        let pid: Option<Option<i32>> = self
            .look("find a pod's process", |connection| {
                let sql = "SELECT coalesce(s.init_pid, (SELECT c.pid FROM containers c
                         WHERE c.sandbox_id = s.id AND c.state = 'running'
                         ORDER BY c.started_at, c.id LIMIT 1))
                     FROM sandboxes s
                     WHERE s.id = ? AND s.state = 'ready' AND s.init_ended_at IS NULL";
                first(connection, sql, [id.as_str()], column)
            })
            .await?;
        Ok(pid.flatten())
    }

    /// Images that are wanted, once for each of their names, in their order; or the one with this
    /// name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn named_images(&self, name: Option<&str>) -> Result<Vec<NamedImage>, StateError> {
        self.look("list names of images", |connection| {
            let sql = "SELECT r.reference, i.manifest_digest, coalesce(length(d.content), 0),
                     json_extract(CAST(d.content AS TEXT), '$.mediaType'), i.created_at
                 FROM image_references r JOIN images i ON i.id = r.image_id
                 LEFT JOIN image_documents d ON d.image_id = i.id AND d.kind = 'manifest'
                 WHERE i.desired = 'present' AND (?1 IS NULL OR r.reference = ?1)
                 ORDER BY r.reference";
            all(connection, sql, params![name], |row| {
                Ok(NamedImage {
                    name: row.get(0)?,
                    manifest_digest: row.get(1)?,
                    manifest_bytes: row.get(2)?,
                    media_type: row.get(3)?,
                    created_at: row.get(4)?,
                })
            })
        })
        .await
    }

    /// A manifest or a configuration of a wanted image by its digest, and when that image came (ns
    /// since 1970).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn document(&self, digest: &str) -> Result<Option<(Vec<u8>, i64)>, StateError> {
        self.look("read a document", |connection| {
            let sql = "SELECT d.content, i.created_at
                 FROM images i JOIN image_documents d ON d.image_id = i.id
                 WHERE i.desired = 'present' AND ((d.kind = 'config' AND i.id = ?1)
                     OR (d.kind = 'manifest' AND i.manifest_digest = ?1)) LIMIT 1";
            first(connection, sql, [digest], pair)
        })
        .await
    }
}
