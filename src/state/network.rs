//! The table `network_allocations`: which pod has which address.
//!
//! An address is given out in the transaction that makes its sandbox and goes back only when the
//! link that carries it is gone; then it rests for a while (`address_quarantine`), because others
//! may still take it for the pod that had it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use rusqlite::params;

use super::cleanup::Resource;
use super::error::corrupt;
use super::sql::{all, column, first, pair};
use super::writer::Tx;
use super::{StateError, Store, node, now_ns};
use crate::id::SandboxId;
use crate::lifecycle::address::{
    Pool, REQUESTED, Requested, beside, capacity, first6, next_free, parse_range,
};
use crate::lifecycle::record::Ipv6Given;
use crate::lifecycle::spec::{NamespaceMode, SandboxSpec};

/// Longest rest of an address that may be configured, ns: an hour.
pub const QUARANTINE_MAX_NS: i64 = 3_600_000_000_000;

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
    /// The IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Given>,
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
    address6: Option<String>,
    prefix6_length: Option<i64>,
    gateway6: Option<String>,
}

impl Row {
    fn ipv6(&self) -> Result<Option<Ipv6Given>, StateError> {
        let (Some(address), Some(prefix), Some(gateway)) =
            (&self.address6, self.prefix6_length, &self.gateway6)
        else {
            return Ok(None);
        };
        Ok(Some(Ipv6Given {
            address: address
                .parse()
                .map_err(corrupt("network_allocations.address6"))?,
            prefix_length: u8::try_from(prefix)
                .map_err(corrupt("network_allocations.prefix6_length"))?,
            gateway: gateway
                .parse()
                .map_err(corrupt("network_allocations.gateway6"))?,
        }))
    }
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
            address6: row.get(8)?,
            prefix6_length: row.get(9)?,
            gateway6: row.get(10)?,
        })
    }
}

impl TryFrom<Row> for Allocation {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        Ok(Self {
            ipv6: row.ipv6()?,
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
     pod_link, status, address6, prefix6_length, gateway6 FROM network_allocations";

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

fn given6(subnet: Ipv6Net, address: Ipv6Addr) -> Ipv6Given {
    Ipv6Given {
        address,
        prefix_length: subnet.prefix_len(),
        gateway: first6(subnet),
    }
}

impl Tx {
    /// The range as it is now, configured or kubelet's, and the last address given out.
    pub(super) async fn pool_now(
        &mut self,
        configured: &Pool,
    ) -> Result<(Pool, Option<u32>), StateError> {
        let sql = "SELECT key, value FROM network_state WHERE key IN (?, ?)";
        let keys = [node::LAST_ADDRESS, node::POD_CIDR];
        let facts: Vec<(String, String)> = self.all("read facts", sql, keys, pair)?;
        let fact = |name: &str| facts.iter().find(|(key, _)| key == name);
        let range = fact(node::POD_CIDR).and_then(|(_, text)| parse_range(text).ok());
        let pool = configured.clone().within(&range.unwrap_or_default());
        let last = fact(node::LAST_ADDRESS)
            .and_then(|(_, text)| text.parse::<Ipv4Addr>().ok())
            .map(u32::from);
        Ok((pool, last))
    }

    /// Gives a new sandbox the address that it asks for, that of a network that waits, or the next
    /// free one. Returns the sandbox' id, which is `id` unless it takes a network that waits. The
    /// inner error is a refusal after which what was written is kept.
    pub(super) async fn give_address(
        &mut self,
        id: SandboxId,
        spec: &SandboxSpec,
        configured: &Pool,
    ) -> Result<Result<SandboxId, StateError>, StateError> {
        // Checked by the front.
        let requested = Requested::of(&spec.annotations).unwrap_or_default();
        // What is prepared has an IPC namespace of its own.
        let may_take = configured.prepared > 0 && spec.ipc == NamespaceMode::Pod;
        let (pool, _) = self.pool_now(configured).await?;
        let taken = if requested.is_any() {
            let unfit = |why| StateError::AddressUnfit {
                annotation: REQUESTED,
                why,
            };
            requested.check(&pool).map_err(unfit)?;
            match self.take_requested(&requested, &pool, may_take).await? {
                Ok(taken) => taken,
                Err(refused) => return Ok(Err(refused)),
            }
        } else if may_take {
            self.take_prepared(&pool).await?
        } else {
            None
        };
        if let Some(taken) = taken {
            return Ok(Ok(taken));
        }
        self.allocate_address(&id, configured, &requested).await?;
        Ok(Ok(id))
    }

    /// Gives the sandbox an address, out of the pool or of what kubelet has told in its place.
    /// `requested` is known to be free.
    pub(super) async fn allocate_address(
        &mut self,
        id: &SandboxId,
        configured: &Pool,
        requested: &Requested,
    ) -> Result<(), StateError> {
        let (pool, last) = self.pool_now(configured).await?;
        let address = match requested.ipv4 {
            Some(address) => address,
            None => self.free_address(&pool, last).await?,
        };
        let ipv6 = match (pool.subnet6, requested.ipv6) {
            (Some(subnet), Some(address)) => Some(given6(subnet, address)),
            (Some(subnet), None) => Some(self.address_beside(subnet, address).await?),
            (None, _) => None,
        };
        self.run(
            "record an address",
            "INSERT INTO network_allocations (sandbox_id, address, address_number, prefix_length,
             gateway, bridge, host_link, pod_link, allocated_at, status, address6, prefix6_length,
             gateway6)
             VALUES (?, ?, ?, ?, ?, ?, ?, 'eth0', ?, 'allocated', ?, ?, ?)",
            params![
                id.as_str(),
                address.to_string(),
                u32::from(address),
                pool.subnet.prefix_len(),
                pool.gateway.to_string(),
                pool.bridge,
                format!("q{}", id.short()),
                now_ns(),
                ipv6.map(|given| given.address.to_string()),
                ipv6.map(|given| given.prefix_length),
                ipv6.map(|given| given.gateway.to_string()),
            ],
        )?;
        if requested.ipv4.is_some() {
            return Ok(());
        }
        self.set_fact(node::LAST_ADDRESS, &address.to_string())
            .await
    }

    async fn free_address(
        &mut self,
        pool: &Pool,
        last: Option<u32>,
    ) -> Result<Ipv4Addr, StateError> {
        let taken: Vec<(u32, bool)> = self.all(
            "list addresses",
            "SELECT address_number, 0 FROM network_allocations
             UNION SELECT address_number, 1 FROM address_quarantine
                 WHERE released_at > ?
             ORDER BY address_number",
            [now_ns().saturating_sub(pool.quarantine_ns)],
            pair,
        )?;
        let numbers: Vec<u32> = taken.iter().map(|(number, _)| *number).collect();
        if let Some(address) = next_free(pool, &numbers, last) {
            return Ok(address);
        }
        let prepared = self.prepared_count()?;
        let inside = |(number, _): &&(u32, bool)| pool.subnet.contains(&Ipv4Addr::from(*number));
        let inside: Vec<_> = taken.iter().filter(inside).collect();
        let waiting = inside.iter().filter(|(_, waits)| *waits).count();
        Err(StateError::AddressesExhausted {
            subnet: pool.subnet.to_string(),
            used: (inside.len() - waiting).saturating_sub(prepared),
            prepared,
            waiting,
            capacity: capacity(pool),
        })
    }

    async fn address_beside(
        &mut self,
        subnet: Ipv6Net,
        address: Ipv4Addr,
    ) -> Result<Ipv6Given, StateError> {
        let sql = "SELECT address6 FROM network_allocations WHERE address6 IS NOT NULL";
        let used: Vec<String> = self.all("list addresses", sql, [], column)?;
        let used: Vec<Ipv6Addr> = used.iter().filter_map(|text| text.parse().ok()).collect();
        let address = beside(subnet, address, &used);
        let exhausted = || StateError::AddressesExhausted {
            subnet: subnet.to_string(),
            used: used.len(),
            prepared: 0,
            waiting: 0,
            capacity: used.len(),
        };
        Ok(given6(subnet, address.ok_or_else(exhausted)?))
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

    /// The link is gone, and with it the allocation; from now on the address rests.
    pub(super) async fn delete_address(&mut self, host_link: &str) -> Result<(), StateError> {
        let number: Option<i64> = self.first(
            "delete an address",
            "DELETE FROM network_allocations WHERE host_link = ? RETURNING address_number",
            [host_link],
            column,
        )?;
        let Some(number) = number else {
            return Ok(());
        };
        let now = now_ns();
        self.run(
            "end the rest of addresses",
            "DELETE FROM address_quarantine WHERE released_at <= ?",
            [now - QUARANTINE_MAX_NS],
        )?;
        self.run(
            "let an address rest",
            "INSERT INTO address_quarantine (address_number, released_at) VALUES (?1, ?2)
             ON CONFLICT (address_number) DO UPDATE SET released_at = ?2",
            [number, now],
        )
        .map(drop)
    }
}
