//! Pod ranges that change under running pods: kubelet's, and the configuration's.

use std::net::SocketAddr;

use super::*;
use crate::support::host::{ipv4, ipv6};

/// Each reaches the other, the outside and its own port of the node.
fn all_reach_each_other(lan: &Lan, pods: &[&Guest]) {
    let outside = &lan.hosts[1];
    for pod in pods {
        for other in pods {
            for (own, to) in pod.addresses.iter().zip(&other.addresses) {
                let said = pod.net.ask_tcp(SocketAddr::new(*to, 80));
                let said = said.unwrap_or_else(|error| panic!("{own} to {to}: {error}"));
                assert_eq!(said, format!("pod {own}"));
            }
        }
        let seen = pod.net.ask_tcp(SocketAddr::new(ipv4(2), 80));
        assert_eq!(seen.expect("outside"), format!("outside {}", ipv4(1)));
    }
    for (index, _) in pods.iter().enumerate() {
        for address in [ipv4(1), ipv6(1)] {
            let port = 8080 + u16::try_from(index).expect("few pods");
            let said = outside.ask_tcp(SocketAddr::new(address, port));
            assert!(said.is_ok(), "{address} {port}: {said:?}");
        }
    }
}

fn within(pod: &Guest, nets: [&str; 2]) {
    for (address, net) in pod.addresses.iter().zip(nets) {
        let net: ipnet::IpNet = net.parse().expect("a network");
        assert!(net.contains(address), "{address} is not in {net}");
    }
}

#[tokio::test]
async fn kubelets_range_is_for_new_pods_and_old_ones_go_on() {
    let lan = Lan::new(2);
    let mut node = start(&lan).await;
    let web = |port: i32| vec![super::port(Protocol::Tcp, "", port, 80)];
    let old = Guest::run(&node, "old", web(8080)).await;
    let _outside = lan.hosts[1].serve(80, "outside");
    let _old = old.net.serve(80, "pod");
    let [_, b, c] = node.names.subnet;
    let (range4, range6) = (format!("172.31.{c}.0/24"), format!("fd00:6:{b}::/64"));
    let both = format!("{range4},{range6}");
    let told = node.cri.update_runtime_config(&both).await;
    told.expect("UpdateRuntimeConfig");
    let new = Guest::run(&node, "new", web(8081)).await;
    within(&new, [&range4, &range6]);
    let _new = new.net.serve(80, "pod");
    // The bridge gets its address a moment later than the first pod.
    let to = SocketAddr::new(ipv4(2), 80);
    says(&new.net, to, "outside 192.0.2.1").await;
    all_reach_each_other(&lan, &[&old, &new]);
    node.kill();
    node.restart().await;
    all_reach_each_other(&lan, &[&old, &new]);
    assert!(node.operate(&["check"]).status.success());
    for wrong in ["10.0.0.0/31", "10.0.0.0/24,10.1.0.0/24", "no network"] {
        let status = node.cri.update_runtime_config(wrong).await;
        let status = status.expect_err("not a range");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    }
    old.go(&node).await;
    new.go(&node).await;
}

#[tokio::test]
async fn a_changed_configuration_is_for_new_pods_and_old_ones_go_on() {
    let lan = Lan::new(2);
    let mut node = start(&lan).await;
    let web = |port: i32| vec![super::port(Protocol::Tcp, "", port, 80)];
    let old = Guest::run(&node, "old", web(8080)).await;
    let _outside = lan.hosts[1].serve(80, "outside");
    let _old = old.net.serve(80, "pod");
    node.terminate();
    let [_, _, c] = node.names.subnet;
    let (subnet, subnet6) = (format!("172.31.{c}.0/24"), "fd00:7:7::/64");
    let path = node.path("config.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let text = text.replacen(&node.names.subnet(), &subnet, 1);
    std::fs::write(&path, text.replacen("fd00:5:5::/64", subnet6, 1)).expect("a configuration");
    node.restart().await;
    let new = Guest::run(&node, "new", web(8081)).await;
    within(&new, [&subnet, subnet6]);
    let _new = new.net.serve(80, "pod");
    all_reach_each_other(&lan, &[&old, &new]);
    old.go(&node).await;
    new.go(&node).await;
}
