//! The network part of the configuration file.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::error::NetworkError;
use super::link;

/// Where pods get their addresses from and how they are connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// The bridge that pods are attached to, at most 15 bytes. It is created when absent.
    pub bridge: String,
    /// The pods' addresses. The first one is the bridge's own, and the pods' gateway.
    pub subnet: Ipv4Net,
    /// The pods' IPv6 addresses; without it they get none. The first one is the bridge's own.
    pub subnet6: Option<Ipv6Net>,
    /// Largest packet in bytes on the bridge and the pods' interfaces.
    pub mtu: u32,
    /// Whether what pods send beyond the pod network gets the node's address.
    pub masquerade: bool,
    /// Networks beside the pod network that pods reach with their own address.
    pub masquerade_except: Vec<IpNet>,
    /// Whether ports of the node lead to pods that ask for them.
    pub host_ports: bool,
    /// How long an address that has come back is not given out again, in seconds.
    pub address_rest_s: u64,
    /// How many networks are made before a pod asks for one; 0 is none.
    pub prepared: u32,
    /// Who connects pods.
    pub mode: NetworkMode,
    /// Directory of the plugins' network configurations; the first file by name counts.
    pub cni_conf_dir: PathBuf,
    /// Directories of the plugins' programs; the first one that has a program counts.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Longest time that one call of a plugin may take, in seconds.
    pub cni_timeout_s: u64,
    /// Time between two checks of a pod, and between two collections of what is stale, in seconds;
    /// 0 is never.
    pub cni_verify_s: u64,
}

/// Who connects pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The daemon itself.
    #[default]
    Native,
    /// Plugins (CNI).
    Cni,
    /// Plugins as long as there is a configuration for them, else the daemon itself.
    Auto,
}

/// Each costs the kernel some 200 kB and two interfaces.
const PREPARED_MAX: u32 = 1000;

/// An hour.
const REST_MAX_S: u64 = 3600;
/// Most directories of programs.
const BIN_DIRS_MAX: usize = 16;

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            bridge: "quilt0".to_owned(),
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 0), 16),
            subnet6: None,
            mtu: 1500,
            masquerade: true,
            masquerade_except: Vec::new(),
            host_ports: true,
            address_rest_s: 10,
            prepared: 8,
            mode: NetworkMode::Native,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_timeout_s: 60,
            cni_verify_s: 1800,
        }
    }
}

impl NetworkConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Invalid`], which names the key as it is in the file.
    pub fn validate(&self) -> Result<(), NetworkError> {
        link::validate_name("network.bridge", &self.bridge)?;
        validate_subnet(self.subnet)?;
        if let Some(subnet) = self.subnet6 {
            validate_subnet6(subnet)?;
        }
        if self.address_rest_s > REST_MAX_S {
            return Err(NetworkError::Invalid {
                field: "network.address_rest_s",
                value: self.address_rest_s.to_string(),
                reason: "must be at most 3600",
            });
        }
        if self.prepared > PREPARED_MAX {
            return Err(NetworkError::Invalid {
                field: "network.prepared",
                value: self.prepared.to_string(),
                reason: "must be at most 1000",
            });
        }
        self.validate_cni()?;
        validate_mtu("network.mtu", self.mtu)
    }

    fn validate_cni(&self) -> Result<(), NetworkError> {
        let refused = |field, value: String, reason| {
            Err(NetworkError::Invalid {
                field,
                value,
                reason,
            })
        };
        if !(1..=600).contains(&self.cni_timeout_s) {
            let value = self.cni_timeout_s.to_string();
            return refused("network.cni_timeout_s", value, "must be between 1 and 600");
        }
        let shown = |path: &PathBuf| path.display().to_string();
        if !self.cni_conf_dir.is_absolute() {
            let value = shown(&self.cni_conf_dir);
            return refused("network.cni_conf_dir", value, "must be an absolute path");
        }
        let field = "network.cni_bin_dirs";
        // Plugins get them as one list, parted by colons.
        let unfit = |path: &&PathBuf| !path.is_absolute() || shown(path).contains(':');
        if let Some(path) = self.cni_bin_dirs.iter().find(unfit) {
            let reason = "must be absolute paths without colons";
            return refused(field, shown(path), reason);
        }
        if !(1..=BIN_DIRS_MAX).contains(&self.cni_bin_dirs.len()) {
            let value = self.cni_bin_dirs.len().to_string();
            return refused(field, value, "must be 1 to 16 directories");
        }
        Ok(())
    }

    /// [`Self::address_rest_s`] in nanoseconds.
    #[must_use]
    pub fn address_rest_ns(&self) -> i64 {
        i64::try_from(self.address_rest_s.saturating_mul(1_000_000_000)).unwrap_or(i64::MAX)
    }

    /// The bridge's address: the first one of the subnet.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Net {
        let first = u32::from(self.subnet.network()).saturating_add(1);
        Ipv4Net::new(Ipv4Addr::from(first), self.subnet.prefix_len()).unwrap_or(self.subnet)
    }
}

fn validate_subnet(subnet: Ipv4Net) -> Result<(), NetworkError> {
    let network = subnet.network();
    let reason = if subnet.addr() != network {
        "bits are set beyond the prefix length"
    } else if !(8..=29).contains(&subnet.prefix_len()) {
        "the prefix length must be between 8 and 29"
    } else if network.is_loopback() || network.is_multicast() || network.octets()[0] == 0 {
        "pods cannot have such addresses"
    } else {
        return Ok(());
    };
    let field = "network.subnet";
    Err(NetworkError::Invalid {
        field,
        value: subnet.to_string(),
        reason,
    })
}

fn validate_subnet6(subnet: Ipv6Net) -> Result<(), NetworkError> {
    let network = subnet.network();
    let reason = if subnet.addr() != network {
        "bits are set beyond the prefix length"
    } else if !(32..=120).contains(&subnet.prefix_len()) {
        "the prefix length must be between 32 and 120"
    } else if network.octets()[0] == 0 || network.is_multicast() || network.is_unicast_link_local()
    {
        "pods cannot have such addresses"
    } else {
        return Ok(());
    };
    Err(NetworkError::Invalid {
        field: "network.subnet6",
        value: subnet.to_string(),
        reason,
    })
}

/// 1280 is the least that IPv6 works with (RFC 8200 §5); 65535 the most a veth takes.
pub(super) fn validate_mtu(field: &'static str, mtu: u32) -> Result<(), NetworkError> {
    let reason = "must be between 1280 and 65535";
    (1280..=65535)
        .contains(&mtu)
        .then_some(())
        .ok_or(NetworkError::Invalid {
            field,
            value: mtu.to_string(),
            reason,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_its_gateway_is_the_first_address() {
        let config = NetworkConfig::default();
        config.validate().unwrap();
        assert_eq!(config.gateway().to_string(), "10.88.0.1/16");
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<NetworkConfig>("brigde = 'x'").is_err());
        let config: NetworkConfig = toml::from_str("subnet = '10.9.0.0/24'").unwrap();
        assert_eq!(
            (config.gateway().to_string().as_str(), config.mtu),
            ("10.9.0.1/24", 1500)
        );
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for subnet in [
            "10.88.0.1/16",
            "10.0.0.0/30",
            "0.0.0.0/8",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "0.0.0.0/0",
        ] {
            let config = NetworkConfig {
                subnet: subnet.parse().unwrap(),
                ..NetworkConfig::default()
            };
            assert!(config.validate().is_err(), "{subnet}");
        }
        for subnet6 in [
            "fd00::1/64",
            "fe80::/64",
            "ff02::/64",
            "::/64",
            "fd00::/16",
            "fd00::/121",
        ] {
            let config = NetworkConfig {
                subnet6: subnet6.parse().ok(),
                ..NetworkConfig::default()
            };
            assert!(config.validate().is_err(), "{subnet6}");
        }
        assert!(
            NetworkConfig {
                mtu: 500,
                ..NetworkConfig::default()
            }
            .validate()
            .is_err()
        );
        for text in [
            "cni_timeout_s = 0",
            "cni_timeout_s = 601",
            "cni_conf_dir = 'net.d'",
            "cni_bin_dirs = []",
            "cni_bin_dirs = ['bin']",
            "cni_bin_dirs = ['/a:b']",
        ] {
            let config: NetworkConfig = toml::from_str(text).unwrap();
            assert!(config.validate().is_err(), "{text}");
        }
        assert!(toml::from_str::<NetworkConfig>("mode = 'flannel'").is_err());
        let bridge = "far-too-long-a-name".to_owned();
        assert!(
            NetworkConfig {
                bridge,
                ..NetworkConfig::default()
            }
            .validate()
            .is_err()
        );
    }
}
