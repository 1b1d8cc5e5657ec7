//! Ports of the node that lead to pods: which a pod asks for, and which cannot be side by side.

use std::fmt;
use std::net::IpAddr;

use super::spec::{NamespaceMode, PortMapping, SandboxSpec};
use super::stored_as_text;

stored_as_text! {
    /// A transport protocol.
    Protocol {
        /// RFC 9293.
        Tcp = "tcp",
        /// RFC 768.
        Udp = "udp",
        /// RFC 9260.
        Sctp = "sctp",
    }
}

impl Protocol {
    /// Its number in a packet.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// From CRI's `Protocol`.
    #[must_use]
    pub const fn from_cri(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Tcp),
            1 => Some(Self::Udp),
            2 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// A port of the node that leads to a port of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// By which protocol.
    pub protocol: Protocol,
    /// At which address of the node; `None` is every one, `0.0.0.0` and `::` every one of a family.
    pub address: Option<IpAddr>,
    /// The node's port.
    pub port: u16,
    /// The pod's port.
    pub container_port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = (self.protocol.as_str(), self.port);
        match self.address {
            None => write!(f, "{port}/{protocol}"),
            Some(address) => write!(f, "{}/{protocol}", std::net::SocketAddr::new(address, port)),
        }
    }
}

impl HostPort {
    /// Whether a packet could be meant for both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let addresses = match (self.address, other.address) {
            (None, _) | (_, None) => true,
            (Some(one), Some(two)) => {
                one == two
                    || (one.is_ipv4() == two.is_ipv4()
                        && (one.is_unspecified() || two.is_unspecified()))
            }
        };
        self.protocol == other.protocol && self.port == other.port && addresses
    }
}

/// The ports of the node that a pod asks for, each once. A pod in the node's network has its ports
/// there already, and asks for none.
///
/// # Errors
/// Two that meet and do not lead to the same port.
pub fn host_ports(spec: &SandboxSpec) -> Result<Vec<HostPort>, (HostPort, HostPort)> {
    let mut ports: Vec<HostPort> = Vec::new();
    if spec.network != NamespaceMode::Pod {
        return Ok(ports);
    }
    for port in spec.port_mappings.iter().filter_map(host_port) {
        if ports.contains(&port) {
            continue;
        }
        if let Some(other) = ports.iter().find(|other| other.meets(&port)) {
            return Err((*other, port));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn host_port(mapping: &PortMapping) -> Option<HostPort> {
    let port = |number: i32| u16::try_from(number).ok().filter(|port| *port != 0);
    Some(HostPort {
        protocol: Protocol::from_cri(mapping.protocol)?,
        address: mapping.host_ip.parse().ok(),
        port: port(mapping.host_port)?,
        container_port: port(mapping.container_port)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: &str, port: u16, container_port: u16) -> HostPort {
        HostPort {
            protocol: Protocol::Tcp,
            address: address.parse().ok(),
            port,
            container_port,
        }
    }

    #[test]
    fn ports_meet_where_a_packet_could_be_meant_for_both() {
        for (one, two, meet) in [
            ("", "", true),
            ("", "192.0.2.1", true),
            ("", "::", true),
            ("0.0.0.0", "192.0.2.1", true),
            ("0.0.0.0", "::", false),
            ("0.0.0.0", "2001:db8::1", false),
            ("::", "2001:db8::1", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
        ] {
            let (one, two) = (port(one, 80, 1), port(two, 80, 2));
            assert_eq!(
                (one.meets(&two), two.meets(&one)),
                (meet, meet),
                "{one} {two}"
            );
        }
        let udp = HostPort {
            protocol: Protocol::Udp,
            ..port("", 80, 1)
        };
        assert!(!udp.meets(&port("", 80, 1)));
        assert!(!port("", 81, 1).meets(&port("", 80, 1)));
    }

    #[test]
    fn a_pod_asks_for_each_port_once_and_for_none_in_the_nodes_network() {
        let mapping = |host_port, container_port| PortMapping {
            host_port,
            container_port,
            ..PortMapping::default()
        };
        let mut spec = SandboxSpec {
            port_mappings: vec![mapping(80, 8080), mapping(0, 9), mapping(80, 8080)],
            ..SandboxSpec::default()
        };
        assert_eq!(host_ports(&spec), Ok(vec![port("", 80, 8080)]));
        spec.port_mappings.push(mapping(80, 8081));
        assert!(host_ports(&spec).is_err());
        spec.network = NamespaceMode::Node;
        assert_eq!(host_ports(&spec), Ok(vec![]));
    }
}
