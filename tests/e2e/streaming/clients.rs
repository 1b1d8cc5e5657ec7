//! Kubernetes' own client libraries. Go's, as kubectl uses it: over SPDY, over a WebSocket, and
//! over a WebSocket that is refused on its way, so that it falls back to SPDY. Python's, which
//! speaks WebSockets alone.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::noise;
use super::port_forward::{
    Forward, echo_backwards, exchange, forward_ports_url, forward_url, listen,
};
use crate::support::streaming::TRANSFER_BOUND;
use crate::support::wait::in_time_within;
use crate::support::{Node, is_soak};

const TRANSPORTS: [&str; 3] = ["spdy", "websocket", "fallback"];

/// The program of `hack/critest/sessions`.
fn sessions(arguments: &[&str]) -> Command {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/hack/critest/bin/sessions");
    let program = PathBuf::from(built);
    assert!(program.is_file(), "`make deps` builds {built}");
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// The program of `hack/python`.
fn python(arguments: &[&str]) -> Command {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/hack/python/bin/python3");
    assert!(program.is_file(), "`make deps` makes {}", program.display());
    let mut command = Command::new(program);
    command.arg(root.join("hack/python/sessions.py"));
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Runs a client with an input; its outputs and its code.
async fn with_input(mut command: Command, bytes: &[u8]) -> std::process::Output {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("its input");
    let typing = async {
        stdin.write_all(bytes).await.expect("it reads");
        drop(stdin);
    };
    let both = async { tokio::join!(typing, child.wait_with_output()).1 };
    let output = in_time_within(TRANSFER_BOUND, "the session ends", both).await;
    output.expect("it has run")
}

/// What clients run.
const SCRIPT: &str = "cat; echo to stderr >&2; exit 3";

/// A client that runs [`SCRIPT`] has all of it: every byte, what was said, and the code.
async fn gives_back(client: Command, bytes: &[u8], name: &str) {
    let output = with_input(client, bytes).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout == bytes, "{name}: other bytes: {errors}");
    assert_eq!(errors, "to stderr\n", "{name}");
    assert_eq!(output.status.code(), Some(3), "{name}");
}

fn bytes() -> Vec<u8> {
    noise(if is_soak() { 100 << 20 } else { 2 << 20 })
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_get_what_is_typed_and_give_back_all_they_say_and_their_code() {
    let node = Node::start().await;
    let pod = node.pod("library").await;
    let id = pod.idle("main").await;
    let bytes = bytes();
    for transport in TRANSPORTS {
        let url = node.exec_url(&id, &["sh", "-c", SCRIPT], false).await;
        gives_back(sessions(&["exec", transport, &url]), &bytes, transport).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_forwarded() {
    let node = Node::start().await;
    let pod = node.pod("library").await;
    let listener = listen(&node, &pod, std::net::Ipv4Addr::LOCALHOST.into());
    let port = listener.local_addr().expect("an address").port();
    echo_backwards(listener);
    let bytes = bytes();
    for transport in TRANSPORTS {
        let url = forward_url(&node, &pod).await;
        let port = port.to_string();
        let forward = Forward::start(sessions(&["forward", transport, &url, &port])).await;
        let mut back = exchange(forward.connect().await, &bytes).await;
        back.reverse();
        assert!(back == bytes, "{transport}: other bytes");
        forward.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_library_for_python_runs_commands_and_reaches_ports() {
    let node = Node::start().await;
    let pod = node.pod("python").await;
    let id = pod.idle("main").await;
    let bytes = bytes();
    let url = node.exec_url(&id, &["sh", "-c", SCRIPT], false).await;
    gives_back(python(&["exec", &url]), &bytes, "python").await;
    // Its port-forward has no half-close: the pod's side knows how much comes.
    let listener = listen(&node, &pod, std::net::Ipv4Addr::LOCALHOST.into());
    let port = listener.local_addr().expect("an address").port();
    let length = bytes.len();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut came = vec![0; length];
        stream.read_exact(&mut came).await.expect("received");
        came.reverse();
        stream.write_all(&came).await.expect("sent");
    });
    let url = forward_ports_url(&node, &pod, &[port]).await;
    let command = python(&["forward", &url, &port.to_string()]);
    let mut output = with_input(command, &bytes).await;
    output.stdout.reverse();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout == bytes, "other bytes: {errors}");
    assert!(output.status.success(), "{errors}");
}
