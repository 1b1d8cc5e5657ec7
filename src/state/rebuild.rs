//! Rows made out of what kernel, shim and disk still know, after the database was lost: everything
//! in one transaction, or nothing.

use super::container::NewContainer;
use super::container_facts::{Exit, Started};
use super::error::{corrupt, during};
use super::event::Subject;
use super::salvage::Salvage;
use super::writer::Tx;
use super::{ObservedWriter, StateError, node};
use crate::lifecycle::port::host_ports;
use crate::lifecycle::record::{
    AddressRecord, ContainerRecord, ImageRecord, LayerRecord, SandboxRecord,
};
use crate::lifecycle::{container, sandbox};

/// Everything that was found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Images all of whose layers are on disk.
    pub images: Vec<ImageRecord>,
    /// Pods.
    pub sandboxes: Vec<FoundSandbox>,
    /// Containers of those pods.
    pub containers: Vec<FoundContainer>,
    /// What the damaged file itself still told.
    pub salvage: Salvage,
}

/// A pod and how it is.
#[derive(Debug, Clone)]
pub struct FoundSandbox {
    /// What it is.
    pub record: SandboxRecord,
    /// What the client wants, as far as that can be known.
    pub desired: sandbox::Desired,
    /// How it is.
    pub state: sandbox::State,
}

/// A container and how it is.
#[derive(Debug, Clone)]
pub struct FoundContainer {
    /// What it is.
    pub record: ContainerRecord,
    /// The directory that takes its writes.
    pub rootfs: String,
    /// How it is.
    pub life: Life,
}

/// How far a container has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Its directories are not whole.
    Preparing,
    /// It has not run.
    Created,
    /// It was launched in another boot of the node.
    Forgotten,
    /// Its process lives.
    Running(Started),
    /// It has run, from this moment (ns since 1970) if that is known.
    Exited(Exit, Option<i64>),
}

impl Life {
    /// The states it has gone through since it was recorded.
    fn path(&self) -> &'static [container::State] {
        use container::State::{Created, Exited, Running, Starting};
        match self {
            Self::Preparing => &[],
            Self::Created => &[Created],
            Self::Forgotten => &[Created, Starting],
            Self::Running(_) => &[Created, Starting, Running],
            Self::Exited(..) => &[Created, Starting, Exited],
        }
    }

    fn desired(&self) -> container::Desired {
        match self {
            Self::Preparing | Self::Created => container::Desired::Created,
            Self::Forgotten | Self::Running(_) | Self::Exited(..) => container::Desired::Running,
        }
    }
}

impl ObservedWriter {
    /// Writes what was found into an empty database, and what is to be said about it.
    ///
    /// # Errors
    /// When the database fails; nothing is kept then.
    pub async fn rebuild(&self, found: Found, summary: String) -> Result<(), StateError> {
        self.0
            .write("rebuild the database", move |tx| {
                Box::pin(async move { tx.rebuild(found, &summary).await })
            })
            .await
    }
}

impl Tx {
    async fn rebuild(&mut self, found: Found, summary: &str) -> Result<(), StateError> {
        let Found {
            mut images,
            mut sandboxes,
            mut containers,
            salvage,
        } = found;
        self.go_on_counting_events().await?;
        images.sort_by_key(|image| image.created_at);
        for image in &images {
            self.bring_image(image).await?;
        }
        // Oldest first: what has the same name and came later took its place.
        sandboxes.sort_by_key(|found| found.record.created_at);
        for found in &sandboxes {
            self.bring_sandbox(found).await?;
        }
        containers.sort_by_key(|found| found.record.created_at);
        for found in &containers {
            self.bring_container(found).await?;
        }
        self.bring_salvage(&salvage).await?;
        self.set_fact(node::LAST_REBUILD, summary).await?;
        self.event(Subject::Node, "rebuilt", summary).await
    }

    /// Who remembers the sequence of an event must not meet it again with another one: the
    /// sequences go on at the milliseconds since 1970, which no node has had events enough to
    /// reach.
    async fn go_on_counting_events(&mut self) -> Result<(), StateError> {
        let from = super::now_ns() / 1_000_000;
        // SQLite's own table, which has no key: one row for each table that has ever had a row.
        sqlx::query("DELETE FROM sqlite_sequence WHERE name = 'events' AND seq < ?")
            .bind(from)
            .execute(&mut self.connection)
            .await
            .map_err(during("go on counting events"))?;
        sqlx::query(
            "INSERT INTO sqlite_sequence (name, seq) SELECT 'events', ?
             WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'events')",
        )
        .bind(from)
        .execute(&mut self.connection)
        .await
        .map(drop)
        .map_err(during("go on counting events"))
    }

    async fn bring_layers(&mut self, layers: &[LayerRecord]) -> Result<(), StateError> {
        let mut parent: Option<&str> = None;
        for layer in layers {
            sqlx::query(
                "INSERT INTO layers (chain_id, parent_chain_id, diff_id, digest, state, size_bytes,
                 inodes, created_at, seal, entries)
                 VALUES (?, ?, ?, ?, 'present', ?, ?, ?, ?, ?)
                 ON CONFLICT (chain_id) DO NOTHING",
            )
            .bind(&layer.chain_id)
            .bind(parent)
            .bind(&layer.diff_id)
            .bind(&layer.digest)
            .bind(layer.size_bytes)
            .bind(layer.inodes)
            .bind(layer.created_at)
            .bind(&layer.seal)
            .bind(layer.entries)
            .execute(&mut self.connection)
            .await
            .map_err(during("bring back a layer"))?;
            parent = Some(&layer.chain_id);
        }
        Ok(())
    }

    async fn bring_image(&mut self, image: &ImageRecord) -> Result<(), StateError> {
        self.bring_layers(&image.layers).await?;
        sqlx::query(
            "INSERT INTO images (id, manifest_digest, top_chain_id, config, size_bytes, pinned,
             created_at, annotations, pulled_as) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&image.id)
        .bind(&image.manifest_digest)
        .bind(image.layers.last().map(|layer| &layer.chain_id))
        .bind(serde_json::to_string(&image.spec).map_err(corrupt("images.config"))?)
        .bind(image.size_bytes)
        .bind(image.pinned)
        .bind(image.created_at)
        .bind(serde_json::to_string(&image.annotations).map_err(corrupt("images.annotations"))?)
        .bind(&image.pulled_as)
        .execute(&mut self.connection)
        .await
        .map_err(during("bring back an image"))?;
        let manifest = image.manifest.as_deref().map(str::as_bytes);
        self.put_document(&image.id, "manifest", manifest).await?;
        let config = image.config.as_deref().map(str::as_bytes);
        self.put_document(&image.id, "config", config).await?;
        for reference in &image.references {
            let kind = if reference.is_digest { "digest" } else { "tag" };
            // A name stands for the image that took it last.
            sqlx::query(
                "INSERT INTO image_references (reference, image_id, kind, updated_at)
                 VALUES (?1, ?2, ?3, ?4) ON CONFLICT (reference) DO UPDATE
                 SET image_id = ?2, updated_at = ?4 WHERE updated_at < ?4",
            )
            .bind(&reference.name)
            .bind(&image.id)
            .bind(kind)
            .bind(reference.updated_at)
            .execute(&mut self.connection)
            .await
            .map_err(during("bring back a name of an image"))?;
        }
        Ok(())
    }

    async fn bring_sandbox(&mut self, found: &FoundSandbox) -> Result<(), StateError> {
        let record = &found.record;
        let spec = &record.spec;
        sqlx::query(
            "UPDATE sandboxes SET desired = 'removed'
             WHERE uid = ? AND namespace = ? AND name = ? AND attempt = ?",
        )
        .bind(&spec.uid)
        .bind(&spec.namespace)
        .bind(&spec.name)
        .bind(spec.attempt)
        .execute(&mut self.connection)
        .await
        .map_err(during("bring back a sandbox"))?;
        self.insert_sandbox(&record.id, spec).await?;
        let stopped = (found.state == sandbox::State::Stopped).then(super::now_ns);
        sqlx::query(
            "UPDATE sandboxes SET created_at = ?2, desired = ?3, boot_id = ?4,
             init_pid = ?5, init_start = ?6, ready_at = ?7, stopped_at = ?8 WHERE id = ?1",
        )
        .bind(record.id.as_str())
        .bind(record.created_at)
        .bind(found.desired.as_str())
        .bind(&record.boot_id)
        .bind(record.init.map(|(pid, _)| pid))
        .bind(
            record
                .init
                .map(|(_, start)| i64::try_from(start).unwrap_or(i64::MAX)),
        )
        .bind(record.ready_at)
        .bind(stopped)
        .execute(&mut self.connection)
        .await
        .map_err(during("bring back a sandbox"))?;
        // Step by step, as it came there: the database refuses every other way.
        for state in sandbox_path(found.state) {
            sqlx::query("UPDATE sandboxes SET state = ? WHERE id = ?")
                .bind(state.as_str())
                .bind(record.id.as_str())
                .execute(&mut self.connection)
                .await
                .map_err(during("bring back a sandbox"))?;
        }
        if let Some(attachment) = &record.attachment {
            let down = stopped.is_some();
            self.bring_attachment(&record.id, attachment, down).await?;
            if !down {
                self.bring_ports(found).await?;
            }
        }
        match &record.address {
            // A pod that is down has given its address back.
            Some(address) if stopped.is_none() => {
                self.bring_address(found, address).await?;
                self.bring_ports(found).await
            }
            _ => Ok(()),
        }
    }

    /// The ports that the pod had asked for. One that a newer pod has is that one's.
    async fn bring_ports(&mut self, found: &FoundSandbox) -> Result<(), StateError> {
        let record = &found.record;
        for port in host_ports(&record.spec).unwrap_or_default() {
            match self.claim_ports(&record.id, &[port]).await {
                Err(StateError::PortTaken { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    async fn bring_address(
        &mut self,
        found: &FoundSandbox,
        address: &AddressRecord,
    ) -> Result<(), StateError> {
        let record = &found.record;
        sqlx::query(
            "INSERT INTO network_allocations (sandbox_id, address, address_number, prefix_length,
             gateway, bridge, host_link, pod_link, allocated_at, setup_completed_at, status,
             address6, prefix6_length, gateway6)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10,
                 CASE WHEN ?10 IS NULL THEN 'allocated' ELSE 'active' END, ?11, ?12, ?13)
             ON CONFLICT DO NOTHING",
        )
        .bind(record.id.as_str())
        .bind(address.address.to_string())
        .bind(u32::from(address.address))
        .bind(address.prefix_length)
        .bind(address.gateway.to_string())
        .bind(&address.bridge)
        .bind(&address.host_link)
        .bind(&address.pod_link)
        .bind(record.created_at)
        .bind(record.ready_at)
        .bind(address.ipv6.map(|given| given.address.to_string()))
        .bind(address.ipv6.map(|given| given.prefix_length))
        .bind(address.ipv6.map(|given| given.gateway.to_string()))
        .execute(&mut self.connection)
        .await
        .map_err(during("bring back an address"))?;
        // Sandboxes come oldest first, so the last one's address stays.
        self.set_fact(node::LAST_ADDRESS, &address.address.to_string())
            .await
    }

    async fn bring_container(&mut self, found: &FoundContainer) -> Result<(), StateError> {
        let FoundContainer {
            record,
            rootfs,
            life,
        } = found;
        let id = &record.id;
        self.bring_layers(&record.layers).await?;
        sqlx::query(
            "UPDATE containers SET desired = 'removed'
             WHERE sandbox_id = ? AND name = ? AND attempt = ?",
        )
        .bind(record.sandbox_id.as_str())
        .bind(&record.spec.name)
        .bind(record.spec.attempt)
        .execute(&mut self.connection)
        .await
        .map_err(during("bring back a container"))?;
        let new = NewContainer {
            id: id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            image_id: record.image_id.clone(),
            spec: record.spec.clone(),
        };
        self.insert_container(&new).await?;
        let top = record.layers.last().map(|layer| layer.chain_id.as_str());
        self.add_snapshot(id, top).await?;
        for volume in &record.volumes {
            self.bring_layers(&volume.layers).await?;
            let top = volume.layers.last().map(|layer| layer.chain_id.as_str());
            self.add_image_volume(id, &volume.image_id, top).await?;
        }
        self.set_life(record, rootfs, life).await?;
        match life {
            Life::Running(started) => self.monitor(id, started.pid, started.at).await,
            _ => Ok(()),
        }
    }

    async fn set_life(
        &mut self,
        record: &ContainerRecord,
        rootfs: &str,
        life: &Life,
    ) -> Result<(), StateError> {
        let (started, exit, began) = match life {
            Life::Running(started) => (Some(started), None, Some(started.at)),
            Life::Exited(exit, began) => (None, Some(exit), *began),
            _ => (None, None, None),
        };
        let runs_as = started.and_then(|started| started.runs_as.as_ref());
        let runs_as = runs_as.map(serde_json::to_string).transpose();
        sqlx::query(
            "UPDATE containers SET created_at = ?2, desired = ?3, rootfs = ?4,
             pid = ?5, pid_start = ?6, started_at = ?7, runs_as = ?8, exit_code = ?9,
             exited_at = ?10, reason = ?11, error = ?12, oom_killed = ?13, released = ?14
             WHERE id = ?1",
        )
        .bind(record.id.as_str())
        .bind(record.created_at)
        .bind(life.desired().as_str())
        .bind(rootfs)
        .bind(started.map(|started| started.pid))
        .bind(started.map(|started| i64::try_from(started.start).unwrap_or(i64::MAX)))
        .bind(began)
        .bind(runs_as.map_err(corrupt("containers.runs_as"))?)
        .bind(exit.map(|exit| exit.code))
        .bind(exit.map(|exit| exit.at))
        .bind(exit.map_or("", |exit| exit.reason))
        .bind(exit.and_then(|exit| exit.error.as_deref()))
        .bind(exit.is_some_and(|exit| exit.reason == "OOMKilled"))
        // Whatever was launched may have left a cgroup.
        .bind(matches!(life, Life::Preparing | Life::Created))
        .execute(&mut self.connection)
        .await
        .map_err(during("bring back a container"))?;
        for state in life.path() {
            sqlx::query("UPDATE containers SET state = ? WHERE id = ?")
                .bind(state.as_str())
                .bind(record.id.as_str())
                .execute(&mut self.connection)
                .await
                .map_err(during("bring back a container"))?;
        }
        Ok(())
    }
}

/// The states that a sandbox has gone through since it was recorded.
fn sandbox_path(state: sandbox::State) -> &'static [sandbox::State] {
    use sandbox::State::{Failed, Preparing, Ready, Stopped};
    match state {
        Preparing => &[],
        Ready => &[Ready],
        Stopped => &[Ready, Stopped],
        Failed => &[Failed],
    }
}
