//! Addresses that pods ask for.

use super::*;

const ASKED: &str = "network.quilt/addresses";

fn asking(node: &Node, name: &str, addresses: &str) -> PodSandboxConfig {
    annotated(node, name, &[(ASKED, addresses)])
}

/// What is reserved, elsewhere or no address, and any address of a pod in the node's network.
async fn what_cannot_be_is_refused(node: &Node) {
    let [a, b, c] = node.names.subnet;
    let gateway = format!("{a}.{b}.{c}.1");
    for bad in [
        gateway.as_str(),
        "203.0.113.9",
        "x",
        "",
        "fd00:5:5::1",
        "fd00:6::1",
        "10.0.0.1/8",
    ] {
        unfit(node, &asking(node, "bad", bad), ASKED).await;
    }
    let mut config = asking(node, "host", "fd00:5:5::42");
    crate::support::pod::namespaces(&mut config).network = NamespaceMode::Node as i32;
    unfit(node, &config, ASKED).await;
}

#[tokio::test]
async fn a_pod_has_the_addresses_that_it_asks_for_and_nobody_else_has_them() {
    let lan = Lan::new(1);
    let mut node = start(&lan).await;
    let [a, b, c] = node.names.subnet;
    let (ipv4, ipv6) = (format!("{a}.{b}.{c}.77"), "fd00:5:5::77");
    let both = format!("{ipv4}, {ipv6}");
    let id = node
        .cri
        .run_pod(&asking(&node, "first", &both))
        .await
        .expect("RunPodSandbox");
    let first = Guest::of(&node, id).await;
    let shown: Vec<_> = first.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(shown, [ipv4.as_str(), ipv6]);
    node.kill();
    node.restart().await;
    for asked in [ipv4.as_str(), ipv6, both.as_str()] {
        let status = node
            .cri
            .run_pod(&asking(&node, "late", asked))
            .await
            .expect_err("held");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let text = status.message();
        assert!(
            text.contains("e2e/first") && text.contains(&first.id),
            "{text}"
        );
    }
    // One family alone: the other is chosen.
    let id = node
        .cri
        .run_pod(&asking(&node, "second", "fd00:5:5::99"))
        .await;
    let second = Guest::of(&node, id.expect("RunPodSandbox")).await;
    assert_eq!(second.addresses[1].to_string(), "fd00:5:5::99");
    what_cannot_be_is_refused(&node).await;
    first.go(&node).await;
    // Free as soon as its link is gone, and not before.
    let id = eventually("the address is free", || async {
        match node.cri.run_pod(&asking(&node, "again", &both)).await {
            Ok(id) => Some(id),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                None
            }
        }
    })
    .await;
    let again = Guest::of(&node, id).await;
    assert_eq!(again.addresses[0].to_string(), ipv4);
    again.go(&node).await;
    second.go(&node).await;
}

/// A network that waits with the very address becomes the pod's; one in the way makes room.
#[tokio::test]
async fn an_address_of_a_prepared_network_can_be_asked_for() {
    let lan = Lan::new(1);
    let node = with_prepared(&lan, 2).await;
    let waiting = node.waiting(2).await;
    let sql = "SELECT address FROM v_addresses WHERE status = 'prepared' ORDER BY address";
    let address = node.column(sql, "address").remove(0);
    let id = node
        .cri
        .run_pod(&asking(&node, "first", &address))
        .await
        .expect("RunPodSandbox");
    assert!(waiting.contains(&id), "{id} is none of {waiting:?}");
    let first = Guest::of(&node, id).await;
    assert_eq!(first.addresses[0].to_string(), address);
    node.waiting(2).await;
    let address = node.column(sql, "address").remove(0);
    let both = format!("{address},fd00:5:5::aaaa");
    let id = eventually("the network has made room", || async {
        match node.cri.run_pod(&asking(&node, "second", &both)).await {
            Ok(id) => Some(id),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                None
            }
        }
    })
    .await;
    let second = Guest::of(&node, id).await;
    assert_eq!(second.addresses[0].to_string(), address);
    assert_eq!(second.addresses[1].to_string(), "fd00:5:5::aaaa");
    first.go(&node).await;
    second.go(&node).await;
    nothing_is_left(&lan, node);
}
