//! What a pod sees of the network: its address, its neighbours, the node, its names.

use crate::support::cri::*;
use crate::support::pod::{namespaces, shell};
use crate::support::wait::{BOUND, appears};
use crate::support::{Node, eventually};

/// Serves `text` over HTTP on port 8080 of the container's network.
fn server(name: &str, text: &str) -> ContainerConfig {
    let script =
        format!("mkdir -p /www && echo {text} > /www/index.html && exec httpd -f -p 8080 -h /www");
    shell(name, &script)
}

/// Fetches a page from inside a container; the server may still be starting.
async fn fetch(node: &Node, from: &str, address: &str) -> String {
    let url = format!("http://{address}/");
    // No `-T`: Debian's static busybox crashes on it.
    let command = ["wget", "-q", "-O", "-", url.as_str()];
    let last = std::cell::RefCell::new(String::new());
    let page = appears(BOUND, || {
        let answer = node.cri.exec(from, &command, 5);
        let last = &last;
        async move {
            let answer = match answer.await {
                Ok(answer) => answer,
                Err(error) => {
                    last.replace(error.to_string());
                    return None;
                }
            };
            last.replace(String::from_utf8_lossy(&answer.stderr).into_owned());
            (answer.exit_code == 0)
                .then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
        }
    });
    match page.await {
        Some(page) => page,
        None => panic!("{url} cannot be fetched: {}", last.borrow()),
    }
}

#[tokio::test]
async fn two_pods_reach_each_other_and_themselves() {
    let node = Node::start().await;
    let (left, right) = (node.pod("left").await, node.pod("right").await);
    let in_left = left.run(&server("web", "this-is-left")).await;
    let in_right = right.run(&server("web", "this-is-right")).await;
    let (left_ip, right_ip) = (left.ip().await, right.ip().await);
    assert_eq!(
        fetch(&node, &in_left, &format!("{right_ip}:8080")).await,
        "this-is-right"
    );
    assert_eq!(
        fetch(&node, &in_right, &format!("{left_ip}:8080")).await,
        "this-is-left"
    );
    assert_eq!(
        fetch(&node, &in_left, "127.0.0.1:8080").await,
        "this-is-left"
    );
    assert_eq!(
        fetch(&node, &in_left, &format!("{left_ip}:8080")).await,
        "this-is-left"
    );
}

#[tokio::test]
async fn a_pod_reaches_the_node_and_the_node_reaches_the_pod() {
    let node = Node::start().await;
    let pod = node.pod("guest").await;
    let web = pod.run(&server("web", "from-the-pod")).await;
    let pod_ip = pod.ip().await;

    let from_node = eventually("the pod answers the node", || async {
        let mut stream = std::net::TcpStream::connect((pod_ip.as_str(), 8080)).ok()?;
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n").ok()?;
        std::io::read_to_string(stream).ok()
    })
    .await;
    assert!(from_node.contains("from-the-pod"), "{from_node}");

    let route = node.cri.output(&web, "ip route").await;
    let gateway = route
        .split_whitespace()
        .skip_while(|word| *word != "via")
        .nth(1);
    let gateway = gateway.unwrap_or_else(|| panic!("no default route: {route}"));
    let listener = std::net::TcpListener::bind((gateway, 0)).expect("the bridge has the address");
    let port = listener.local_addr().expect("a bound socket").port();
    let asked = format!("echo hello | nc -w 3 {gateway} {port}");
    let command = ["sh", "-c", asked.as_str()];
    let (_, accepted) = tokio::join!(
        node.cri.exec(&web, &command, 10),
        tokio::task::spawn_blocking(move || {
            // The connection is closed here, which ends `nc`.
            listener.accept().expect("a connection").1.ip().to_string()
        })
    );
    assert_eq!(
        accepted.expect("the listener"),
        pod_ip,
        "the node sees the pod's own address"
    );
}

#[tokio::test]
async fn containers_of_one_pod_share_its_network_and_its_name() {
    let node = Node::start().await;
    let mut config = node.pod_config("together");
    config.hostname = "a-name-of-its-own".into();
    let pod = node.pod_from(config).await;
    pod.run(&server("web", "shared")).await;
    let other = pod.idle("other").await;
    assert_eq!(fetch(&node, &other, "localhost:8080").await, "shared");
    assert_eq!(
        node.cri.output(&other, "hostname").await,
        "a-name-of-its-own"
    );
    assert_eq!(
        node.cri.output(&other, "cat /etc/hostname").await,
        "a-name-of-its-own"
    );
    let hosts = node.cri.output(&other, "cat /etc/hosts").await;
    let own = hosts
        .lines()
        .find(|line| line.contains("a-name-of-its-own"));
    let ip = pod.ip().await;
    assert!(own.is_some_and(|line| line.starts_with(&ip)), "{hosts}");
}

#[tokio::test]
async fn the_resolver_is_what_the_pod_was_given() {
    let node = Node::start().await;
    let mut config = node.pod_config("resolver");
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.96.0.10".into(), "10.96.0.11".into()],
        searches: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
        options: vec!["ndots:5".into(), "edns0".into()],
    });
    let pod = node.pod_from(config).await;
    let id = pod.idle("main").await;
    let text = node.cri.output(&id, "cat /etc/resolv.conf").await;
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.contains(&"nameserver 10.96.0.10"), "{text}");
    assert!(lines.contains(&"nameserver 10.96.0.11"), "{text}");
    assert!(
        lines.contains(&"search default.svc.cluster.local cluster.local"),
        "{text}"
    );
    assert!(lines.contains(&"options ndots:5 edns0"), "{text}");
}

#[tokio::test]
async fn a_host_network_pod_lives_in_the_nodes_network() {
    let node = Node::start().await;
    let mut config = node.pod_config("host");
    config.hostname = String::new();
    namespaces(&mut config).network = NamespaceMode::Node as i32;
    let pod = node.pod_from(config).await;
    let id = pod.idle("main").await;
    let own = std::fs::read_link("/proc/self/ns/net").expect("a network namespace");
    let seen = node.cri.output(&id, "readlink /proc/self/ns/net").await;
    assert_eq!(seen, own.to_string_lossy());
    let status = node
        .cri
        .pod_status(&pod.id)
        .await
        .expect("PodSandboxStatus");
    let options = status
        .linux
        .and_then(|l| l.namespaces)
        .and_then(|n| n.options);
    assert_eq!(
        options.expect("namespace options").network(),
        NamespaceMode::Node
    );
}
