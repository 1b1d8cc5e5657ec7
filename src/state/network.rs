//! The table `network_allocations`: which pod has which address.
//!
//! An address is given out in the transaction that makes its sandbox and goes back only when the
//! link that carries it is gone.

use std::net::Ipv4Addr;

use rusqlite::params;

use super::cleanup::Resource;
use super::error::corrupt;
use super::sql::{all, column, first};
use super::writer::Tx;
use super::{StateError, Store, node, now_ns};
use crate::id::SandboxId;
use crate::lifecycle::address::{Pool, capacity, next_free};

/// An address and the link that carries it.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// Whose it is.
    pub sandbox_id: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix_length: u8,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// The bridge.
    pub bridge: String,
    /// The node's end of the veth pair.
    pub host_link: String,
    /// The pod's end.
    pub pod_link: String,
    /// allocated, active, cleanup_pending.
    pub status: String,
}

struct Row {
    sandbox_id: String,
    address: String,
    prefix_length: i64,
    gateway: String,
    bridge: String,
    host_link: String,
    pod_link: String,
    status: String,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            sandbox_id: row.get(0)?,
            address: row.get(1)?,
            prefix_length: row.get(2)?,
            gateway: row.get(3)?,
            bridge: row.get(4)?,
            host_link: row.get(5)?,
            pod_link: row.get(6)?,
            status: row.get(7)?,
        })
    }
}

impl TryFrom<Row> for Allocation {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        Ok(Self {
            sandbox_id: row.sandbox_id,
            address: row
                .address
                .parse()
                .map_err(corrupt("network_allocations.address"))?,
            prefix_length: u8::try_from(row.prefix_length)
                .map_err(corrupt("network_allocations.prefix_length"))?,
            gateway: row
                .gateway
                .parse()
                .map_err(corrupt("network_allocations.gateway"))?,
            bridge: row.bridge,
            host_link: row.host_link,
            pod_link: row.pod_link,
            status: row.status,
        })
    }
}

const SELECT: &str = "SELECT sandbox_id, address, prefix_length, gateway, bridge, host_link,
     pod_link, status FROM network_allocations";

impl Store {
    /// The address of one sandbox.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn allocation(&self, id: &SandboxId) -> Result<Option<Allocation>, StateError> {
        let sql = format!("{SELECT} WHERE sandbox_id = ?");
        let row = self
            .look("read an address", |connection| {
                first(connection, &sql, [id.as_str()], Row::read)
            })
            .await?;
        row.map(Allocation::try_from).transpose()
    }

    /// Every address given out, for recovery and the sweep.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn allocations(&self) -> Result<Vec<Allocation>, StateError> {
        let rows: Vec<Row> = self
            .look("list addresses", |connection| {
                all(connection, SELECT, [], Row::read)
            })
            .await?;
        rows.into_iter().map(Allocation::try_from).collect()
    }
}

impl Tx {
    /// Gives the sandbox an address.
    pub(super) async fn allocate_address(
        &mut self,
        id: &SandboxId,
        pool: &Pool,
    ) -> Result<(), StateError> {
        let sql = "SELECT address_number FROM network_allocations ORDER BY address_number";
        let used: Vec<u32> = self.all("list addresses", sql, [], column)?;
        let last = self.fact(node::LAST_ADDRESS).await?;
        let last = last
            .and_then(|text| text.parse::<Ipv4Addr>().ok())
            .map(u32::from);
        let address =
            next_free(pool, &used, last).ok_or_else(|| StateError::AddressesExhausted {
                subnet: pool.subnet.to_string(),
                used: used.len(),
                capacity: capacity(pool),
            })?;
        self.run(
            "record an address",
            "INSERT INTO network_allocations (sandbox_id, address, address_number, prefix_length,
             gateway, bridge, host_link, pod_link, allocated_at, status)
             VALUES (?, ?, ?, ?, ?, ?, ?, 'eth0', ?, 'allocated')",
            params![
                id.as_str(),
                address.to_string(),
                u32::from(address),
                pool.subnet.prefix_len(),
                pool.gateway.to_string(),
                pool.bridge,
                format!("q{}", id.short()),
                now_ns(),
            ],
        )?;
        self.set_fact(node::LAST_ADDRESS, &address.to_string())
            .await
    }

    /// The pod's link is up.
    pub(super) async fn activate_address(&mut self, id: &SandboxId) -> Result<(), StateError> {
        self.run(
            "activate an address",
            "UPDATE network_allocations SET status = 'active', setup_completed_at = ?
             WHERE sandbox_id = ? AND status = 'allocated'",
            params![now_ns(), id.as_str()],
        )
        .map(drop)
    }

    /// The pod is down: a cleanup task removes the link, and the address goes back after that.
    pub(super) async fn release_address(&mut self, id: &SandboxId) -> Result<(), StateError> {
        let link: Option<String> = self.first(
            "release an address",
            "UPDATE network_allocations SET status = 'cleanup_pending'
             WHERE sandbox_id = ? AND status IN ('allocated', 'active') RETURNING host_link",
            [id.as_str()],
            column,
        )?;
        if let Some(link) = link {
            self.add_cleanup(Resource::Network, &link, id.as_str())
                .await?;
        }
        Ok(())
    }

    /// The link is gone, and with it the allocation.
    pub(super) async fn delete_address(&mut self, host_link: &str) -> Result<(), StateError> {
        let sql = "DELETE FROM network_allocations WHERE host_link = ?";
        self.run("delete an address", sql, [host_link]).map(drop)
    }
}
