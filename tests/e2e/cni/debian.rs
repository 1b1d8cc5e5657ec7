//! Debian's plugins, chained: bridge, host-local, portmap, firewall, bandwidth.

use std::net::SocketAddr;
use std::process::Command;

use super::*;
use crate::support::host::{ipv4, ipv6};

impl Plugged {
    /// The cluster's network, as kubeadm's guides have it, in both families.
    fn cluster(&self, version: &str) -> Value {
        let [a, b, c] = self.node.names.subnet;
        let subnet = format!("{a}.{b}.{c}.0/24");
        json!({
            "cniVersion": version,
            "name": "cluster",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.node.path("leases"),
                        "ranges": [[{ "subnet": subnet }], [{ "subnet": "fd00:9:9::/64" }]],
                        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                    },
                },
                { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
                { "type": "firewall" },
                { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            ],
        })
    }

    async fn start_cluster(lan: &Lan, version: &str) -> Self {
        let mut plugged = Self::prepare(lan, "cni", "");
        plugged.network(&plugged.cluster(version));
        plugged.node.restart().await;
        plugged
    }

    /// Addresses that host-local has given out.
    fn leases(&self) -> Vec<String> {
        let dir = std::fs::read_dir(self.node.path("leases").join("cluster"));
        let entries = dir.into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.contains(['.', ':']) && !name.starts_with("last_"))
            .collect()
    }

    /// Waits until no lease and no interface of a pod is left on the host.
    async fn no_pod_is_left(&self, host: &Host) {
        eventually("no lease and no interface is left", || async {
            let links = host.links();
            let veth = links.iter().any(|link| link.starts_with("veth"));
            (self.leases().is_empty() && !veth).then_some(())
        })
        .await;
        self.nothing_is_held().await;
    }
}

fn port(host_port: i32, container_port: i32) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp as i32,
        container_port,
        host_port,
        host_ip: String::new(),
    }
}

#[tokio::test]
async fn pods_are_on_the_clusters_network_in_both_families() {
    let lan = Lan::new(2);
    let (host, outside) = (&lan.hosts[0], &lan.hosts[1]);
    let plugged = Plugged::start_cluster(&lan, "1.0.0").await;
    let node = &plugged.node;
    assert_eq!(plugged.network_problem().await, None);
    let mut config = node.pod_config("web");
    config.port_mappings = vec![port(8080, 80), port(0, 81)];
    let limit = "kubernetes.io/ingress-bandwidth".to_owned();
    config.annotations.insert(limit, "10M".into());
    let web = node.cri.run_pod(&config).await.expect("RunPodSandbox");
    let other = plugged.run("other").await;
    let addresses = plugged.addresses(&web).await;
    let others = plugged.addresses(&other).await;
    for pair in [&addresses, &others] {
        assert!(
            matches!(pair[..], [IpAddr::V4(_), IpAddr::V6(_)]),
            "{pair:?}"
        );
    }
    let _servers = [
        plugged.inside(&web).serve(80, "web"),
        plugged.inside(&other).serve(80, "other"),
        outside.serve(80, "outside"),
    ];
    let from = plugged.inside(&web);
    for (own, to) in addresses.iter().zip(&others) {
        let said = from
            .ask_tcp(SocketAddr::new(*to, 80))
            .expect("the other pod");
        assert_eq!(said, format!("other {own}"));
    }
    for (node_address, to) in [(ipv4(1), ipv4(2)), (ipv6(1), ipv6(2))] {
        let said = from.ask_tcp(SocketAddr::new(to, 80)).expect("outside");
        assert_eq!(said, format!("outside {node_address}"));
        let said = outside.ask_tcp(SocketAddr::new(node_address, 8080));
        assert!(said.expect("the node's port").starts_with("web "));
    }
    let said = from.ask_tcp(SocketAddr::from(([127, 0, 0, 1], 80)));
    assert!(said.expect("loopback is up").starts_with("web "));
    // The limit is the plugin's to keep; that it was told is seen in what it has made.
    let queues = host.run(|| Command::new("tc").args(["qdisc", "show"]).output());
    let queues = String::from_utf8_lossy(&queues.expect("tc runs").stdout).into_owned();
    assert!(queues.contains("rate 10Mbit"), "{queues}");
    let hosts = node
        .names
        .state()
        .join("sandboxes")
        .join(&web)
        .join("hosts");
    let hosts = std::fs::read_to_string(hosts).expect("the pod's file");
    assert!(hosts.contains(&addresses[0].to_string()), "{hosts}");
    assert!(
        !host.links().contains(&node.names.bridge),
        "no bridge of ours"
    );
    assert_eq!(plugged.leases().len(), 4);
    node.cri.stop_pod(&web).await.expect("StopPodSandbox");
    assert!(outside.ask_tcp(SocketAddr::new(ipv4(1), 8080)).is_err());
    assert_eq!(plugged.addresses(&web).await, Vec::<IpAddr>::new());
    node.cri.remove_pod(&web).await.expect("RemovePodSandbox");
    plugged.go(&other).await;
    plugged.no_pod_is_left(host).await;
}

#[tokio::test]
async fn pods_that_come_together_get_addresses_of_their_own() {
    let lan = Lan::new(1);
    let plugged = Plugged::start_cluster(&lan, "0.4.0").await;
    // Several at once trip over each other where Debian's plugins make their chains of iptables:
    // the first makes them alone.
    let first = plugged.run("pod-0").await;
    let names: Vec<_> = (1..8).map(|number| format!("pod-{number}")).collect();
    let others = names.iter().map(|name| plugged.run(name));
    let mut pods = futures_util::future::join_all(others).await;
    pods.push(first);
    let mut seen = std::collections::BTreeSet::new();
    for pod in &pods {
        for address in plugged.addresses(pod).await {
            assert!(seen.insert(address), "{address} twice");
        }
    }
    assert_eq!(seen.len(), 16);
    futures_util::future::join_all(pods.iter().map(|pod| plugged.go(pod))).await;
    plugged.no_pod_is_left(&lan.hosts[0]).await;
}

/// Each pod stays on the network it was made on, and is taken from it in the way it was put there.
#[tokio::test]
async fn pods_of_both_modes_live_side_by_side() {
    let lan = Lan::new(1);
    let host = &lan.hosts[0];
    let mut plugged = Plugged::prepare(&lan, "native", "");
    plugged.network(&plugged.cluster("1.0.0"));
    plugged.node.restart().await;
    let bridge = plugged.node.names.bridge.clone();
    let own = plugged.run("own").await;
    let server = plugged.inside(&own).serve(80, "own");
    plugged.node.terminate();
    // Both at once: the plugins' range must be another.
    plugged.configure_mode("cni", "");
    let mut network = plugged.cluster("1.0.0");
    network["plugins"][0]["ipam"]["ranges"] = json!([[{ "subnet": "10.79.0.0/24" }]]);
    plugged.network(&network);
    plugged.node.restart().await;
    let theirs = plugged.run("theirs").await;
    assert!(host.links().contains(&bridge), "the older pod needs it");
    let to = SocketAddr::new(plugged.addresses(&own).await[0], 80);
    assert!(host.ask_tcp(to).expect("the older pod").starts_with("own "));
    let address = plugged.addresses(&theirs).await[0].to_string();
    assert!(address.starts_with("10.79.0."), "{address}");
    drop(server);
    plugged.go(&own).await;
    plugged.node.terminate();
    plugged.configure_mode("native", "");
    plugged.node.restart().await;
    assert_eq!(plugged.addresses(&theirs).await[0].to_string(), address);
    let anew = plugged.run("anew").await;
    assert!(host.links().contains(&bridge));
    plugged.go(&theirs).await;
    plugged.no_pod_is_left(host).await;
    plugged.go(&anew).await;
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_needs_no_plugin() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "");
    plugged.node.restart().await;
    let mut config = plugged.node.pod_config("node");
    crate::support::pod::namespaces(&mut config).network = NamespaceMode::Node as i32;
    let pod = plugged.run_from(&config).await;
    assert_eq!(plugged.addresses(&pod).await, Vec::<IpAddr>::new());
}
