//! What somebody's hand, or a death of the daemon, takes away comes back.

use std::net::SocketAddr;

use super::*;
use crate::support::faults::Faults;
use crate::support::host::ipv4;
use crate::support::nft;

const WEB: u16 = 8080;

fn at_node() -> SocketAddr {
    SocketAddr::new(ipv4(1), WEB)
}

fn web() -> Vec<PortMapping> {
    vec![port(Protocol::Tcp, "", WEB.into(), 80)]
}

#[tokio::test]
async fn rules_that_are_taken_away_by_hand_are_put_back() {
    let lan = Lan::new(2);
    let (host, outside) = (&lan.hosts[0], &lan.hosts[1]);
    let node = start(&lan).await;
    let table = node.table();
    let pod = Guest::run(&node, "web", web()).await;
    let _servers = [pod.net.serve(80, "web"), outside.serve(80, "outside")];
    let out = SocketAddr::new(ipv4(2), 80);
    let by_hand: [&dyn Fn() -> i32; 4] = [
        &|| nft::delete_table(host, &table),
        &|| nft::flush(host, &table, None),
        &|| nft::flush(host, &table, Some("hostports")),
        &|| nft::empty_map(host, &table, "anyports4"),
    ];
    for take_away in by_hand {
        assert_eq!(take_away(), 0);
        says(outside, at_node(), "web 192.0.2.2").await;
        says(&pod.net, out, "outside 192.0.2.1").await;
    }
    pod.go(&node).await;
}

/// Only what somebody else has done is told and put back: a pod's own ports are its own.
#[tokio::test]
async fn pods_that_come_and_go_are_nobodys_hand() {
    let lan = Lan::new(1);
    let node = start(&lan).await;
    let told = || {
        let sql = "SELECT 'n=' || count(*) AS n FROM events WHERE kind = 'rules_mended'";
        let output = node.operate(&["db", "query", sql]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let after = text.split("n=").nth(1).unwrap_or_default().chars();
        after.take_while(char::is_ascii_digit).collect::<String>()
    };
    let lives = (0..6).map(|number| {
        let node = &node;
        async move {
            for life in 0..2 {
                let ports = vec![port(Protocol::Tcp, "", 9000 + number, 80)];
                let name = format!("pod-{number}-{life}");
                Guest::run(node, &name, ports).await.go(node).await;
            }
        }
    });
    futures_util::future::join_all(lives).await;
    let by_hand = nft::flush(&lan.hosts[0], &node.table(), None);
    assert_eq!(by_hand, 0);
    eventually("the hand is told of", || async {
        (told() == "1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_start_puts_rules_and_bridge_back() {
    let lan = Lan::new(2);
    let (host, outside) = (&lan.hosts[0], &lan.hosts[1]);
    let mut node = start(&lan).await;
    let pod = Guest::run(&node, "web", web()).await;
    let _server = pod.net.serve(80, "web");
    node.kill();
    assert_eq!(nft::delete_table(host, &node.table()), 0);
    host.remove_link(&node.names.bridge);
    host.sysctl("ipv4/ip_forward", "0");
    assert!(outside.ask_tcp(at_node()).is_err());
    node.restart().await;
    // The link hangs on no bridge until its pod has been looked at.
    says(outside, at_node(), "web 192.0.2.2").await;
    let loopback = SocketAddr::from(([127, 0, 0, 1], WEB));
    assert!(
        host.ask_tcp(loopback).is_ok(),
        "the bridge is not what it was"
    );
    pod.go(&node).await;
}

/// `quiltd check` finds what is wrong, and mends it.
#[tokio::test]
async fn a_check_finds_rules_and_bridge_that_are_gone() {
    let lan = Lan::new(2);
    let (host, outside) = (&lan.hosts[0], &lan.hosts[1]);
    let node = start(&lan).await;
    let pod = Guest::run(&node, "web", web()).await;
    let _server = pod.net.serve(80, "web");
    let check = |words: &[&str]| {
        let output = node.operate(words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    };
    let (whole, text) = check(&["check"]);
    assert!(whole, "{text}");
    host.sysctl("ipv4/ip_forward", "0");
    let (whole, text) = check(&["check"]);
    assert!(!whole && text.contains("does not forward"), "{text}");
    host.remove_link(&node.names.bridge);
    let (_, text) = check(&["check", "--repair"]);
    assert!(text.contains("bridge"), "{text}");
    says(outside, at_node(), "web 192.0.2.2").await;
    let (whole, text) = check(&["check"]);
    assert!(whole, "{text}");
    pod.go(&node).await;
}

/// Kills the daemon at a point of what `call` asks for, and starts it again.
pub(super) async fn dies(node: &mut Node, point: &str, call: impl AsyncFn(&Node)) {
    let file = node.path("faults");
    std::fs::write(&file, format!("{point}=abort*1")).expect("a file of the test");
    call(node).await;
    eventually("the daemon dies", || {
        let ended = node.ended();
        async move { ended }
    })
    .await;
    std::fs::write(&file, "").expect("a file of the test");
    node.restart().await;
}

/// The daemon dies between a step and the next: no port stays open for a pod that is gone, none is
/// missing for one that is there, and nobody else is kept from it.
#[tokio::test]
async fn a_death_between_two_steps_leaves_no_port_behind() {
    let lan = Lan::new(2);
    let outside = &lan.hosts[1];
    let mut node = Node::prepare_on(&lan.hosts[0], "");
    Faults::of(&mut node);
    node.restart().await;
    for dies_at in ["sandbox.link", "sandbox.network", "sandbox.ready"] {
        let config = PodSandboxConfig {
            port_mappings: web(),
            ..node.pod_config("web")
        };
        dies(&mut node, dies_at, async |node| {
            // It may have been answered just before.
            let _cut_off = node.cri.run_pod(&config).await;
        })
        .await;
        let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
        let pod = Guest::of(&node, id).await;
        {
            let _server = pod.net.serve(80, "web");
            assert_eq!(outside.ask_tcp(at_node()).expect(dies_at), "web 192.0.2.2");
        }
        pod.go(&node).await;
    }
    for dies_at in [
        "sandbox.stopping",
        "sandbox.ports_closed",
        "sandbox.stopped",
    ] {
        let pod = Guest::run(&node, "web", web()).await;
        dies(&mut node, dies_at, async |node| {
            let _cut_off = node.cri.stop_pod(&pod.id).await;
        })
        .await;
        node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        assert!(outside.ask_tcp(at_node()).is_err(), "{dies_at}");
        let (text, seen) = {
            let output = node.operate(&["check"]);
            (output.stdout, output.status.success())
        };
        assert!(seen, "{dies_at}: {}", String::from_utf8_lossy(&text));
        pod.go(&node).await;
    }
}

/// Nothing of ours is left on a node without pods.
#[tokio::test]
async fn the_table_goes_with_the_last_daemon() {
    let lan = Lan::new(1);
    let mut node = start(&lan).await;
    let pod = Guest::run(&node, "web", web()).await;
    node.terminate();
    node.restart().await;
    pod.go(&node).await;
    let table = node.table();
    nothing_is_left(&lan, node);
    assert_eq!(nft::delete_table(&lan.hosts[0], &table), -libc::ENOENT);
}
