//! The node among other hosts: ports that lead to pods, pods that go out, both families, and what
//! somebody's hand takes away. Each test has a little network of its own; the daemon runs on one of
//! its hosts, and real packets go.

mod addresses;
mod beside;
mod conflict;
mod interrupted;
mod limited;
mod measure;
mod mended;
mod policy;
mod prepared;
mod range;
mod reach;
mod sctp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tonic::Code;

use crate::support::cri::*;
use crate::support::host::{Host, Lan};
use crate::support::{Node, eventually, operator};

/// A daemon that answers on the first host.
async fn start(lan: &Lan) -> Node {
    with_prepared(lan, 0).await
}

/// The same with so many networks prepared.
async fn with_prepared(lan: &Lan, count: usize) -> Node {
    let mut node = Node::prepare_on(&lan.hosts[0], "");
    node.configure_network("subnet6 = \"fd00:5:5::/64\"");
    node.prepare_networks(count);
    node.restart().await;
    node
}

/// Nothing of ours is left on a host after its daemon's end.
fn nothing_is_left(lan: &Lan, mut node: Node) {
    assert!(node.terminate().success());
    assert_eq!(lan.hosts[0].links(), ["lo", "eth0"]);
}

/// What kubelet would send for a pod with these annotations.
fn annotated(node: &Node, name: &str, annotations: &[(&str, &str)]) -> PodSandboxConfig {
    let mut config = node.pod_config(name);
    let annotations = annotations.iter();
    let annotations = annotations.map(|(name, value)| ((*name).into(), (*value).into()));
    config.annotations.extend(annotations);
    config
}

/// A pod that cannot have what this annotation asks for: refused by its name, before anything.
async fn unfit(node: &Node, config: &PodSandboxConfig, annotation: &str) {
    let asked = &config.annotations[annotation];
    let status = node.cri.run_pod(config).await.expect_err(asked);
    assert_eq!(status.code(), Code::InvalidArgument, "{asked}: {status}");
    assert!(status.message().contains(annotation), "{asked}: {status}");
}

impl Node {
    /// Adds lines to the section `[network]`.
    fn configure_network(&self, lines: &str) {
        let path = self.path("config.toml");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        let text = text.replacen("[network]\n", &format!("[network]\n{lines}\n"), 1);
        std::fs::write(path, text).expect("a configuration");
    }

    /// Has so many networks prepared; for a daemon that has not been started yet.
    pub(crate) fn prepare_networks(&self, count: usize) {
        let path = self.path("config.toml");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        let text = text.replacen("prepared = 0", &format!("prepared = {count}"), 1);
        std::fs::write(path, text).expect("a configuration");
    }

    /// Waits until so many networks wait for a pod; their ids.
    async fn waiting(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} networks wait"), || async {
            let sql = "SELECT id FROM prepared_networks WHERE ready_at IS NOT NULL ORDER BY id";
            let ids = self.column(sql, "id");
            (ids.len() == count).then_some(ids)
        })
        .await
    }

    /// One column of what a query says.
    pub(crate) fn column(&self, sql: &str, name: &str) -> Vec<String> {
        operator::column(&self.ask(&["db", "query", sql]), name)
    }

    /// The table of packet rules.
    fn table(&self) -> String {
        format!("quilt-{}", self.names.bridge)
    }
}

/// A pod without containers; the test itself serves and asks in its network.
struct Guest {
    id: String,
    addresses: Vec<IpAddr>,
    net: Arc<Host>,
}

impl Guest {
    async fn run(node: &Node, name: &str, ports: Vec<PortMapping>) -> Self {
        let config = PodSandboxConfig {
            port_mappings: ports,
            ..node.pod_config(name)
        };
        let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
        Self::of(node, id).await
    }

    async fn of(node: &Node, id: String) -> Self {
        let status = node.cri.pod_status(&id).await.expect("PodSandboxStatus");
        let network = status.network.expect("a network status");
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        let addresses = [network.ip].into_iter().chain(more);
        let pin = node
            .names
            .state()
            .join("sandboxes")
            .join(&id)
            .join("ns/net");
        Self {
            addresses: addresses
                .map(|ip| ip.parse().expect("an address"))
                .collect(),
            net: Host::at(&pin),
            id,
        }
    }

    async fn go(self, node: &Node) {
        node.cri.stop_pod(&self.id).await.expect("StopPodSandbox");
        node.cri
            .remove_pod(&self.id)
            .await
            .expect("RemovePodSandbox");
    }
}

/// A port of the node that should lead to a port of a pod.
fn port(protocol: Protocol, host_ip: &str, host_port: i32, container_port: i32) -> PortMapping {
    PortMapping {
        protocol: protocol as i32,
        container_port,
        host_port,
        host_ip: host_ip.into(),
    }
}

/// Waits until a TCP server behind an address says this.
async fn says(from: &Host, to: SocketAddr, expected: &str) {
    eventually(&format!("{to} says {expected:?}"), || async {
        (from.ask_tcp(to).ok()? == expected).then_some(())
    })
    .await;
}
