//! Who reaches whom, and under which address.

use std::net::SocketAddr;

use futures_util::{StreamExt, stream};

use super::*;
use crate::support::host::{Server, ask, ipv4, ipv6};
use crate::support::{is_soak, nft};

/// From everywhere a client can be, at once after RunPodSandbox, over both protocols and families.
#[tokio::test]
async fn a_port_of_the_node_leads_to_the_pod_from_everywhere() {
    let lan = Lan::new(2);
    let (node_host, outside) = (&lan.hosts[0], &lan.hosts[1]);
    let node = start(&lan).await;
    let ports = vec![
        port(Protocol::Tcp, "", 8080, 80),
        port(Protocol::Udp, "", 8080, 80),
        port(Protocol::Tcp, "192.0.2.1", 8081, 80),
        port(Protocol::Tcp, "127.0.0.1", 8082, 80),
        port(Protocol::Tcp, "::", 8083, 80),
        port(Protocol::Sctp, "", 8080, 80),
        port(Protocol::Tcp, "", 0, 80),
    ];
    let pod = Guest::run(&node, "web", ports).await;
    assert_eq!(pod.addresses.len(), 2, "{:?}", pod.addresses);
    let _server = pod.net.serve(80, "web");
    let other = Guest::run(&node, "other", vec![]).await;
    let gateway = {
        let status = node.names.subnet;
        IpAddr::from([status[0], status[1], status[2], 1])
    };
    for (address, client) in [(ipv4(1), ipv4(2)), (ipv6(1), ipv6(2))] {
        let to = SocketAddr::new(address, 8080);
        let expected = format!("web {client}");
        assert_eq!(outside.ask_tcp(to).expect("TCP from outside"), expected);
        assert_eq!(outside.ask_udp(to).expect("UDP from outside"), expected);
        let own = format!("web {address}");
        assert_eq!(node_host.ask_tcp(to).expect("TCP from the node"), own);
        assert_eq!(node_host.ask_udp(to).expect("UDP from the node"), own);
        // From pods by way of the node, so with the node's address; the pod itself is one of them.
        for (from, who) in [(&other, "another pod"), (&pod, "itself")] {
            for said in [from.net.ask_tcp(to), from.net.ask_udp(to)] {
                let said = said.unwrap_or_else(|error| panic!("{who} to {to}: {error}"));
                assert!(said.starts_with("web "), "{said}");
            }
        }
    }
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let said = format!("web {gateway}");
    assert_eq!(
        node_host.ask_tcp(loopback(8080)).expect("by loopback"),
        said
    );
    assert_eq!(
        node_host.ask_udp(loopback(8080)).expect("by loopback"),
        said
    );
    // A port of one address, and of one family.
    let at = |port| SocketAddr::new(ipv4(1), port);
    assert!(outside.ask_tcp(at(8081)).is_ok());
    assert!(node_host.ask_tcp(loopback(8081)).is_err());
    assert!(node_host.ask_tcp(loopback(8082)).is_ok());
    assert!(outside.ask_tcp(at(8082)).is_err());
    assert!(outside.ask_tcp(SocketAddr::new(ipv6(1), 8083)).is_ok());
    assert!(outside.ask_tcp(at(8083)).is_err());
    // Another port of the node is the node's.
    let _own = node_host.serve(9000, "node");
    assert_eq!(
        outside.ask_tcp(at(9000)).expect("the node"),
        "node 192.0.2.2"
    );
    pod.go(&node).await;
    assert!(outside.ask_tcp(at(8080)).is_err());
    other.go(&node).await;
}

#[tokio::test]
async fn a_pod_goes_out_under_the_nodes_address_and_to_pods_under_its_own() {
    let lan = Lan::new(3);
    let (outside, known) = (&lan.hosts[1], &lan.hosts[2]);
    let node = Node::prepare_on(&lan.hosts[0], "");
    node.configure_network("subnet6 = \"fd00:5:5::/64\"\nmasquerade_except = [\"192.0.2.3/32\"]");
    let mut node = node;
    node.restart().await;
    let (left, right) = (
        Guest::run(&node, "left", vec![]).await,
        Guest::run(&node, "right", vec![]).await,
    );
    let _servers = [
        outside.serve(80, "outside"),
        known.serve(80, "known"),
        right.net.serve(80, "right"),
        lan.hosts[0].serve(80, "node"),
    ];
    let ask = |to| left.net.ask_tcp(SocketAddr::new(to, 80));
    for address in [ipv4(2), ipv6(2)] {
        let seen = if address.is_ipv4() { ipv4(1) } else { ipv6(1) };
        assert_eq!(ask(address).expect("outside"), format!("outside {seen}"));
        let said = left.net.ask_udp(SocketAddr::new(address, 80));
        assert_eq!(said.expect("outside"), format!("outside {seen}"));
    }
    for (own, other) in left.addresses.iter().zip(&right.addresses) {
        assert_eq!(ask(*other).expect("the other pod"), format!("right {own}"));
    }
    for (own, address) in left.addresses.iter().zip([ipv4(1), ipv6(1)]) {
        assert_eq!(ask(address).expect("the node"), format!("node {own}"));
    }
    // Who knows the way back sees the pod itself.
    let [a, b, c] = node.names.subnet;
    let (IpAddr::V4(by), own) = (ipv4(1), left.addresses[0]) else {
        panic!("an IPv4 address");
    };
    known.route(([a, b, c, 0].into(), 24), by);
    assert_eq!(
        ask(ipv4(3)).expect("the known host"),
        format!("known {own}")
    );
    left.go(&node).await;
    right.go(&node).await;
}

/// CVE-2020-8558: with route_localnet on the bridge, a pod that sends to 127.0.0.1 by way of its
/// gateway would reach what the node serves there.
#[tokio::test]
async fn no_pod_reaches_the_nodes_loopback() {
    let lan = Lan::new(1);
    let host = &lan.hosts[0];
    let mut node = start(&lan).await;
    let pod = Guest::run(&node, "prying", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
    let secret = SocketAddr::from(([127, 0, 0, 1], 7000));
    let _server = host.serve_at(secret, "secret");
    let [a, b, c] = node.names.subnet;
    pod.net.sysctl("ipv4/conf/eth0/route_localnet", "1");
    pod.net.remove_address("lo", [127, 0, 0, 1].into(), 8);
    pod.net
        .route(([127, 0, 0, 0].into(), 8), [a, b, c, 1].into());
    assert!(
        pod.net.ask_tcp_in_vain(secret).is_err(),
        "the guard lets it by"
    );
    // The attempt is a real one: without the guard, it succeeds.
    node.kill();
    assert_eq!(nft::flush(host, &node.table(), Some("guard")), 0);
    assert!(pod.net.ask_tcp(secret).is_ok(), "the test is no attempt");
    node.restart().await;
    assert!(
        pod.net.ask_tcp_in_vain(secret).is_err(),
        "the guard was not put back"
    );
    pod.go(&node).await;
}

/// A client that never pauses keeps its UDP "connection"; it must not outlive the pod behind it.
#[tokio::test]
async fn a_udp_client_finds_the_pod_that_has_the_port_now() {
    let lan = Lan::new(2);
    let (host, outside) = (&lan.hosts[0], &lan.hosts[1]);
    let node = start(&lan).await;
    let ports = || vec![port(Protocol::Udp, "", 5353, 53)];
    for address in [ipv4(1), ipv6(1)] {
        let client = outside.udp_to(SocketAddr::new(address, 5353));
        {
            // Before there is a pod, the node itself answers, and the kernel remembers that.
            let _own = host.serve(5353, "node");
            let said = ask(&client).expect("the node's answer");
            assert!(said.starts_with("node "), "{said}");
        }
        let first = Guest::run(&node, "first", ports()).await;
        let server = first.net.serve(53, "first");
        let said = ask(&client).expect("the first pod's answer");
        assert!(said.starts_with("first "), "{said}");
        drop(server);
        node.cri.stop_pod(&first.id).await.expect("StopPodSandbox");
        // Stopped is enough: the port is another's at once.
        let second = Guest::run(&node, "second", ports()).await;
        let _server = second.net.serve(53, "second");
        let said = ask(&client).expect("the second pod's answer");
        assert!(said.starts_with("second "), "{said}");
        second.go(&node).await;
        first.go(&node).await;
    }
}

/// A full node: each port leads to its own pod, also while others come and go (250 pods with
/// `QUILT_SOAK=1`).
#[tokio::test(flavor = "multi_thread")]
async fn every_pod_of_a_full_node_has_its_port() {
    let count: u16 = if is_soak() { 250 } else { 24 };
    let lan = Lan::new(2);
    let node = start(&lan).await;
    let (node_too, outside) = (&node, &lan.hosts[1]);
    let mut pods: Vec<_> = stream::iter(0..count)
        .map(|number| async move {
            let ports = vec![port(Protocol::Tcp, "", i32::from(20_000 + number), 80)];
            let pod = Guest::run(node_too, &format!("pod-{number}"), ports).await;
            let server = pod.net.serve(80, &format!("pod-{number}"));
            (number, pod, server)
        })
        .buffer_unordered(20)
        .collect()
        .await;
    let at = |number: u16| SocketAddr::new(ipv4(1), 20_000 + number);
    let all_answer = |pods: &[(u16, Guest, Server)]| {
        for (number, _, _) in pods {
            let said = outside.ask_tcp(at(*number));
            let said = said.unwrap_or_else(|error| panic!("port of pod {number}: {error}"));
            assert_eq!(said, format!("pod-{number} 192.0.2.2"));
        }
    };
    all_answer(&pods);
    // Every other one goes, all at once.
    let (go, stay): (Vec<_>, Vec<_>) = pods.drain(..).partition(|(number, _, _)| number % 2 == 0);
    let gone = stream::iter(go)
        .map(|(number, pod, _)| async move {
            pod.go(node_too).await;
            number
        })
        .buffer_unordered(20);
    for number in gone.collect::<Vec<_>>().await {
        let closed = outside.ask_tcp(at(number));
        assert!(closed.is_err(), "port of pod {number}: {closed:?}");
    }
    all_answer(&stay);
    assert!(node.operate(&["check"]).status.success());
    let left = stream::iter(stay).map(|(_, pod, _)| pod.go(node_too));
    left.buffer_unordered(20).collect::<Vec<_>>().await;
}
