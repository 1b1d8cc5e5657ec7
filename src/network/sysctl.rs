//! Sysctls that belong to a pod: which namespace each lives in, and writing it there.
//!
//! Only namespaced ones are accepted. Anything else would be the node's, and is refused before a
//! file is opened (namespaces(7), ipc_namespaces(7); the list is Kubernetes' own).

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::error::NetworkError;
use super::link::ipv6_exists;

/// Longest value in bytes that makes sense: one page, which is what the kernel reads at most.
const MAX_VALUE_BYTES: usize = 4096;

/// The namespace that a sysctl belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SysctlScope {
    /// The network namespace.
    Network,
    /// One interface of the network namespace; it exists only after the interface does.
    Interface(String),
    /// The IPC namespace.
    Ipc,
}

/// A sysctl to set, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    name: String,
    /// Relative to `/proc/sys`.
    path: PathBuf,
    value: String,
    scope: SysctlScope,
}

impl Sysctl {
    /// Checks a name in either notation (`net.ipv4.ip_forward`, `net/ipv4/conf/eth0.7/rp_filter`)
    /// and its value. As sysctl(8) reads them: when the first separator is a slash, dots are
    /// part of names; otherwise dots separate, and a slash stands for a dot.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Invalid`] when the name has another form, is not namespaced, or the
    /// value has control characters.
    pub fn parse(name: &str, value: &str) -> Result<Self, NetworkError> {
        let invalid = |reason| NetworkError::Invalid {
            field: "sysctl",
            value: name.to_owned(),
            reason,
        };
        let parts = split(name).ok_or_else(|| invalid("not the name of a sysctl"))?;
        let scope =
            scope(&parts).ok_or_else(|| invalid("not a sysctl of a network or IPC namespace"))?;
        if value.len() > MAX_VALUE_BYTES || value.bytes().any(|b| b != b'\t' && b < b' ') {
            return Err(invalid("its value is too long or has control characters"));
        }
        let path = parts.iter().collect();
        Ok(Self {
            name: name.to_owned(),
            path,
            value: value.to_owned(),
            scope,
        })
    }

    /// Checks all, and keeps those of this interface.
    ///
    /// # Errors
    ///
    /// As [`Sysctl::parse`].
    pub(super) fn of_interface(
        sysctls: &[(String, String)],
        interface: &str,
    ) -> Result<Vec<Self>, NetworkError> {
        let mut own = Vec::new();
        for (name, value) in sysctls {
            let sysctl = Self::parse(name, value)?;
            if matches!(sysctl.scope(), SysctlScope::Interface(of) if of == interface) {
                own.push(sysctl);
            }
        }
        Ok(own)
    }

    /// Where it lives.
    #[must_use]
    pub fn scope(&self) -> &SysctlScope {
        &self.scope
    }

    /// Writes it in the calling thread's own namespaces, which is how the kernel resolves
    /// `/proc/sys`: by the thread that opens the file.
    pub(super) fn apply(&self) -> Result<(), NetworkError> {
        let path = Path::new("/proc/sys").join(&self.path);
        let written = OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(self.value.as_bytes()));
        written.map_err(|source| NetworkError::Sysctl {
            name: self.name.clone(),
            value: self.value.clone(),
            source,
        })
    }
}

/// Makes an interface of the calling thread's network namespace deaf to IPv6 router advertisements.
/// Any pod on the bridge can send them, and whoever believes one sends its traffic there
/// (CVE-2020-10749, CVE-2020-13401). Our interfaces are configured by us, so none is ever wanted.
pub(super) fn refuse_router_advertisements(interface: &str) -> Result<(), NetworkError> {
    if !ipv6_exists() {
        return Ok(());
    }
    let path = Path::new("/proc/sys/net/ipv6/conf")
        .join(interface)
        .join("accept_ra");
    std::fs::write(path, "0").map_err(|source| NetworkError::Sysctl {
        name: format!("net/ipv6/conf/{interface}/accept_ra"),
        value: "0".to_owned(),
        source,
    })
}

/// Makes an interface of the calling thread's network namespace take IPv6 addresses, its own too,
/// without asking around for duplicates first (ip-sysctl, `accept_dad`).
pub(super) fn prepare_for_ipv6(interface: &str) -> Result<(), NetworkError> {
    for name in ["disable_ipv6", "accept_dad"] {
        let name = format!("net/ipv6/conf/{interface}/{name}");
        let written = std::fs::write(Path::new("/proc/sys").join(&name), "0");
        written.map_err(|source| NetworkError::Sysctl {
            name,
            value: "0".to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Where the node's own settings are that pods' networks need.
const FORWARD_IPV4: &str = "net/ipv4/ip_forward";
const FORWARD_IPV6: &str = "net/ipv6/conf/all/forwarding";

/// Whether the node's packet rules see packets of this family that a bridge carries from one port
/// to another (`br_netfilter`).
pub(super) fn sees_bridged(family_of: IpNet) -> bool {
    is_on(match family_of {
        IpNet::V4(_) => "net/bridge/bridge-nf-call-iptables",
        IpNet::V6(_) => "net/bridge/bridge-nf-call-ip6tables",
    })
}

/// Lets the node pass on packets that are not its own: without that, nothing leaves or reaches the
/// pod network. Written only where it is not so yet.
pub(super) fn forward_packets(ipv6: bool) -> Result<(), NetworkError> {
    turn_on(FORWARD_IPV4)?;
    if ipv6 { turn_on(FORWARD_IPV6) } else { Ok(()) }
}

/// Whether [`forward_packets`] holds.
pub(super) fn forwards_packets(ipv6: bool) -> bool {
    is_on(FORWARD_IPV4) && (!ipv6 || is_on(FORWARD_IPV6))
}

/// Lets the bridge carry packets from 127.0.0.0/8: the node's own connections to a port of a pod,
/// until they get another source. To be turned on only behind a rule that keeps pods out.
pub(super) fn route_loopback(bridge: &str) -> Result<(), NetworkError> {
    turn_on(&route_localnet(bridge))
}

/// Whether [`route_loopback`] holds.
pub(super) fn routes_loopback(bridge: &str) -> bool {
    is_on(&route_localnet(bridge))
}

fn route_localnet(bridge: &str) -> String {
    format!("net/ipv4/conf/{bridge}/route_localnet")
}

fn is_on(name: &str) -> bool {
    let path = Path::new("/proc/sys").join(name);
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}

fn turn_on(name: &str) -> Result<(), NetworkError> {
    if is_on(name) {
        return Ok(());
    }
    let path = Path::new("/proc/sys").join(name);
    std::fs::write(path, "1").map_err(|source| NetworkError::Sysctl {
        name: name.to_owned(),
        value: "1".to_owned(),
        source,
    })
}

/// The parts of a name, or `None` when it could lead anywhere but to a file below `/proc/sys`.
fn split(name: &str) -> Option<Vec<String>> {
    let slashes = name
        .find(['.', '/'])
        .map(|at| name.as_bytes()[at] == b'/')?;
    let (separator, stands_for) = if slashes {
        ('/', None)
    } else {
        ('.', Some('/'))
    };
    let parts: Vec<String> = name
        .split(separator)
        .map(|part| match stands_for {
            Some(slash) => part.replace(slash, "."),
            None => part.to_owned(),
        })
        .collect();
    let sound = |part: &String| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b))
    };
    (name.len() <= 253 && parts.iter().all(sound)).then_some(parts)
}

fn scope(parts: &[String]) -> Option<SysctlScope> {
    const IPC: [&str; 9] = [
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
        "msgmax",
        "msgmnb",
        "msgmni",
        "msg_next_id",
    ];
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["net", _, "conf" | "neigh", name, _] if !["all", "default", "lo"].contains(name) => {
            Some(SysctlScope::Interface((*name).to_owned()))
        }
        ["net", _, ..] => Some(SysctlScope::Network),
        ["kernel", name] if IPC.contains(name) => Some(SysctlScope::Ipc),
        ["fs", "mqueue", _] => Some(SysctlScope::Ipc),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sysctl_knows_its_namespace() {
        let scope = |name| Sysctl::parse(name, "1").unwrap().scope().clone();
        assert_eq!(
            scope("net.ipv4.ip_unprivileged_port_start"),
            SysctlScope::Network
        );
        assert_eq!(scope("net/core/somaxconn"), SysctlScope::Network);
        assert_eq!(scope("net.ipv4.conf.all.rp_filter"), SysctlScope::Network);
        let eth0 = SysctlScope::Interface("eth0".into());
        assert_eq!(scope("net.ipv4.conf.eth0.rp_filter"), eth0);
        let vlan = SysctlScope::Interface("eth0.7".into());
        assert_eq!(scope("net/ipv4/conf/eth0.7/rp_filter"), vlan);
        assert_eq!(scope("net.ipv4.conf.eth0/7.rp_filter"), vlan);
        assert_eq!(scope("kernel.shm_rmid_forced"), SysctlScope::Ipc);
        assert_eq!(scope("fs.mqueue.msg_max"), SysctlScope::Ipc);
    }

    #[test]
    fn sysctls_of_the_node_are_refused() {
        for name in [
            "kernel.hostname",
            "kernel.core_pattern",
            "vm.swappiness",
            "fs.file-max",
            "net",
            "net.",
            "",
            "net/../kernel/core_pattern",
            "net.ipv4//../../kernel.x",
            "/net/ipv4/ip_forward",
            "net.ipv4.ip_forward\n",
            "net ipv4",
        ] {
            assert!(Sysctl::parse(name, "1").is_err(), "{name:?}");
        }
        assert!(Sysctl::parse("net.ipv4.ip_forward", "1\n0").is_err());
    }
}
