//! The table `port_mappings`: which port of the node is which pod's.
//!
//! A row comes with its sandbox and goes when nothing leads to the pod any more.

use rusqlite::params;

use super::error::corrupt;
use super::sql::{all, pair};
use super::writer::Tx;
use super::{StateError, Store};
use crate::id::SandboxId;
use crate::lifecycle::port::HostPort;

struct Row {
    host_port: i64,
    protocol: String,
    host_ip: String,
    container_port: i64,
    sandbox_id: String,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            host_port: row.get(0)?,
            protocol: row.get(1)?,
            host_ip: row.get(2)?,
            container_port: row.get(3)?,
            sandbox_id: row.get(4)?,
        })
    }
}

/// A port of the node, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// The pod.
    pub sandbox_id: String,
    /// The port.
    pub port: HostPort,
}

impl TryFrom<Row> for PortMapping {
    type Error = StateError;
    fn try_from(row: Row) -> Result<Self, StateError> {
        let address = (!row.host_ip.is_empty()).then(|| row.host_ip.parse());
        let host_port = u16::try_from(row.host_port);
        let container_port = u16::try_from(row.container_port);
        Ok(Self {
            sandbox_id: row.sandbox_id,
            port: HostPort {
                protocol: row
                    .protocol
                    .parse()
                    .map_err(corrupt("port_mappings.protocol"))?,
                address: address
                    .transpose()
                    .map_err(corrupt("port_mappings.host_ip"))?,
                port: host_port.map_err(corrupt("port_mappings.host_port"))?,
                container_port: container_port.map_err(corrupt("port_mappings.container_port"))?,
            },
        })
    }
}

impl Store {
    /// The ports of one sandbox.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn ports(&self, id: &SandboxId) -> Result<Vec<HostPort>, StateError> {
        let rows: Vec<Row> = self
            .look("read ports", |connection| {
                let sql = "SELECT host_port, protocol, host_ip, container_port, sandbox_id
                     FROM port_mappings WHERE sandbox_id = ?";
                all(connection, sql, [id.as_str()], Row::read)
            })
            .await?;
        let ports = rows.into_iter().map(PortMapping::try_from);
        ports.map(|mapping| Ok(mapping?.port)).collect()
    }

    /// Every port that has been given to a pod.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn all_ports(&self) -> Result<Vec<PortMapping>, StateError> {
        let rows: Vec<Row> = self
            .look("list ports", |connection| {
                let sql = "SELECT host_port, protocol, host_ip, container_port, sandbox_id
                     FROM port_mappings";
                all(connection, sql, [], Row::read)
            })
            .await?;
        rows.into_iter().map(PortMapping::try_from).collect()
    }

    /// The ports of pods that are up, and wished to be.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn ready_ports(&self) -> Result<Vec<PortMapping>, StateError> {
        self.ports_of_pods("'ready'").await
    }

    /// The ports of pods that are up and wished to be, or on their way there.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn wanted_ports(&self) -> Result<Vec<PortMapping>, StateError> {
        self.ports_of_pods("'preparing', 'ready'").await
    }

    async fn ports_of_pods(&self, states: &'static str) -> Result<Vec<PortMapping>, StateError> {
        let sql = format!(
            "SELECT p.host_port, p.protocol, p.host_ip, p.container_port, p.sandbox_id
             FROM port_mappings p JOIN sandboxes s ON s.id = p.sandbox_id
             WHERE s.desired = 'ready' AND s.state IN ({states}) AND s.init_ended_at IS NULL"
        );
        let rows: Vec<Row> = self
            .look("list ports", |connection| {
                all(connection, &sql, [], Row::read)
            })
            .await?;
        rows.into_iter().map(PortMapping::try_from).collect()
    }
}

impl Tx {
    /// Gives the sandbox its ports, or refuses because another one has one of them.
    pub(super) async fn claim_ports(
        &mut self,
        id: &SandboxId,
        ports: &[HostPort],
    ) -> Result<(), StateError> {
        for port in ports {
            if let Some(holder) = self.holder(port).await? {
                return Err(StateError::PortTaken {
                    port: port.to_string(),
                    holder,
                });
            }
            self.run(
                "record a port",
                "INSERT INTO port_mappings (host_port, protocol, host_ip, container_port,
                 sandbox_id) VALUES (?, ?, ?, ?, ?)",
                params![
                    port.port,
                    port.protocol.as_str(),
                    port.address.map(|ip| ip.to_string()).unwrap_or_default(),
                    port.container_port,
                    id.as_str(),
                ],
            )?;
        }
        Ok(())
    }

    /// Who has a port that meets this one, in words.
    async fn holder(&mut self, port: &HostPort) -> Result<Option<String>, StateError> {
        let rows = self.all(
            "find who has a port",
            "SELECT host_port, protocol, host_ip, container_port, sandbox_id
             FROM port_mappings WHERE host_port = ? AND protocol = ?",
            params![port.port, port.protocol.as_str()],
            Row::read,
        )?;
        for row in rows {
            let mapping = PortMapping::try_from(row)?;
            if mapping.port.meets(port) {
                let sql = "SELECT namespace, name FROM sandboxes WHERE id = ?";
                let id = [&mapping.sandbox_id];
                let named: Option<(String, String)> =
                    self.first("find who has a port", sql, id, pair)?;
                let (namespace, name) = named.unwrap_or_default();
                return Ok(Some(format!("{namespace}/{name} ({})", mapping.sandbox_id)));
            }
        }
        Ok(None)
    }

    /// Nothing leads to the sandbox any more, unless plugins still see to that.
    pub(super) async fn release_ports_unless_attached(
        &mut self,
        id: &SandboxId,
    ) -> Result<(), StateError> {
        if self.is_attached(id).await? {
            return Ok(());
        }
        self.release_ports(id).await
    }

    /// Nothing leads to the sandbox any more.
    pub(super) async fn release_ports(&mut self, id: &SandboxId) -> Result<(), StateError> {
        let sql = "DELETE FROM port_mappings WHERE sandbox_id = ?";
        self.run("release ports", sql, [id.as_str()]).map(drop)
    }
}
