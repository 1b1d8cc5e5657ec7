//! What pods may send, read from what they were asked to be: there is no table of it.

use super::error::corrupt;
use super::sql::{all, pair};
use super::{StateError, Store};
use crate::lifecycle::egress::{self, Allowed};
use crate::lifecycle::spec::Map;

/// A pod's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPolicy {
    /// The node's end of its link.
    pub link: String,
    /// What it may send.
    pub allowed: Vec<Allowed>,
}

impl Store {
    /// The policies of pods that are up.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn ready_policies(&self) -> Result<Vec<PodPolicy>, StateError> {
        self.policies_of("'ready'").await
    }

    /// The policies of pods that are up, or on their way there or from there.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn wanted_policies(&self) -> Result<Vec<PodPolicy>, StateError> {
        self.policies_of("'preparing', 'ready'").await
    }

    async fn policies_of(&self, states: &'static str) -> Result<Vec<PodPolicy>, StateError> {
        let sql = format!(
            "SELECT n.host_link, s.spec ->> '$.annotations'
             FROM sandboxes s JOIN network_allocations n ON n.sandbox_id = s.id
             WHERE s.state IN ({states}) AND instr(s.spec, ?1) > 0
                 AND n.status IN ('allocated', 'active')"
        );
        let rows: Vec<(String, String)> = self
            .look("list policies", |connection| {
                all(connection, &sql, [egress::EGRESS], pair)
            })
            .await?;
        let mut policies = Vec::new();
        for (link, annotations) in rows {
            let annotations: Map =
                serde_json::from_str(&annotations).map_err(corrupt("sandboxes.spec"))?;
            let allowed = egress::of(&annotations).map_err(corrupt("sandboxes.spec"))?;
            policies.extend(allowed.map(|allowed| PodPolicy { link, allowed }));
        }
        Ok(policies)
    }
}
