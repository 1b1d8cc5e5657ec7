//! Sessions and probes of pods with a user namespace of their own: what the daemon does in a pod's
//! place it does there as root of the node, and what comes of it belongs to the pod.

use std::io::Write;
use std::net::Ipv4Addr;

use super::attach::{Attached, parrot};
use super::port_forward::{Forward, echo_backwards, exchange, listen};
use super::{TRANSPORTS, noise};
use crate::support::pod::{container, exited, security, shell};
use crate::support::streaming::{ends, read_until};
use crate::support::{Node, cri::*, eventually, log, process};
use crate::user_namespace::{inside, pod};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_other_users_is_attached_to_with_and_without_a_terminal() {
    let node = Node::start().await;
    let pod = pod(&node, "attached").await;
    let config = inside(parrot("plain"));
    let id = pod.run(&config).await;
    for transport in TRANSPORTS {
        let mut session = Attached::start(&node, transport, &id);
        session.say(transport).await;
        while session.line().await != format!("heard {transport}") {}
        session.end().await;
    }
    let shown = log::contents(&pod.log(&config), "stdout");
    assert_eq!(shown, TRANSPORTS.map(|name| format!("heard {name}")));
    for transport in TRANSPORTS {
        let mut config = inside(container(transport, &["sh"]));
        (config.tty, config.stdin) = (true, true);
        let id = pod.run(&config).await;
        let arguments = ["attach", "-r", transport, "-it", &id];
        let (mut child, mut terminal) = node.crictl_on_terminal(&arguments);
        let shown = tokio::task::spawn_blocking(move || {
            // The terminal is the pod's root's, who may open it again by its name.
            let script = "until [ \"$(stty size)\" = '30 100' ]; do :; done; \
                          echo $(tty) re''ady $(stat -c %u $(tty)) > $(tty)\n";
            terminal.write_all(script.as_bytes()).expect("written");
            let shown = read_until(&mut terminal, "ready 0");
            terminal.write_all(b"exit\n").expect("written");
            ends(&mut child);
            shown
        });
        let shown = shown.await.expect("the terminal was read");
        assert!(shown.contains("ready 0"), "{transport}: {shown}");
        exited(&node.cri, &id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_of_other_users_are_forwarded() {
    let node = Node::start().await;
    let pod = pod(&node, "forwarded").await;
    let listener = listen(&node, &pod, Ipv4Addr::LOCALHOST.into());
    let port = listener.local_addr().expect("an address").port();
    echo_backwards(listener);
    // One of the pod's own processes as well.
    let config = inside(container(
        "server",
        &["nc", "-ll", "-p", "8080", "-e", "id"],
    ));
    let id = pod.run(&config).await;
    eventually("the server listens", || async {
        let asked = node.cri.exec(&id, &["nc", "127.0.0.1", "8080"], 5).await;
        asked
            .is_ok_and(|said| !said.stdout.is_empty())
            .then_some(())
    })
    .await;
    let bytes = noise(1 << 20);
    for transport in TRANSPORTS {
        let forward = Forward::by_crictl(&node, &pod, transport, port).await;
        let mut back = exchange(forward.connect().await, &bytes).await;
        back.reverse();
        assert!(back == bytes, "{transport}: other bytes");
        forward.end().await;
        let forward = Forward::by_crictl(&node, &pod, transport, 8080).await;
        let said = exchange(forward.connect().await, b"").await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.starts_with("uid=0(root)"), "{transport}: {said}");
        forward.end().await;
    }
}

/// As kubelet's probes ask: many at once, one that fails, one that never ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_other_users_is_probed() {
    let node = Node::start().await;
    let pod = pod(&node, "probed").await;
    let script = "trap 'exit 0' TERM; echo ok > /tmp/health; while :; do sleep 0.05; done";
    let mut config = inside(shell("main", script));
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let id = pod.run(&config).await;
    eventually("it is healthy", || async {
        let healthy = node.cri.exec(&id, &["cat", "/tmp/health"], 5).await;
        (healthy.expect("ExecSync").stdout == b"ok\n").then_some(())
    })
    .await;
    let probes = (0..20).map(async |code| {
        let script = format!("id -u; exit {code}");
        let answer = node.cri.exec(&id, &["sh", "-c", &script], 10).await;
        let answer = answer.expect("ExecSync");
        assert_eq!(
            (answer.exit_code, answer.stdout),
            (code, b"1000\n".to_vec())
        );
    });
    futures_util::future::join_all(probes).await;
    let script = "trap '' TERM; sleep 87654 & sleep 87654";
    let error = node.cri.exec(&id, &["sh", "-c", script], 1).await;
    let error = error.expect_err("over its time");
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    eventually("the command and its child are gone", || async {
        let left = process::of_containers(&node.names, "87654");
        left.is_empty().then_some(())
    })
    .await;
    assert_eq!(node.cri.output(&id, "cat /tmp/health").await, "ok");
}
