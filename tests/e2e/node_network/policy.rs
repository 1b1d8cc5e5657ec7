//! Pods that may send only what their policy allows, with real packets: past the bridge, by way of
//! the node, and to the node.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::mended::dies;
use super::*;
use crate::support::faults::Faults;
use crate::support::host::{ipv4, ipv6};
use crate::support::nft;

const EGRESS: &str = "network.quilt/egress";

async fn guarded(node: &Node, name: &str, policy: &str, ports: Vec<PortMapping>) -> Guest {
    let mut config = annotated(node, name, &[(EGRESS, policy)]);
    config.port_mappings = ports;
    let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
    Guest::of(node, id).await
}

fn cannot(from: &Guest, to: SocketAddr) {
    let said = from.net.ask_tcp_in_vain(to);
    assert!(said.is_err(), "{to} says {said:?}");
}

/// Over both protocols and families, past the bridge and by a port of the node.
fn whoever_asks_is_answered(lan: &Lan, pod: &Guest, other: &Guest) {
    let (host, stranger) = (&lan.hosts[0], &lan.hosts[2]);
    let to = |address, port| SocketAddr::new(address, port);
    for address in &pod.addresses {
        let to = to(*address, 80);
        for (from, who) in [(&other.net, "a pod"), (host, "the node")] {
            let said = from
                .ask_tcp(to)
                .unwrap_or_else(|error| panic!("{who}: {error}"));
            assert!(said.starts_with("guarded "), "{said}");
            let said = from
                .ask_udp(to)
                .unwrap_or_else(|error| panic!("{who}: {error}"));
            assert!(said.starts_with("guarded "), "{said}");
        }
    }
    for address in [ipv4(1), ipv6(1)] {
        let said = stranger
            .ask_tcp(to(address, 8080))
            .expect("by a port of the node");
        assert!(said.starts_with("guarded "), "{said}");
        let said = stranger
            .ask_udp(to(address, 8080))
            .expect("by a port of the node");
        assert!(said.starts_with("guarded "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_sends_what_its_policy_allows_and_answers_whoever_asks() {
    let lan = Lan::new(3);
    let (host, friend, stranger) = (&lan.hosts[0], &lan.hosts[1], &lan.hosts[2]);
    let node = start(&lan).await;
    let policy = "192.0.2.2 tcp/80, 192.0.2.2 udp/53-54\n2001:db8::2 tcp/80";
    let ports = vec![
        port(Protocol::Tcp, "", 8080, 80),
        port(Protocol::Udp, "", 8080, 80),
    ];
    let pod = guarded(&node, "guarded", policy, ports).await;
    let other = Guest::run(&node, "other", vec![]).await;
    let _servers = [
        friend.serve(80, "friend"),
        friend.serve(81, "friend"),
        friend.serve(53, "friend"),
        stranger.serve(80, "stranger"),
        pod.net.serve(80, "guarded"),
        other.net.serve(80, "other"),
        host.serve(80, "node"),
    ];
    let to = |address, port| SocketAddr::new(address, port);
    assert_eq!(
        pod.net.ask_tcp(to(ipv4(2), 80)).expect("allowed"),
        "friend 192.0.2.1"
    );
    assert_eq!(
        pod.net.ask_udp(to(ipv4(2), 53)).expect("allowed"),
        "friend 192.0.2.1"
    );
    let said = pod.net.ask_tcp(to(ipv6(2), 80)).expect("allowed");
    assert!(said.starts_with("friend "), "{said}");
    // By another port, to another host, by the other family, to the node, past the bridge.
    let [a, b, c] = node.names.subnet;
    let gateway = IpAddr::from([a, b, c, 1]);
    let forbidden = [
        to(ipv4(2), 81),
        to(ipv4(3), 80),
        to(ipv6(3), 80),
        to(gateway, 80),
        to(other.addresses[0], 80),
        to(other.addresses[1], 80),
    ];
    let asking = &pod;
    std::thread::scope(|scope| {
        for to in forbidden {
            scope.spawn(move || cannot(asking, to));
        }
    });
    whoever_asks_is_answered(&lan, &pod, &other);
    // Others are as free as before.
    assert!(other.net.ask_tcp(to(ipv4(3), 80)).is_ok());
    let output = node.operate(&["check"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    pod.go(&node).await;
    other.go(&node).await;
    assert!(node.operate(&["check"]).status.success());
}

/// It is there again after somebody's hand, and a conversation outlives the daemon.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_put_back_and_conversations_outlive_the_daemon() {
    let lan = Lan::new(2);
    let (host, outside) = (&lan.hosts[0], &lan.hosts[1]);
    let mut node = start(&lan).await;
    // An empty policy allows nothing.
    let pod = guarded(&node, "guarded", "", vec![]).await;
    let _server = outside.serve(80, "outside");
    let to = SocketAddr::new(ipv4(2), 80);
    cannot(&pod, to);
    let table = node.table();
    let chain = format!("from-q{}", &pod.id[..12]);
    let by_hand: [&dyn Fn() -> i32; 2] = [&|| nft::delete_policies(host, &table), &|| {
        nft::flush_policy(host, &table, &chain)
    }];
    for take_away in by_hand {
        assert_eq!(take_away(), 0);
        eventually("the policy is back", || async {
            pod.net.ask_tcp_in_vain(to).is_err().then_some(())
        })
        .await;
    }
    let listener = pod
        .net
        .run(|| TcpListener::bind("0.0.0.0:90").expect("a free port"));
    let at_pod = SocketAddr::new(pod.addresses[0], 90);
    let mut client = host.run(|| TcpStream::connect(at_pod).expect("the pod is asked"));
    let (mut served, _) = listener.accept().expect("a client");
    node.kill();
    node.restart().await;
    served.write_all(b"still there").expect("a connection");
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a socket");
    let mut said = [0; 11];
    client.read_exact(&mut said).expect("the pod's words");
    assert_eq!(&said, b"still there");
    cannot(&pod, to);
    pod.go(&node).await;
}

#[tokio::test]
async fn what_is_no_policy_is_refused_by_name() {
    let lan = Lan::new(1);
    let node = start(&lan).await;
    let long = vec!["10.0.0.0/8"; 300].join(",");
    for bad in [
        "deny",
        "10.0.0.1/8",
        "10.0.0.0/8 tcp/0",
        "10.0.0.0/8;drop",
        &long,
    ] {
        unfit(
            &node,
            &annotated(&node, "refused", &[(EGRESS, bad)]),
            EGRESS,
        )
        .await;
    }
    // In the node's network it could not be kept.
    let mut config = annotated(&node, "refused", &[(EGRESS, "")]);
    crate::support::pod::namespaces(&mut config).network = NamespaceMode::Node as i32;
    unfit(&node, &config, EGRESS).await;
}

/// The daemon dies between a step and the next: the policy is in force whenever the pod is up, and
/// gone with it.
#[tokio::test]
async fn a_death_between_two_steps_leaves_the_whole_policy_or_none() {
    let lan = Lan::new(2);
    let mut node = Node::prepare_on(&lan.hosts[0], "");
    Faults::of(&mut node);
    node.restart().await;
    let _server = lan.hosts[1].serve(80, "outside");
    let to = SocketAddr::new(ipv4(2), 80);
    for dies_at in ["sandbox.link", "sandbox.policy"] {
        let config = annotated(&node, "guarded", &[(EGRESS, "192.0.2.7")]);
        dies(&mut node, dies_at, async |node| {
            let _cut_off = node.cri.run_pod(&config).await;
        })
        .await;
        let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
        let pod = Guest::of(&node, id).await;
        cannot(&pod, to);
        assert!(node.operate(&["check"]).status.success(), "{dies_at}");
        dies(&mut node, "sandbox.ports_closed", async |node| {
            let _cut_off = node.cri.stop_pod(&pod.id).await;
        })
        .await;
        pod.go(&node).await;
        assert!(node.operate(&["check"]).status.success(), "{dies_at}");
    }
}
