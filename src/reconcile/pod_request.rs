//! What plugins are told of a pod, as containerd and CRI-O tell it: `CNI_ARGS`, and the capability
//! arguments of which each plugin gets those it declares.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Back, ReconcileError};
use crate::lifecycle::address::{REQUESTED, Requested, parse_range};
use crate::lifecycle::bandwidth::Bandwidth;
use crate::lifecycle::hardware::{self, MAC};
use crate::lifecycle::port::host_ports;
use crate::lifecycle::spec::SandboxSpec;
use crate::network::cni;
use crate::state::node::POD_CIDR;
use crate::state::sandbox::Sandbox;

/// Bits that may go at once under a limit: as much as containerd and kubelet have always told.
const BURST: u32 = u32::MAX;

/// What was told when a pod was connected, and is told again when it is disconnected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Parameters {
    /// `CNI_ARGS`.
    pub(super) arguments: String,
    /// By capability.
    pub(super) capabilities: Map<String, Value>,
}

impl Parameters {
    /// What a sandbox asks for, and what kubelet has told of the node.
    pub(super) async fn of(back: &Back, sandbox: &Sandbox) -> Result<Self, ReconcileError> {
        let range = back.store.fact(POD_CIDR).await?;
        let range = range.and_then(|text| parse_range(&text).ok());
        let spec = &sandbox.spec;
        Ok(Self {
            arguments: arguments(spec, sandbox.id.as_str()).map_err(ReconcileError::Plugin)?,
            capabilities: capabilities(spec, &sandbox.hostname(), &range.unwrap_or_default()),
        })
    }

    /// What the pod asks for must not be lost on plugins that have no ear for it.
    pub(super) fn check(&self, list: &cni::NetworkList) -> Result<(), cni::CniError> {
        for (capability, what, why) in [
            (
                "ips",
                REQUESTED,
                "no plugin of the network has the capability ips",
            ),
            (
                "mac",
                MAC,
                "no plugin of the network has the capability mac",
            ),
        ] {
            if let Some(value) = self.capabilities.get(capability)
                && !list.has_capability(capability)
            {
                let value = value.to_string();
                return Err(cni::CniError::Argument { what, value, why });
            }
        }
        Ok(())
    }

    /// As the database keeps it.
    pub(super) fn to_text(&self) -> String {
        let capabilities = &self.capabilities;
        json!({ "arguments": self.arguments, "capabilities": capabilities }).to_string()
    }
}

fn arguments(spec: &SandboxSpec, id: &str) -> Result<String, cni::CniError> {
    cni::arguments(&[
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &spec.namespace),
        ("K8S_POD_NAME", &spec.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id),
        ("K8S_POD_UID", &spec.uid),
    ])
}

fn capabilities(spec: &SandboxSpec, hostname: &str, range: &[IpNet]) -> Map<String, Value> {
    let mut told = Map::new();
    let mut tell = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
    let ports = host_ports(spec).unwrap_or_default();
    if !ports.is_empty() {
        let ports = ports.iter().map(|port| {
            json!({
                "hostPort": port.port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_str(),
                "hostIP": port.address.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        });
        tell("portMappings", ports.collect());
    }
    // What cannot be read was refused by the front.
    let limits = Bandwidth::of(&spec.annotations).unwrap_or_default();
    if limits != Bandwidth::default() {
        let mut shaping = Map::new();
        for (way, rate) in [
            ("ingress", limits.ingress_bps),
            ("egress", limits.egress_bps),
        ] {
            if let Some(rate) = rate {
                shaping.insert(format!("{way}Rate"), rate.into());
                shaping.insert(format!("{way}Burst"), BURST.into());
            }
        }
        tell("bandwidth", shaping.into());
    }
    if let Some(dns) = &spec.dns {
        let (servers, searches, options) = (&dns.servers, &dns.searches, &dns.options);
        tell(
            "dns",
            json!({ "servers": servers, "searches": searches, "options": options }),
        );
    }
    if !range.is_empty() {
        // One set of ranges a family, each of one range: an address out of each.
        let sets = range
            .iter()
            .map(|net| json!([{ "subnet": net.to_string() }]));
        tell("ipRanges", sets.collect());
    }
    let addresses = Requested::of(&spec.annotations).unwrap_or_default();
    if addresses.is_any() {
        tell("ips", addresses.addresses().map(|ip| json!(ip)).collect());
    }
    if let Ok(Some(mac)) = hardware::requested(&spec.annotations) {
        tell("mac", mac.into());
    }
    tell("aliases", json!([hostname]));
    if !spec.cgroup_parent.is_empty() {
        tell("cgroupPath", spec.cgroup_parent.clone().into());
    }
    // The name under which containerd and CRI-O pass them on.
    tell("io.kubernetes.cri.pod-annotations", json!(spec.annotations));
    told
}
