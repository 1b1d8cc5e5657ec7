//! What the sweep reads of all tables, and what it writes: events of the node, and rows that stop
//! claiming what is gone.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{corrupt, during};
use super::event::Subject;
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store};
use crate::id::SandboxId;
use crate::lifecycle::container::State as ContainerState;
use crate::lifecycle::difference::{ContainerIs, Known, PodIs};
use crate::lifecycle::sandbox::{Desired, State};

/// The owners of things by id, as [`Known`] has them.
type Pods = BTreeMap<String, PodIs>;

impl Store {
    /// What the rows say should exist; the caller adds where our things are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn known(&self) -> Result<Known, StateError> {
        Ok(Known {
            sandboxes: self.known_pods().await?,
            containers: self.known_containers().await?,
            snapshots: self.snapshot_owners().await?.into_iter().collect(),
            layers: self.known_layers().await?,
            images: self.known_images().await?,
            links: self
                .allocations()
                .await?
                .into_iter()
                .map(|allocation| (allocation.host_link, allocation.bridge))
                .collect(),
            ..Known::default()
        })
    }

    async fn known_pods(&self) -> Result<Pods, StateError> {
        // Read first: one that is taken meanwhile is among the sandboxes then.
        let prepared = self.prepared_networks().await?;
        let prepared = prepared
            .into_iter()
            .map(|one| Ok((one.id.to_string(), PodIs::Changing)));
        let rows: Vec<(String, String, String, bool)> = self
            .read("list sandboxes", || {
                sqlx::query_as(
                    "SELECT id, desired, state, init_ended_at IS NOT NULL FROM sandboxes",
                )
                .fetch_all(&self.readers)
            })
            .await?;
        rows.into_iter()
            .map(|(id, desired, state, init_ended)| {
                let state: State = state.parse().map_err(corrupt("sandboxes.state"))?;
                let is = match state {
                    State::Ready if desired == Desired::Ready.as_str() && !init_ended => PodIs::Up,
                    State::Stopped => PodIs::Down,
                    _ => PodIs::Changing,
                };
                Ok((id, is))
            })
            .chain(prepared)
            .collect()
    }

    async fn known_containers(
        &self,
    ) -> Result<BTreeMap<String, (String, ContainerIs)>, StateError> {
        let rows: Vec<(String, String, String, String, bool)> = self
            .read("list containers", || {
                sqlx::query_as("SELECT id, sandbox_id, desired, state, released FROM containers")
                    .fetch_all(&self.readers)
            })
            .await?;
        rows.into_iter()
            .map(|(id, sandbox, desired, state, released)| {
                let leaving = matches!(desired.as_str(), "stopped" | "removed");
                let is = match state.parse().map_err(corrupt("containers.state"))? {
                    ContainerState::Created if desired == "created" => ContainerIs::Created,
                    ContainerState::Running if !leaving => ContainerIs::Running,
                    ContainerState::Exited | ContainerState::Error if released => {
                        ContainerIs::Released
                    }
                    _ => ContainerIs::Changing,
                };
                Ok((id, (sandbox, is)))
            })
            .collect()
    }

    async fn known_layers(&self) -> Result<BTreeMap<String, bool>, StateError> {
        let rows: Vec<(String, bool)> = self
            .read("list layers", || {
                sqlx::query_as("SELECT chain_id, state = 'present' FROM layers")
                    .fetch_all(&self.readers)
            })
            .await?;
        Ok(rows.into_iter().collect())
    }

    async fn known_images(&self) -> Result<BTreeMap<String, Vec<String>>, StateError> {
        let rows: Vec<(String, String)> = self
            .read("list the layers of images", || {
                sqlx::query_as(
                    "WITH RECURSIVE chain (image, chain_id) AS (
                 SELECT id, top_chain_id FROM images
                     WHERE top_chain_id IS NOT NULL AND desired = 'present'
                 UNION
                 SELECT chain.image, l.parent_chain_id FROM layers l JOIN chain USING (chain_id)
                     WHERE l.parent_chain_id IS NOT NULL
             ) SELECT image, chain_id FROM chain",
                )
                .fetch_all(&self.readers)
            })
            .await?;
        let mut images: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (image, layer) in rows {
            images.entry(image).or_default().push(layer);
        }
        Ok(images)
    }

    /// What is wrong with the tasks and jobs that were to mend something, by path or key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn repair_errors(&self) -> Result<BTreeMap<String, String>, StateError> {
        let rows: Vec<(String, String)> = self
            .read("list what could not be mended", || {
                sqlx::query_as(
                    "SELECT path, error FROM cleanup_tasks WHERE status = 'failed'
             UNION ALL SELECT key, last_error FROM jobs WHERE last_error IS NOT NULL",
                )
                .fetch_all(&self.readers)
            })
            .await?;
        Ok(rows.into_iter().collect())
    }
}

impl ObservedWriter {
    /// Something about the node itself.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn node_event(&self, kind: &'static str, message: String) -> Result<(), StateError> {
        self.0
            .write("record an event of the node", move |tx| {
                Box::pin(async move { tx.event(Subject::Node, kind, &message).await })
            })
            .await
    }

    /// Something that happened to a pod, which changes no state of it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sandbox_event(
        &self,
        id: SandboxId,
        kind: &'static str,
        message: String,
    ) -> Result<(), StateError> {
        self.0
            .write("record an event of a sandbox", move |tx| {
                Box::pin(async move { tx.event(Subject::Sandbox(&id), kind, &message).await })
            })
            .await
    }

    /// A layer is gone from the disk: its row no longer says that it is there, and images that
    /// stand on it no longer show, since no container can be made from them. So the next pull
    /// fetches what is missing, and only that. Containers keep their rows.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn layer_lost(&self, chain_id: String) -> Result<(), StateError> {
        self.0
            .write("forget a lost layer", move |tx| {
                Box::pin(async move { tx.layer_lost(&chain_id).await })
            })
            .await
    }
}

impl Tx {
    async fn layer_lost(&mut self, chain_id: &str) -> Result<(), StateError> {
        sqlx::query(
            "UPDATE layers SET state = 'fetching', size_bytes = 0, inodes = 0
             WHERE chain_id = ? AND state = 'present'",
        )
        .bind(chain_id)
        .execute(&mut self.connection)
        .await
        .map_err(during("forget a lost layer"))?;
        let images: Vec<String> = sqlx::query_scalar(
            "WITH RECURSIVE above (chain_id) AS (
                 SELECT ?1
                 UNION SELECT l.chain_id FROM layers l JOIN above
                     ON l.parent_chain_id = above.chain_id
             )
             DELETE FROM images WHERE top_chain_id IN (SELECT chain_id FROM above)
             RETURNING id",
        )
        .bind(chain_id)
        .fetch_all(&mut self.connection)
        .await
        .map_err(during("forget images of a lost layer"))?;
        let message = format!("its layer {chain_id} is gone from the disk: pull it again");
        for image in images.iter().collect::<BTreeSet<_>>() {
            self.event(Subject::Image(image), "lost", &message).await?;
        }
        Ok(())
    }
}
