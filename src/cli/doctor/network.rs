//! What pods' networks are made of: tried in a network namespace of its own, with the daemon's own
//! steps, so that nothing of it is ever seen outside.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::probe::{Need, Node, Probe, always, apart, passing_name, whole};
use crate::network::cni::Directory;
use crate::network::{
    self, BridgeSpec, EgressPolicy, EgressRule, NamespaceSpec, Netfilter, NetworkError,
    NetworkMode, PodLinkSpec, RuleSpec, ShapingSpec,
};

const MARK: &str = "quilt:doctor";
const BRIDGE: &str = "qdoctor0";
const LINK: &str = "vdoctor0";
/// Addresses for documentation (RFC 5737, RFC 3849), which no node has.
const NET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const IPV6: &str = "2001:db8::1/64";

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "network.pods",
        what: "bridges and links of pods (bridge, veth)",
        need: Need::Required,
        costs: "no pod gets a network",
        mend: "a kernel with BRIDGE and VETH (modprobe bridge veth)",
        applies: native,
        look: |_| with_pod(|_| Ok(())),
    },
    Probe {
        name: "network.rules",
        what: "packet rules: masquerade, ports of the node, policies (nf_tables, conntrack)",
        need: Need::Required,
        costs: "pods reach nothing beyond the node, and no port leads to them",
        mend: "a kernel with NF_TABLES, NFT_NAT, NFT_MASQ, NF_CONNTRACK and NF_TABLES_BRIDGE, or \
               [network] masquerade and host_ports = false",
        applies: |node| {
            native(node) && (node.config.network.masquerade || node.config.network.host_ports)
        },
        look: |_| with_pod(|_| network::ensure_rules(&Netfilter::default(), &rules())),
    },
    Probe {
        name: "network.bandwidth",
        what: "bandwidth limits (tbf, ifb)",
        need: Need::Wanted,
        costs: "pods with the annotations kubernetes.io/ingress-bandwidth, egress-bandwidth fail",
        mend: "a kernel with NET_SCH_TBF, NET_SCH_INGRESS, NET_ACT_MIRRED and IFB",
        applies: native,
        look: |_| with_pod(|_| network::ensure_shaping(&shaping())),
    },
    Probe {
        name: "network.ipv6",
        what: "IPv6",
        need: Need::Required,
        costs: "no pod gets the network that is configured",
        mend: "a kernel with IPV6, booted without ipv6.disable=1; or no [network] subnet6",
        applies: |node| native(node) && node.config.network.subnet6.is_some(),
        look: |_| {
            apart(|| {
                enter()?;
                let net: Ipv6Net = IPV6.parse().map_err(|_| "no network")?;
                bridge(&[IpNet::V6(net)]).map_err(whole)?;
                Ok(String::new())
            })
        },
    },
    Probe {
        name: "network.range",
        what: "the pods' addresses are nobody else's",
        need: Need::Required,
        costs: "NetworkReady is false, or others cannot be reached",
        mend: "set [network] subnet to a range that is free (kubelet's --pod-cidr)",
        applies: native,
        look: range,
    },
    Probe {
        name: "network.bridged",
        what: "the node's firewall leaves frames between pods alone (br_netfilter is off)",
        need: Need::Wanted,
        costs: "a FORWARD policy of DROP cuts pods off from each other",
        mend: "sysctl net.bridge.bridge-nf-call-iptables=0, unless kube-proxy needs it",
        applies: native,
        look: |_| {
            let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            match fs::read_to_string(path) {
                Ok(text) if text.trim() == "1" => Err(format!("{path} is 1")),
                _ => Ok(String::new()),
            }
        },
    },
    Probe {
        name: "network.plugins",
        what: "a network of plugins, and their programs (CNI)",
        need: Need::Required,
        costs: "NetworkReady is false until there is one",
        mend: "put a configuration into [network] cni_conf_dir and the programs into cni_bin_dirs",
        applies: |node| node.config.network.mode == NetworkMode::Cni,
        look: plugins,
    },
    Probe {
        name: "network.forwarding",
        what: "the kernel can forward",
        need: Need::Required,
        costs: "pods reach nothing beyond the node",
        mend: "let /proc/sys/net be writable for the daemon",
        applies: always,
        look: |_| {
            apart(|| {
                enter()?;
                let written = fs::write("/proc/sys/net/ipv4/ip_forward", "1");
                written
                    .map(|()| String::new())
                    .map_err(|error| error.to_string())
            })
        },
    },
];

fn native(node: &Node) -> bool {
    node.config.network.mode != NetworkMode::Cni
}

/// The calling thread gets a network and a view of mounts that nobody shares.
fn enter() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| errno.to_string())?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|errno| errno.to_string())
}

fn bridge(others: &[IpNet]) -> Result<(), NetworkError> {
    network::ensure_bridge(&BridgeSpec {
        name: BRIDGE,
        gateway: Ipv4Net::new_assert(GATEWAY, NET.prefix_len()),
        others,
        mtu: 1500,
        alias: MARK,
    })
}

/// Makes a bridge and a pod on it, and tries something more.
fn with_pod(more: impl FnOnce(&Path) -> Result<(), NetworkError> + Send) -> Result<String, String> {
    let ground = tempdir()?;
    let tried = apart(|| {
        enter()?;
        // In this view of mounts alone, and so gone with the thread.
        let tried = pod(&ground).and_then(|()| more(&ground));
        let ended = network::remove_namespaces(&ground.join("ns"));
        tried.and(ended).map_err(whole)
    });
    let removed = fs::remove_dir_all(&ground).map_err(|error| error.to_string());
    tried.and_then(|()| removed.map(|()| String::new()))
}

fn tempdir() -> Result<std::path::PathBuf, String> {
    let path = std::env::temp_dir().join(passing_name());
    fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn pod(ground: &Path) -> Result<(), NetworkError> {
    bridge(&[])?;
    network::ensure_pin_directory(ground)?;
    let dir = ground.join("ns");
    network::ensure_namespaces(&NamespaceSpec {
        dir: &dir,
        net: true,
        ipc: true,
        hostname: Some("doctor"),
        sysctls: &[],
        users: None,
    })?;
    network::ensure_pod_link(&PodLinkSpec {
        netns: &dir.join("net"),
        host_name: LINK,
        pod_name: "eth0",
        bridge: BRIDGE,
        address: Ipv4Net::new_assert(ADDRESS, NET.prefix_len()),
        gateway: GATEWAY,
        ipv6: None,
        mtu: 1500,
        alias: MARK,
        sysctls: &[],
    })
}

fn rules() -> RuleSpec {
    RuleSpec {
        bridge: BRIDGE.into(),
        alias: MARK.into(),
        subnets: vec![IpNet::V4(NET)],
        direct: Vec::new(),
        masquerade: true,
        host_ports: true,
        forwards: Vec::new(),
        policies: vec![EgressPolicy {
            link: LINK.into(),
            rules: vec![EgressRule {
                net: IpNet::V4(NET),
                protocol: None,
                ports: None,
            }],
        }],
    }
}

fn shaping() -> ShapingSpec<'static> {
    ShapingSpec {
        host_name: LINK,
        alias: MARK,
        mtu: 1500,
        ingress_bps: Some(1_000_000),
        egress_bps: Some(1_000_000),
    }
}

/// A route through another interface to what would be pods' addresses (proc(5), `/proc/net/route`:
/// addresses are native integers in hexadecimal).
fn range(node: &Node) -> Result<String, String> {
    let config = &node.config.network;
    let routes = fs::read_to_string("/proc/net/route").map_err(|error| error.to_string())?;
    let other = routes.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| {
            let word = words.get(at)?;
            u32::from_str_radix(word, 16).ok()
        };
        let address = |number: u32| Ipv4Addr::from(number.to_ne_bytes());
        let mask = address(number(7)?);
        let net = Ipv4Net::with_netmask(address(number(1)?), mask).ok()?;
        let meets =
            net.contains(&config.subnet.network()) || config.subnet.contains(&net.network());
        let counts = net.prefix_len() > 0 && words[0] != config.bridge;
        (meets && counts).then(|| format!("{net} is routed through {}", words[0]))
    });
    match other {
        Some(other) => Err(other),
        None => Ok(config.subnet.to_string()),
    }
}

fn plugins(node: &Node) -> Result<String, String> {
    let config = &node.config.network;
    let found = Directory::look(&config.cni_conf_dir).and_then(|directory| directory.load());
    let Some(list) = found.map_err(whole)? else {
        return Err(format!(
            "{} has no configuration",
            config.cni_conf_dir.display()
        ));
    };
    for name in list.plugin_names() {
        let there = |dir: &std::path::PathBuf| dir.join(name).is_file();
        if !config.cni_bin_dirs.iter().any(there) {
            return Err(format!(
                "network {} needs {name}, which is nowhere",
                list.name
            ));
        }
    }
    Ok(list.name.clone())
}
