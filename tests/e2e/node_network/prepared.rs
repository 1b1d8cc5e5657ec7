//! Networks that are made before a pod asks for one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::mended::dies;
use super::*;
use crate::support::faults::Faults;
use crate::support::is_soak;
use nix::sched::{CloneFlags, setns};

fn host_name(node: &Node, pod: &Guest) -> String {
    let pin = node
        .names
        .state()
        .join("sandboxes")
        .join(&pod.id)
        .join("ns/uts");
    let pin = File::open(pin).expect("a pinned namespace");
    let name = thread::spawn(move || {
        setns(&pin, CloneFlags::CLONE_NEWUTS).expect("root may");
        let name = nix::unistd::gethostname().expect("a name");
        name.into_string().expect("text")
    });
    name.join().expect("a thread")
}

#[tokio::test]
async fn a_pod_gets_a_network_that_was_prepared_with_all_that_is_its_own() {
    let lan = Lan::new(2);
    let node = with_prepared(&lan, 2).await;
    let waiting = node.waiting(2).await;
    let mut config = node.pod_config("first");
    config.hostname = "named".into();
    let sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "7"),
        ("net.ipv4.conf.eth0.arp_ignore", "1"),
    ];
    config.linux.get_or_insert_default().sysctls =
        HashMap::from(sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())));
    config.port_mappings = vec![port(Protocol::Tcp, "", 8080, 80)];
    let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
    assert!(waiting.contains(&id), "{id} is none of {waiting:?}");
    let first = Guest::of(&node, id).await;
    assert_eq!(first.addresses.len(), 2);
    assert_eq!(host_name(&node, &first), "named");
    let set = first
        .net
        .run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start"));
    assert_eq!(set.expect("a sysctl").trim(), "7");
    let mut config = node.pod_config("second");
    config.hostname.clear();
    let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
    let second = Guest::of(&node, id).await;
    let name: String = second.id.chars().take(12).collect();
    assert_eq!(host_name(&node, &second), name);
    let _servers = [
        first.net.serve(80, "first"),
        lan.hosts[1].serve(80, "outside"),
    ];
    for address in &first.addresses {
        let said = second.net.ask_tcp(SocketAddr::new(*address, 80));
        assert!(said.expect("the first pod").starts_with("first "));
    }
    let by_port = SocketAddr::new(crate::support::host::ipv4(1), 8080);
    assert_eq!(
        lan.hosts[1].ask_tcp(by_port).expect("a port"),
        "first 192.0.2.2"
    );
    let said = second
        .net
        .ask_tcp(SocketAddr::new(crate::support::host::ipv4(2), 80));
    assert_eq!(said.expect("outside"), "outside 192.0.2.1");
    // What shares the node's IPC namespace takes none, and others are made meanwhile.
    let waiting = node.waiting(2).await;
    let mut config = node.pod_config("third");
    crate::support::pod::namespaces(&mut config).ipc = NamespaceMode::Node as i32;
    let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
    assert!(!waiting.contains(&id), "{id} is one of {waiting:?}");
    let third = Guest::of(&node, id).await;
    let output = node.operate(&["check"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let output = node.operate(&["metrics"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("quilt_prepared_networks{state=\"ready\"} 2"),
        "{text}"
    );
    assert!(
        text.contains("quilt_pod_networks_total{source=\"prepared\"} 2"),
        "{text}"
    );
    for pod in [first, second, third] {
        pod.go(&node).await;
    }
    nothing_is_left(&lan, node);
}

#[tokio::test]
async fn prepared_networks_outlive_the_daemon_and_what_somebody_takes_from_them() {
    let lan = Lan::new(1);
    let host = &lan.hosts[0];
    let mut node = with_prepared(&lan, 2).await;
    let waiting = node.waiting(2).await;
    node.kill();
    for id in &waiting {
        host.remove_link(&format!("q{}", &id[..12]));
    }
    node.restart().await;
    assert_eq!(node.waiting(2).await, waiting);
    let pods = [
        Guest::run(&node, "one", vec![]).await,
        Guest::run(&node, "two", vec![]).await,
    ];
    for pod in &pods {
        assert!(
            waiting.contains(&pod.id),
            "{} is none of {waiting:?}",
            pod.id
        );
        let _server = pod.net.serve(80, "pod");
        let to = SocketAddr::new(pod.addresses[0], 80);
        assert!(host.ask_tcp(to).is_ok());
    }
    for pod in pods {
        pod.go(&node).await;
    }
    nothing_is_left(&lan, node);
}

/// Killed in between, too: what does not fit any more goes, with its address.
#[tokio::test]
async fn prepared_networks_follow_the_range_and_the_configuration() {
    let lan = Lan::new(1);
    let mut node = Node::prepare_on(&lan.hosts[0], "");
    node.prepare_networks(2);
    Faults::of(&mut node);
    node.restart().await;
    let former = node.waiting(2).await;
    let [_, _, c] = node.names.subnet;
    let range = format!("172.31.{c}.0/24");
    dies(&mut node, "prepared.dropped", async |node| {
        node.cri
            .update_runtime_config(&range)
            .await
            .expect("UpdateRuntimeConfig");
    })
    .await;
    let waiting = node.waiting(2).await;
    assert!(waiting.iter().all(|id| !former.contains(id)));
    let pod = Guest::run(&node, "new", vec![]).await;
    assert!(waiting.contains(&pod.id));
    let net: ipnet::IpNet = range.parse().expect("a network");
    assert!(net.contains(&pod.addresses[0]), "{:?}", pod.addresses);
    let former = node.waiting(2).await;
    node.kill();
    node.configure_network("mtu = 1400");
    node.restart().await;
    eventually("others are made", || async {
        let now = node.waiting(2).await;
        now.iter().all(|id| !former.contains(id)).then_some(())
    })
    .await;
    eventually("the former are gone", || async {
        let rows = node.column("SELECT address FROM network_allocations", "address");
        (rows.len() == 3).then_some(())
    })
    .await;
    pod.go(&node).await;
    nothing_is_left(&lan, node);
}

/// Few addresses: what is prepared keeps no pod from one.
#[tokio::test]
async fn every_address_of_a_small_range_goes_to_a_pod() {
    let lan = Lan::new(1);
    let mut node = Node::prepare_on(&lan.hosts[0], "");
    let path = node.path("config.toml");
    let text = fs::read_to_string(&path).expect("a configuration");
    let [a, b, c] = node.names.subnet;
    let text = text.replacen(&node.names.subnet(), &format!("{a}.{b}.{c}.0/28"), 1);
    fs::write(path, text).expect("a configuration");
    node.prepare_networks(8);
    node.restart().await;
    // An eighth of thirteen.
    node.waiting(1).await;
    let mut pods = Vec::new();
    for number in 0..13 {
        pods.push(Guest::run(&node, &format!("pod-{number}"), vec![]).await);
    }
    let mut addresses: Vec<_> = pods.iter().map(|pod| pod.addresses[0]).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 13);
    let status = node
        .cri
        .run_pod(&node.pod_config("late"))
        .await
        .expect_err("none is left");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(
        status.message().contains("of 13, 13 are in use"),
        "{status}"
    );
    for pod in pods {
        pod.go(&node).await;
    }
    nothing_is_left(&lan, node);
}

/// Pods come and go, some with a port, a limit or a policy, while networks are made for others;
/// afterwards nothing is left of any (1000 of them with `QUILT_SOAK=1`).
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_and_go_leave_nothing() {
    let pods = if is_soak() { 1000 } else { 32 };
    let lan = Lan::new(1);
    let node = Arc::new(with_prepared(&lan, 4).await);
    node.waiting(4).await;
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (node, next) = (Arc::clone(&node), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= pods {
                    return;
                }
                let asked = match number % 4 {
                    0 => ("kubernetes.io/egress-bandwidth", "10M"),
                    1 => ("network.quilt/egress", "192.0.2.2"),
                    _ => ("example.com/none", ""),
                };
                let mut config = annotated(&node, &format!("pod-{number}"), &[asked]);
                let number = i32::try_from(number).expect("few pods");
                config.port_mappings = vec![port(Protocol::Udp, "", 10_000 + number, 80)];
                let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
                Guest::of(&node, id).await.go(&node).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a pod");
    }
    let node = Arc::into_inner(node).expect("nobody else has it");
    node.waiting(4).await;
    eventually("links and addresses are those that wait", || async {
        let links = lan.hosts[0].links();
        let ours = links.iter().filter(|link| link.starts_with(['q', 'i']));
        let ours = ours.filter(|link| **link != node.names.bridge).count();
        let given = node.column("SELECT address FROM network_allocations", "address");
        (ours == 4 && given.len() == 4).then_some(())
    })
    .await;
    let output = node.operate(&["check"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    nothing_is_left(&lan, node);
}
