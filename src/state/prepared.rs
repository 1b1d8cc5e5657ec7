//! The table `prepared_networks`: networks that are made before a pod asks for one.
//!
//! ```text
//!  reserved ──made──► ready ──RunPodSandbox──► a sandbox of the same id
//!      └─────────────────┴── no longer fitting, or too many ──► its address is released
//! ```
//!
//! Each has an id, which becomes the id of the sandbox that takes it. So directory, pins, link and
//! the row in `network_allocations` have their names from the beginning, and taking one changes
//! rows alone.

use rusqlite::params;

use super::cleanup::Resource;
use super::error::corrupt;
use super::sql::{all, column, pair};
use super::writer::Tx;
use super::{ObservedWriter, StateError, Store, node, now_ns};
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::address::{Pool, Requested, capacity, parse_range, prepared_at_most};

/// After one was taken, until others are made: the call that has taken it goes first.
const REFILL_NS: i64 = 30_000_000;

/// A network without a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The id of the sandbox that will take it.
    pub id: SandboxId,
    /// Largest packet in bytes that it was made for.
    pub mtu: u32,
    /// The boot of the node that it was made in.
    pub boot_id: String,
    /// Whether it is complete.
    pub is_ready: bool,
}

struct Row {
    id: String,
    mtu: u32,
    boot_id: String,
    is_ready: bool,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            mtu: row.get(1)?,
            boot_id: row.get(2)?,
            is_ready: row.get(3)?,
        })
    }
}

impl TryFrom<Row> for Prepared {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        Ok(Self {
            id: row.id.try_into().map_err(corrupt("prepared_networks.id"))?,
            mtu: row.mtu,
            boot_id: row.boot_id,
            is_ready: row.is_ready,
        })
    }
}

/// Who has an address.
struct Holder {
    id: String,
    address: String,
    address6: Option<String>,
    status: String,
    is_prepared: bool,
    pod: Option<String>,
}

impl Holder {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            address: row.get(1)?,
            address6: row.get(2)?,
            status: row.get(3)?,
            is_prepared: row.get(4)?,
            pod: row.get(5)?,
        })
    }

    fn is_a_pods(&self) -> bool {
        !self.is_prepared && self.status != "cleanup_pending"
    }

    fn meets(&self, requested: &Requested) -> bool {
        let ipv6 = self.address6.as_ref().and_then(|text| text.parse().ok());
        let ipv4 = self.address.parse();
        ipv4.is_ok_and(|ipv4| requested.is_met_by(ipv4, ipv6))
    }

    /// The address that was asked for, of those that it has.
    fn asked(&self, requested: &Requested) -> String {
        let ipv4 = requested.ipv4.map(|address| address.to_string());
        match (ipv4, &self.address6) {
            (Some(asked), _) if asked == self.address => asked,
            (_, Some(address6)) => address6.clone(),
            _ => self.address.clone(),
        }
    }

    fn name(&self) -> String {
        let pod = self.pod.as_deref().unwrap_or_default();
        format!("{pod} ({})", self.id)
    }
}

impl Store {
    /// All of them, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn prepared_networks(&self) -> Result<Vec<Prepared>, StateError> {
        let rows: Vec<Row> = self
            .look("list prepared networks", |connection| {
                let sql = "SELECT id, mtu, boot_id, ready_at IS NOT NULL FROM prepared_networks
                     ORDER BY created_at";
                all(connection, sql, [], Row::read)
            })
            .await?;
        rows.into_iter().map(Prepared::try_from).collect()
    }

    /// The range that pods get their addresses from now: `configured`, or kubelet's.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn pool_now(&self, configured: &Pool) -> Result<Pool, StateError> {
        let range = self.fact(node::POD_CIDR).await?;
        let range = range.and_then(|text| parse_range(&text).ok());
        Ok(configured.clone().within(&range.unwrap_or_default()))
    }
}

impl Tx {
    /// How many networks wait.
    pub(super) fn prepared_count(&mut self) -> Result<usize, StateError> {
        let sql = "SELECT count(*) FROM prepared_networks";
        let count: Option<i64> = self.first("count prepared networks", sql, [], column)?;
        Ok(usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX))
    }

    /// The networks that are complete, and whether a pod can take them: those made before the range
    /// or the configuration changed wait only until a look drops them.
    fn complete(&mut self, pool: &Pool) -> Result<Vec<(String, bool)>, StateError> {
        self.all(
            "find a prepared network",
            "SELECT p.id, p.mtu = ?1 AND n.gateway = ?2 AND n.prefix_length = ?3 AND n.bridge = ?4
                 AND n.status = 'allocated' AND n.gateway6 IS ?5 AND n.prefix6_length IS ?6
             FROM prepared_networks p JOIN network_allocations n ON n.sandbox_id = p.id
             WHERE p.ready_at IS NOT NULL ORDER BY p.ready_at",
            params![
                pool.mtu,
                pool.gateway.to_string(),
                pool.subnet.prefix_len(),
                pool.bridge,
                pool.gateway6().map(|gateway| gateway.to_string()),
                pool.subnet6.map(|net| net.prefix_len()),
            ],
            pair,
        )
    }

    /// Makes a sandbox the owner of a network that waits, if there is one that fits: the id is the
    /// sandbox' own then.
    pub(super) async fn take_prepared(
        &mut self,
        pool: &Pool,
    ) -> Result<Option<SandboxId>, StateError> {
        let waiting = self.complete(pool)?;
        let fitting = waiting.iter().find(|(_, fits)| *fits);
        let left = waiting.len().saturating_sub(1);
        // Several are made at a time.
        if fitting.is_none() || left * 2 <= usize::try_from(pool.prepared).unwrap_or(0) {
            self.enqueue_later(&ObjectKey::Prepared, REFILL_NS)?;
        }
        match fitting {
            Some((id, _)) => self.take(id).map(Some),
            None => Ok(None),
        }
    }

    fn take(&mut self, id: &str) -> Result<SandboxId, StateError> {
        let sql = "DELETE FROM prepared_networks WHERE id = ?";
        self.run("take a prepared network", sql, [id])?;
        let id = id.to_owned().try_into();
        id.map_err(corrupt("prepared_networks.id"))
    }

    /// Looks who has the addresses that a pod asks for: a network that waits becomes the pod's if
    /// it has just these and fits otherwise, and makes room if not. `None` says that they are free.
    /// The inner error is a refusal after which what was written is kept.
    pub(super) async fn take_requested(
        &mut self,
        requested: &Requested,
        pool: &Pool,
        may_take: bool,
    ) -> Result<Result<Option<SandboxId>, StateError>, StateError> {
        let holders: Vec<Holder> = self.all(
            "find who has an address",
            "SELECT n.sandbox_id, n.address, n.address6, n.status, p.id IS NOT NULL,
                 s.namespace || '/' || s.name
             FROM network_allocations n LEFT JOIN prepared_networks p ON p.id = n.sandbox_id
             LEFT JOIN sandboxes s ON s.id = n.sandbox_id
             WHERE n.address = ?1 OR n.address6 = ?2",
            [
                requested.ipv4.map(|address| address.to_string()),
                requested.ipv6.map(|address| address.to_string()),
            ],
            Holder::read,
        )?;
        let Some(first) = holders.first() else {
            return Ok(Ok(None));
        };
        if let Some(held) = holders.iter().find(|one| one.is_a_pods()) {
            return Err(StateError::AddressTaken {
                address: held.asked(requested),
                holder: held.name(),
            });
        }
        let fits = |(id, fits): &(String, bool)| *fits && *id == first.id;
        if may_take
            && holders.len() == 1
            && first.meets(requested)
            && self.complete(pool)?.iter().any(fits)
        {
            let id = self.take(&first.id)?;
            self.enqueue_later(&ObjectKey::Prepared, REFILL_NS)?;
            return Ok(Ok(Some(id)));
        }
        for one in holders.iter().filter(|one| one.is_prepared) {
            let id = one.id.clone().try_into();
            let id = id.map_err(corrupt("network_allocations.sandbox_id"))?;
            self.drop_prepared(&id).await?;
        }
        Ok(Err(StateError::AddressLeaving {
            address: first.asked(requested),
        }))
    }

    async fn reserve(
        &mut self,
        configured: &Pool,
        boot_id: &str,
    ) -> Result<Vec<SandboxId>, StateError> {
        let (pool, _) = self.pool_now(configured).await?;
        let sql = "SELECT address_number FROM network_allocations
             UNION SELECT address_number FROM address_quarantine WHERE released_at > ?";
        let since = now_ns().saturating_sub(pool.quarantine_ns);
        let taken: Vec<u32> = self.all("list addresses", sql, [since], column)?;
        let inside = |number: &&u32| pool.subnet.contains(&std::net::Ipv4Addr::from(**number));
        let taken = taken.iter().filter(inside).count();
        let there = self.prepared_count()?;
        let others = taken.saturating_sub(there);
        let most = prepared_at_most(pool.prepared, capacity(&pool), others);
        let mut new = Vec::new();
        for _ in there..most {
            let id = SandboxId::random();
            self.allocate_address(&id, configured, &Requested::default())
                .await?;
            self.run(
                "reserve a network",
                "INSERT INTO prepared_networks (id, mtu, boot_id, created_at) VALUES (?, ?, ?, ?)",
                params![id.as_str(), pool.mtu, boot_id, now_ns()],
            )?;
            new.push(id);
        }
        Ok(new)
    }

    async fn drop_prepared(&mut self, id: &SandboxId) -> Result<(), StateError> {
        let sql = "DELETE FROM prepared_networks WHERE id = ?";
        // One that was taken meanwhile is a pod's.
        if self.run("drop a prepared network", sql, [id.as_str()])? == 0 {
            return Ok(());
        }
        self.add_cleanup(Resource::SandboxFiles, id.as_str(), id.as_str())
            .await?;
        self.release_address(id).await
    }
}

impl ObservedWriter {
    /// Reserves addresses for as many networks as are missing; returns their ids.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reserve_prepared(
        &self,
        pool: Pool,
        boot_id: String,
    ) -> Result<Vec<SandboxId>, StateError> {
        self.0
            .write("reserve networks", move |tx| {
                Box::pin(async move { tx.reserve(&pool, &boot_id).await })
            })
            .await
    }

    /// A network is complete and waits for a pod.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn prepared_is_ready(&self, id: SandboxId) -> Result<(), StateError> {
        self.0
            .write_later("record a prepared network", None, move |tx| {
                Box::pin(async move {
                    tx.run(
                        "record a prepared network",
                        "UPDATE prepared_networks SET ready_at = ? WHERE id = ?",
                        params![now_ns(), id.as_str()],
                    )
                    .map(drop)
                })
            })
            .await
    }

    /// Networks that no pod is to have: what there is of them is left to cleanup tasks. Those that
    /// a pod has taken meanwhile stay.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn drop_prepared(&self, ids: Vec<SandboxId>) -> Result<(), StateError> {
        self.0
            .write("drop prepared networks", move |tx| {
                Box::pin(async move {
                    for id in &ids {
                        tx.drop_prepared(id).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Networks of which nothing is left, and that no pod has ever had: their addresses need no
    /// rest.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn prepared_are_gone(&self, ids: Vec<SandboxId>) -> Result<(), StateError> {
        self.0
            .write("forget prepared networks", move |tx| {
                Box::pin(async move {
                    for id in &ids {
                        let sql = "DELETE FROM prepared_networks WHERE id = ?";
                        tx.run("forget a prepared network", sql, [id.as_str()])?;
                        let sql = "DELETE FROM network_allocations WHERE sandbox_id = ?";
                        tx.run("forget a prepared network", sql, [id.as_str()])?;
                    }
                    Ok(())
                })
            })
            .await
    }
}
