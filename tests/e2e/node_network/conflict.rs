//! What two pods cannot both have: ports and addresses.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::*;
use crate::support::host::ipv4;
use crate::support::is_soak;
use crate::support::wait::{BOUND, eventually_within};

#[tokio::test]
async fn a_port_that_is_held_is_refused_by_the_name_of_its_holder() {
    let lan = Lan::new(2);
    let node = start(&lan).await;
    let first = Guest::run(&node, "holder", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
    let refused = [
        port(Protocol::Tcp, "", 8080, 81),
        port(Protocol::Tcp, "192.0.2.1", 8080, 81),
        port(Protocol::Tcp, "::", 8080, 81),
    ];
    for mapping in refused {
        let config = PodSandboxConfig {
            port_mappings: vec![mapping, port(Protocol::Tcp, "", 8090, 80)],
            ..node.pod_config("late")
        };
        let status = node.cri.run_pod(&config).await.expect_err("a conflict");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let text = status.message();
        assert!(
            text.contains("e2e/holder") && text.contains(&first.id),
            "{text}"
        );
        assert!(text.contains("8080/tcp"), "{text}");
    }
    // Nothing of the refused ones holds anything.
    let beside = vec![
        port(Protocol::Udp, "", 8080, 80),
        port(Protocol::Tcp, "", 8090, 80),
    ];
    let beside = Guest::run(&node, "beside", beside).await;
    // Its own two that meet are the request's mistake.
    let config = PodSandboxConfig {
        port_mappings: vec![
            port(Protocol::Tcp, "", 9000, 80),
            port(Protocol::Tcp, "192.0.2.1", 9000, 81),
        ],
        ..node.pod_config("torn")
    };
    let status = node.cri.run_pod(&config).await.expect_err("a conflict");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    // A pod in the node's network has its ports there, and asks for none.
    let mut config = PodSandboxConfig {
        port_mappings: vec![port(Protocol::Tcp, "", 8080, 8080)],
        ..node.pod_config("host")
    };
    crate::support::pod::namespaces(&mut config).network = NamespaceMode::Node as i32;
    node.cri.run_pod(&config).await.expect("RunPodSandbox");
    node.cri.stop_pod(&first.id).await.expect("StopPodSandbox");
    let next = Guest::run(&node, "next", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
    let _server = next.net.serve(80, "next");
    // The pod that is gone for good takes nothing along.
    first.go(&node).await;
    let to = SocketAddr::new(ipv4(1), 8080);
    assert_eq!(
        lan.hosts[1].ask_tcp(to).expect("the next pod"),
        "next 192.0.2.2"
    );
    next.go(&node).await;
    beside.go(&node).await;
}

/// Four addresses and many who want one: nobody gets one that another has, everybody gets one in
/// the end, and whoever is refused is told how many there are.
#[tokio::test(flavor = "multi_thread")]
async fn many_contend_for_few_addresses() {
    let contenders = if is_soak() { 100 } else { 25 };
    let lan = Lan::new(1);
    let mut node = Node::prepare_on(&lan.hosts[0], "");
    let path = node.path("config.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let [a, b, c] = node.names.subnet;
    let few = format!("{a}.{b}.{c}.0/29");
    let text = text.replacen(&node.names.subnet(), &few, 1);
    std::fs::write(path, text).expect("a configuration");
    node.restart().await;
    let standing = Guest::run(&node, "standing", vec![]).await;
    let node = Arc::new(node);
    let taken = Arc::new(std::sync::Mutex::new(HashSet::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..contenders {
        let (node, taken) = (Arc::clone(&node), Arc::clone(&taken));
        // Each waits for its turn, behind all others.
        let bound = BOUND * (1 + contenders / 10);
        tasks.spawn(async move {
            let config = node.pod_config(&format!("contender-{number}"));
            let id = eventually_within(bound, "an address is free", || async {
                match node.cri.run_pod(&config).await {
                    Ok(id) => Some(id),
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                        assert!(status.message().contains("of 5, "), "{status}");
                        None
                    }
                }
            })
            .await;
            let guest = Guest::of(&node, id).await;
            let address = guest.addresses[0];
            let new = taken.lock().expect("no panic").insert(address);
            assert!(new, "{address} was given out twice");
            node.cri.stop_pod(&guest.id).await.expect("StopPodSandbox");
            taken.lock().expect("no panic").remove(&address);
            node.cri
                .remove_pod(&guest.id)
                .await
                .expect("RemovePodSandbox");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a contender");
    }
    let node = Arc::into_inner(node).expect("all contenders are done");
    standing.go(&node).await;
}
