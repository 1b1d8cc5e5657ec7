//! The metrics page: readable, complete, and true.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use tonic::Code;

use crate::support::database::WriteLock;
use crate::support::pod::shell;
use crate::support::prometheus::Page;
use crate::support::{Node, eventually};

/// A node with an endpoint on a port that was free a moment ago.
async fn node() -> (Node, SocketAddr) {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let mut node = Node::prepare(&format!("[metrics]\nlisten = \"{address}\"\n"));
    node.spawn();
    node.answers().await;
    (node, address)
}

/// One request on a connection of its own: head and body of the answer.
fn ask(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("the endpoint listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a bound");
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

fn page(address: SocketAddr) -> Page {
    let (head, body) = ask(address, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Page::read(&body)
}

/// Every metric that the documentation has a row for.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("the documentation");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_counts_what_was_done() {
    let (node, address) = node().await;
    let pod = node.pod("counted").await;
    let id = pod.idle("one").await;
    pod.idle("two").await;
    pod.run_to_end(&shell("short", "exit 3")).await;
    let absent = node.cri.status(&"f".repeat(64)).await;
    assert_eq!(
        absent.expect_err("no such container").code(),
        Code::NotFound
    );
    node.cri.exec(&id, &["true"], 20).await.expect("ExecSync");

    let page = page(address);
    let calls = |endpoint, code| {
        let labels = [("endpoint", endpoint), ("code", code)];
        page.get("api_request_duration_seconds_count", &labels)
    };
    assert_eq!(calls("RunPodSandbox", "OK"), Some(1.0));
    assert_eq!(calls("CreateContainer", "OK"), Some(3.0));
    assert_eq!(calls("StartContainer", "OK"), Some(3.0));
    assert_eq!(calls("ExecSync", "OK"), Some(1.0));
    assert_eq!(calls("ContainerStatus", "NotFound"), Some(1.0));
    assert_eq!(calls("RemoveContainer", "OK"), None);
    let containers = |state| page.get("quilt_containers", &[("state", state)]);
    assert_eq!(containers("running"), Some(2.0));
    assert_eq!(containers("exited"), Some(1.0));
    assert_eq!(
        page.get("quilt_sandboxes", &[("state", "ready")]),
        Some(1.0)
    );
    assert_eq!(page.get("quilt_addresses_used", &[]), Some(1.0));
    assert_eq!(page.get("quilt_addresses_capacity", &[]), Some(253.0));
    assert_eq!(page.get("quilt_exit_lag_seconds_count", &[]), Some(1.0));
    assert_eq!(page.get("quilt_shim_connected", &[]), Some(1.0));
    assert_eq!(page.get("quilt_metrics_complete", &[]), Some(1.0));
    assert!(page.get("quilt_last_sweep_timestamp_seconds", &[]) > Some(1e9));
    let database = |operation, outcome| {
        let labels = [("operation", operation), ("outcome", outcome)];
        page.get("database_operation_duration_seconds_count", &labels)
    };
    assert_eq!(database("record an exit", "ok"), Some(1.0));
    assert!(database("read a container", "ok") >= Some(1.0));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(page.get("quilt_build_info", &version), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_and_every_documented_one_is_there() {
    let (node, address) = node().await;
    let kinds = page(address).kinds;
    let names: BTreeSet<String> = kinds.keys().cloned().collect();
    assert_eq!(names, documented());
    let printed = node.operate(&["metrics"]);
    assert!(printed.status.success(), "{printed:?}");
    let printed = Page::read(&String::from_utf8(printed.stdout).expect("text"));
    assert_eq!(printed.kinds, kinds);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_answers_for_nothing_else_and_is_not_held_up() {
    let (node, address) = node().await;
    assert!(ask(address, "GET /").0.starts_with("HTTP/1.1 404 "));
    assert!(ask(address, "POST /metrics").0.starts_with("HTTP/1.1 405 "));
    let head = ask(address, "GET /metrics").0.to_lowercase();
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    // More connections than are served, none of which says anything.
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(address)).collect();
    node.cri.version().await.expect("Version");
    assert!(node.operate(&["metrics"]).status.success());
    drop(silent);
    eventually("the endpoint answers again", || async {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_whole_while_somebody_holds_the_database() {
    let (node, address) = node().await;
    let lock = WriteLock::take(&node).await;
    assert_eq!(page(address).get("quilt_metrics_complete", &[]), Some(1.0));
    lock.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_an_error_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let node = Node::prepare(&format!("[metrics]\nlisten = \"{address}\"\n"));
    let said = node.refused(&mut node.serve());
    assert!(
        said.contains(&format!("cannot listen for metrics on {address}")),
        "{said}"
    );
}
