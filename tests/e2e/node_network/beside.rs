//! Beside packet rules of others: Docker's, kube-proxy's in the modes that write rules, and
//! firewalld's, as those programs leave them, in front of ours and behind them. Whatever is a pod's
//! goes on as without them, as far as they do not drop it; what they do for others goes on as well;
//! and neither side changes a rule of the other.

use std::net::SocketAddr;

use super::*;
use crate::support::host::{Server, ipv4, ipv6};
use crate::support::{nft, rules};

const DOCKER: &str = include_str!("../fixtures/rules/docker.iptables");
const KUBE_PROXY: [(&str, &str); 2] = [
    (
        "iptables",
        include_str!("../fixtures/rules/kube-proxy.iptables"),
    ),
    ("nftables", include_str!("../fixtures/rules/kube-proxy.nft")),
];
const FIREWALLD: &str = include_str!("../fixtures/rules/firewalld.nft");
const PORT: u16 = 8080;
/// The services of kube-proxy's rules, and the node port of the first.
const WEB_SERVICE: [u8; 4] = [10, 96, 0, 20];
const PAIR_SERVICE: [u8; 4] = [10, 96, 0, 21];
const EMPTY_SERVICE: [u8; 4] = [10, 96, 0, 22];
const NODE_PORT: u16 = 30080;

/// A node with two pods, one of which has a port of the node; everybody serves at port 80.
struct Scene {
    lan: Lan,
    node: Node,
    web: Guest,
    other: Guest,
    _servers: [Server; 4],
}

impl Scene {
    async fn on(lan: Lan) -> Self {
        let node = start(&lan).await;
        let ports = vec![
            port(Protocol::Tcp, "", PORT.into(), 80),
            port(Protocol::Udp, "", PORT.into(), 80),
        ];
        let web = Guest::run(&node, "web", ports).await;
        let other = Guest::run(&node, "other", vec![]).await;
        let servers = [
            web.net.serve(80, "web"),
            other.net.serve(80, "other"),
            lan.hosts[0].serve(80, "node"),
            lan.hosts[1].serve(80, "outside"),
        ];
        Self {
            lan,
            node,
            web,
            other,
            _servers: servers,
        }
    }

    fn host(&self) -> &Host {
        &self.lan.hosts[0]
    }

    fn outside(&self) -> &Host {
        &self.lan.hosts[1]
    }

    /// What the host's rules are, apart from ours.
    fn theirs(&self) -> String {
        rules::all_but(self.host(), &self.node.table())
    }

    /// Ports of the node, from everywhere: all that comes to a pod by an address that is not its.
    fn ports_lead_to_the_pod(&self, who: &str) {
        for address in [ipv4(1), ipv6(1)] {
            let to = SocketAddr::new(address, PORT);
            let clients: [(&str, &Host); 4] = [
                ("outside", self.outside()),
                ("the node", self.host()),
                ("another pod", &self.other.net),
                ("the pod itself", &self.web.net),
            ];
            for (from, client) in clients {
                for said in [client.ask_tcp(to), client.ask_udp(to)] {
                    let said = said.unwrap_or_else(|e| panic!("{who}: {from} to {to}: {e}"));
                    assert!(said.starts_with("web "), "{who}: {from} to {to}: {said}");
                }
            }
        }
        let loopback = SocketAddr::from(([127, 0, 0, 1], PORT));
        let said = self.host().ask_tcp(loopback);
        let said = said.unwrap_or_else(|error| panic!("{who}: by loopback: {error}"));
        assert!(said.starts_with("web "), "{who}: {said}");
    }

    /// Everything of pods.
    fn pods_work(&self, who: &str) {
        self.ports_lead_to_the_pod(who);
        let web_net = &self.web.net;
        let gets = |said: std::io::Result<String>, wanted: String| {
            let said = said.unwrap_or_else(|error| panic!("{who}: not {wanted:?}: {error}"));
            assert_eq!(said, wanted, "{who}");
        };
        let families = [(ipv4(1), ipv4(2)), (ipv6(1), ipv6(2))];
        let pods = self.web.addresses.iter().zip(&self.other.addresses);
        for ((web, other), (node, outside)) in pods.zip(families) {
            for (to, wanted) in [
                (*other, format!("other {web}")),
                (outside, format!("outside {node}")),
            ] {
                let to = SocketAddr::new(to, 80);
                gets(web_net.ask_tcp(to), wanted.clone());
                gets(web_net.ask_udp(to), wanted);
            }
            let said = web_net.ask_tcp(SocketAddr::new(node, 80));
            gets(said, format!("node {web}"));
            let said = self.host().ask_tcp(SocketAddr::new(*web, 80));
            assert!(said.expect(who).starts_with("web "), "{who}");
        }
    }

    async fn end(self) {
        let Self {
            node, web, other, ..
        } = self;
        web.go(&node).await;
        other.go(&node).await;
    }
}

/// Docker's FORWARD policy drops what it does not know. A table of ours cannot accept what another
/// drops: the operator says once what passes, where Docker keeps such rules over its restarts.
#[tokio::test(flavor = "multi_thread")]
async fn beside_docker_pods_work_once_its_policy_lets_them() {
    let lan = Lan::new(2);
    let network = [[172, 17, 0, 1].into(), [172, 17, 0, 2].into()];
    let theirs = rules::host_behind(&lan.hosts[0], "docker0", network);
    let _server = theirs.serve(80, "docker");
    rules::load_iptables(&lan.hosts[0], DOCKER);
    let scene = Scene::on(lan).await;
    let before = scene.theirs();
    // It drops by IPv4 alone, and nothing that the node itself sends.
    let at_port = |address| SocketAddr::new(address, PORT);
    assert!(scene.outside().ask_tcp_in_vain(at_port(ipv4(1))).is_err());
    assert!(scene.outside().ask_tcp(at_port(ipv6(1))).is_ok());
    assert!(scene.host().ask_tcp(at_port(ipv4(1))).is_ok());
    let bridge = scene.node.names.bridge.clone();
    for way in ["-i", "-o"] {
        let rule = ["-I", "DOCKER-USER", way, &bridge, "-j", "ACCEPT"];
        rules::iptables(scene.host(), &rule);
    }
    scene.pods_work("Docker");
    let published = SocketAddr::new(ipv4(1), 8888);
    let said = scene.outside().ask_tcp(published);
    assert_eq!(said.expect("Docker's port"), "docker 192.0.2.2");
    let said = theirs.ask_tcp(SocketAddr::new(ipv4(2), 80));
    assert_eq!(said.expect("outside"), "outside 192.0.2.1");
    let said = scene.web.net.ask_tcp(published);
    assert!(said.expect("Docker's port").starts_with("docker "));
    // It begins anew, with rules of its own alone: what the operator allows is his to keep.
    rules::load_iptables(scene.host(), DOCKER);
    assert_eq!(
        scene.theirs(),
        before,
        "no rule of theirs was ours to change"
    );
    assert!(scene.host().ask_tcp(at_port(ipv4(1))).is_ok());
    scene.end().await;
}

impl Scene {
    /// Rules with this scene's addresses in them.
    fn filled_in(&self, text: &str) -> String {
        let [web, other] = [&self.web, &self.other].map(|pod| pod.addresses[0].to_string());
        text.replace("@WEB@", &web)
            .replace("@OTHER@", &other)
            .replace("@SUBNET@", &self.node.names.subnet())
    }

    fn load(&self, mode: &str, text: &str) {
        let text = self.filled_in(text);
        match mode {
            "iptables" => rules::load_iptables(self.host(), &text),
            _ => rules::load_nft(self.host(), &text),
        }
    }

    /// Services: pods are asked under their own address, whoever is outside under the node's.
    fn services_work(&self, mode: &str) {
        let service = |service: [u8; 4]| SocketAddr::from((service, 80));
        let gets = |from: &Host, to: SocketAddr, wanted: &str| {
            let said = from.ask_tcp(to);
            let said = said.unwrap_or_else(|error| panic!("{mode}: {to}: {error}"));
            assert!(said.starts_with(wanted), "{mode}: {to}: {said}");
        };
        let other = &self.other.net;
        let own = format!("web {}", self.other.addresses[0]);
        gets(other, service(WEB_SERVICE), &own);
        // A pod that asks for itself hears itself, by way of the node.
        gets(&self.web.net, service(WEB_SERVICE), "web ");
        gets(self.host(), service(WEB_SERVICE), "web ");
        gets(self.outside(), SocketAddr::new(ipv4(1), NODE_PORT), "web ");
        gets(other, SocketAddr::new(ipv4(1), NODE_PORT), "web ");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let said = self.host().ask_tcp(service(PAIR_SERVICE));
            let said = said.unwrap_or_else(|error| panic!("{mode}: {error}"));
            seen.extend(said.split(' ').next().map(str::to_owned));
        }
        assert_eq!(seen.len(), 2, "{mode}: {seen:?}");
        let refused = other.ask_tcp(service(EMPTY_SERVICE)).expect_err(mode);
        let refused = refused.kind();
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_kube_proxy_pods_and_services_work_whoever_came_first() {
    let scenes = KUBE_PROXY.map(|(mode, text)| async move {
        let lan = Lan::new(2);
        // As a node's default route: without any, nothing leaves it for a service.
        lan.hosts[0].route(([10, 96, 0, 0].into(), 16), [192, 0, 2, 2].into());
        let mut scene = Scene::on(lan).await;
        scene.load(mode, text);
        let before = scene.theirs();
        scene.services_work(mode);
        scene.pods_work(mode);
        // The next daemon makes its table anew, so that theirs is the older one.
        scene.node.kill();
        assert_eq!(nft::delete_table(scene.host(), &scene.node.table()), 0);
        scene.node.restart().await;
        scene.services_work(mode);
        scene.pods_work(mode);
        // A node whose rules do not see what is bridged: the answer must come by way of it.
        for family in ["iptables", "ip6tables"] {
            let name = format!("bridge/bridge-nf-call-{family}");
            scene.host().sysctl(&name, "0");
        }
        scene.node.operate(&["check", "--repair"]);
        let service = SocketAddr::from((WEB_SERVICE, 80));
        let said = scene.other.net.ask_tcp(service);
        assert!(said.expect(mode).starts_with("web "), "{mode}");
        scene.ports_lead_to_the_pod(mode);
        assert_eq!(scene.theirs(), before, "{mode}: no rule of theirs changed");
        scene.end().await;
    });
    futures_util::future::join_all(scenes).await;
}

/// firewalld lets pass what ports lead elsewhere. What pods send is a matter of the zone that their
/// bridge is in.
#[tokio::test(flavor = "multi_thread")]
async fn beside_firewalld_ports_work_and_pods_once_their_bridge_is_trusted() {
    let lan = Lan::new(2);
    let filled_in = |input: &str, forward: &str| {
        FIREWALLD
            .replace("@TRUSTED@", input)
            .replace("@FORWARD_TRUSTED@", forward)
    };
    rules::load_nft(&lan.hosts[0], &filled_in("", ""));
    let scene = Scene::on(lan).await;
    scene.ports_lead_to_the_pod("firewalld");
    let outside = SocketAddr::new(ipv4(2), 80);
    assert!(scene.web.net.ask_tcp(outside).is_err(), "it is not trusted");
    // `firewall-cmd --reload` with the bridge in the zone `trusted`; some flush all rules with it.
    let bridge = &scene.node.names.bridge;
    let trusted = filled_in(
        &format!("iifname \"{bridge}\" goto filter_IN_trusted"),
        &format!("iifname \"{bridge}\" goto filter_FWD_trusted"),
    );
    let ours_is_back = || async {
        let said = scene.outside().ask_tcp(SocketAddr::new(ipv4(1), PORT));
        said.is_ok().then_some(())
    };
    for reload in ["flush ruleset", "delete table inet firewalld"] {
        rules::load_nft(scene.host(), &format!("{reload}\n{trusted}"));
        eventually("our rules are back", ours_is_back).await;
        scene.pods_work("firewalld, trusted");
    }
    scene.end().await;
}
