//! The daemon as a process: its configuration, its socket, its lock, what it tells of itself.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use serde_json::Value;

use crate::support::Node;

#[tokio::test]
async fn an_unknown_key_or_a_bad_value_says_where_it_is() {
    for (line, wanted) in [
        ("[image]\nno_such_key = 1\n", "no_such_key"),
        ("[no_such_section]\n", "no_such_section"),
        ("no_such_top = 1\n", "no_such_top"),
        ("[image]\ncerts_d = 7\n", "certs_d"),
        ("[image\n", "config.toml"),
    ] {
        let node = Node::prepare(line);
        let said = node.refused(&mut node.serve());
        assert!(said.contains(wanted), "`{line}`: {said}");
        assert!(said.contains("config.toml"), "the file is named: {said}");
        assert!(
            !node.names.socket().exists(),
            "it looked at its configuration too late"
        );
    }
    for (key, value) in [
        ("subnet", "10.0.0.0/33"),
        ("bridge", "a-name-longer-than-15-bytes"),
    ] {
        let node = Node::prepare("");
        let file = node.path("config.toml");
        let text = fs::read_to_string(&file).expect("the configuration");
        let change = |line: &str| match line.starts_with(key) {
            true => format!("{key} = \"{value}\""),
            false => line.to_owned(),
        };
        let text: Vec<_> = text.lines().map(change).collect();
        fs::write(&file, text.join("\n")).expect("a configuration");
        let said = node.refused(&mut node.serve());
        assert!(said.contains(key) && said.contains(value), "{said}");
    }
}

#[tokio::test]
async fn a_configuration_file_that_was_named_must_exist() {
    let node = Node::prepare("");
    fs::remove_file(node.path("config.toml")).expect("the configuration");
    let said = node.refused(&mut node.serve());
    assert!(said.contains("config.toml"), "{said}");
}

#[tokio::test]
async fn a_second_daemon_on_the_same_socket_is_refused() {
    let node = Node::start().await;
    let other = Node::prepare("");
    let mut second = other.serve_at(&other.names.root(), &node.names.endpoint());
    let said = other.refused(&mut second);
    let socket = node.names.socket().display().to_string();
    assert!(
        said.contains(&socket),
        "the refusal names the socket: {said}"
    );
    node.cri
        .version()
        .await
        .expect("the first daemon answers as before");
}

#[tokio::test]
async fn a_second_daemon_on_the_same_root_is_refused() {
    let node = Node::start().await;
    let other = Node::prepare("");
    let mut second = other.serve_at(&node.names.root(), &other.names.endpoint());
    let said = other.refused(&mut second);
    let root = node.names.root().display().to_string();
    assert!(said.contains(&root), "the refusal names the root: {said}");
    node.cri
        .version()
        .await
        .expect("the first daemon answers as before");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_another_file_is_not() {
    let mut node = Node::prepare("");
    drop(UnixListener::bind(node.names.socket()).expect("a socket that nobody serves"));
    node.restart().await;
    node.terminate();

    let other = Node::prepare("");
    fs::write(other.names.socket(), "precious").expect("a file of the test");
    let said = other.refused(&mut other.serve());
    assert!(said.contains("cri.sock"), "{said}");
    assert_eq!(
        fs::read_to_string(other.names.socket()).expect("kept"),
        "precious"
    );
}

#[tokio::test]
async fn the_socket_is_for_root_and_its_group() {
    let node = Node::start().await;
    let meta = fs::metadata(node.names.socket()).expect("the socket");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    let admin = fs::metadata(node.names.state().join("admin.sock")).expect("the admin socket");
    assert_eq!(admin.permissions().mode() & 0o077, 0, "root only");
}

#[tokio::test]
async fn engine_json_tells_who_serves_where() {
    let node = Node::start().await;
    let path = node.names.state().join("engine.json");
    let text = fs::read_to_string(path).expect("engine.json");
    let engine: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(engine["pid"], node.pid());
    assert_eq!(engine["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        text.contains(&node.names.socket().display().to_string()),
        "{text}"
    );
    assert!(text.contains("admin.sock"), "{text}");
    let keys = engine.as_object().expect("an object").keys();
    assert!(keys.clone().any(|key| key.starts_with("start")), "{text}");
}

#[tokio::test]
async fn admin_commands_find_the_daemon_or_say_that_it_does_not_run() {
    let mut node = Node::start().await;
    let output = node.operate(&["info"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains(&node.pid().to_string()), "{said}");
    let pod = node.pod("explained").await;
    let output = node.operate(&["explain", &pod.id]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        said.contains("ms") || said.contains("µs"),
        "the time of each stage: {said}"
    );
    let output = node.operate(&["inventory"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let row = said.lines().find(|line| line.starts_with("sandboxes"));
    assert_eq!(
        row.and_then(|r| r.split_whitespace().nth(1)),
        Some("1"),
        "{said}"
    );

    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    node.terminate();
    let output = node.operate(&["info"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("engine.json") || said.contains("not run"),
        "{said}"
    );
}

#[tokio::test]
async fn every_request_is_one_line_of_log_with_its_ids_and_its_time() {
    let node = Node::start().await;
    let pod = node.pod("logged").await;
    let text = fs::read_to_string(node.path("daemon.log")).expect("the log");
    let line = text
        .lines()
        .find(|l| l.contains("RunPodSandbox") && l.contains(&pod.id));
    assert!(
        line.is_some(),
        "no line has the call and the id of its pod:\n{text}"
    );
}
