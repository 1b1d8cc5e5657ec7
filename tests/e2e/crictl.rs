//! The real `crictl` drives a pod from end to end.

use serde_json::{Value, json};

use crate::support::{Node, eventually, registry};

/// A container as crictl's JSON.
fn container(name: &str, image: &str, script: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "image": {"image": image},
        "command": ["sh", "-c", script],
        "log_path": format!("{name}.log"),
        "linux": {"security_context": {"namespace_options": {"pid": 1}}},
    })
}

#[tokio::test]
async fn crictl_drives_a_pod_from_pull_to_nothing() {
    let node = Node::start().await;
    let image = registry().image("busybox:latest");
    node.crictl(&["pull", &image]);
    let images = node.crictl_json(&["images", "-o", "json"]);
    assert_eq!(images["images"][0]["repoTags"], json!([image]), "{images}");

    let pod_file = node.crictl_file("pod.json", &node.crictl_pod("web"));
    let script =
        "echo to stdout; echo to stderr >&2; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let file = node.crictl_file("container.json", &container("main", &image, script));
    let pod = node.crictl(&["runp", &pod_file]);
    let id = node.crictl(&["create", &pod, &file, &pod_file]);
    node.crictl(&["start", &id]);

    let listed = node.crictl_json(&["ps", "-o", "json"]);
    assert_eq!(
        listed["containers"][0]["id"],
        Value::from(id.as_str()),
        "{listed}"
    );
    assert_eq!(listed["containers"][0]["state"], "CONTAINER_RUNNING");
    assert_eq!(
        node.crictl(&["exec", "-s", &id, "cat", "/etc/hostname"]),
        "web"
    );
    let (good, said) = node.try_crictl(&["exec", "-s", &id, "sh", "-c", "exit 3"]);
    assert!(!good && said.contains('3'), "the exit code is told: {said}");
    let logs = eventually("both lines are in the log", || async {
        let logs = node.crictl(&["logs", &id]);
        (logs.lines().count() == 2).then_some(logs)
    })
    .await;
    assert!(
        logs.contains("to stdout") && logs.contains("to stderr"),
        "{logs}"
    );

    let status = node.crictl_json(&["inspect", "-o", "json", &id[..13]]);
    assert_eq!(status["status"]["state"], "CONTAINER_RUNNING", "{status}");
    let status = node.crictl_json(&["inspectp", "-o", "json", &pod]);
    assert_eq!(status["status"]["state"], "SANDBOX_READY", "{status}");
    let pods = node.crictl_json(&["pods", "--state", "ready", "-o", "json"]);
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(1), "{pods}");

    node.crictl(&["stop", "--timeout", "10", &id]);
    let listed = node.crictl_json(&["ps", "--state", "exited", "-o", "json"]);
    assert_eq!(
        listed["containers"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    node.crictl(&["rm", &id]);
    node.crictl(&["stopp", &pod]);
    node.crictl(&["rmp", &pod]);
    assert_eq!(node.crictl(&["pods", "-q"]), "");
    node.crictl(&["rmi", &image]);
    assert_eq!(node.crictl(&["images", "-q"]), "");
}

#[tokio::test]
async fn crictl_reads_who_answers_and_how_it_is() {
    let node = Node::start().await;
    let version = node.crictl(&["version"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let info = node.crictl_json(&["info", "-o", "json"]);
    let conditions = info["status"]["conditions"].as_array().expect("conditions");
    assert!(
        conditions
            .iter()
            .all(|c| c["status"] == true || c["type"] != "RuntimeReady"),
        "{info}"
    );
    node.crictl(&["runtime-config"]);
    node.crictl(&["imagefsinfo"]);
}

#[tokio::test]
async fn crictl_shows_why_a_container_did_not_start() {
    let node = Node::start().await;
    let image = registry().image("busybox:latest");
    node.crictl(&["pull", &image]);
    let pod_file = node.crictl_file("pod.json", &node.crictl_pod("bad"));
    let mut config = container("main", &image, "");
    config["command"] = json!(["/no/such/command"]);
    let file = node.crictl_file("container.json", &config);
    let pod = node.crictl(&["runp", &pod_file]);
    let id = node.crictl(&["create", &pod, &file, &pod_file]);
    let (good, said) = node.try_crictl(&["start", &id]);
    assert!(!good && said.contains("/no/such/command"), "{said}");
    let status = node.crictl_json(&["inspect", "-o", "json", &id]);
    assert_eq!(status["status"]["state"], "CONTAINER_EXITED", "{status}");
    assert_eq!(status["status"]["reason"], "StartError");
    node.crictl(&["rmp", "--force", &pod]);
}
