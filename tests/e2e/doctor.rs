//! `quiltd doctor`: beside a daemon and without one, and what it leaves behind.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::node::quiltd;
use crate::support::{Node, cgroup};

fn doctor(node: &Node, more: &[&str]) -> Output {
    let mut command = Command::new(quiltd());
    command.arg("doctor");
    for (name, path) in [
        ("--config", node.path("config.toml")),
        ("--root", node.names.root()),
        ("--state", node.names.state()),
    ] {
        command.arg(name).arg(path);
    }
    command.arg("--listen").arg(node.names.endpoint());
    command.args(more).output().expect("quiltd runs")
}

/// What was found, by the names of the probes.
fn found(output: &Output) -> impl Fn(&str) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    move |name| {
        let all = answer["findings"].as_array().expect("a list");
        let finding = all.iter().find(|finding| finding["name"] == name);
        finding
            .unwrap_or_else(|| panic!("no {name} in {answer}"))
            .clone()
    }
}

/// Everything of a doctor's making that is there: directories, cgroups, links, mounts.
fn leftovers(node: &Node) -> BTreeSet<String> {
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.collect::<Vec<_>>()
    };
    let root = node.names.root();
    let mut dirs = vec![std::env::temp_dir(), root.clone(), "/sys/class/net".into()];
    dirs.extend(root.parent().map(Path::to_owned));
    let tops = cgroup::roots(&node.names);
    dirs.extend(tops.iter().filter_map(|dir| Some(dir.parent()?.to_owned())));
    let all = dirs.iter().flat_map(|dir| names(dir));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    let mounts: Vec<String> = mounts.lines().map(str::to_owned).collect();
    all.chain(mounts)
        .filter(|name| name.contains("doctor"))
        .collect()
}

#[tokio::test]
async fn a_node_that_runs_pods_passes_with_a_daemon_and_without() {
    let mut node = Node::start().await;
    let output = doctor(&node, &["-o", "json"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let finding = found(&output);
    for name in [
        "kernel.clone",
        "cgroup.limits",
        "network.pods",
        "network.range",
    ] {
        assert_eq!(finding(name)["found"], true, "{}", finding(name));
    }
    let socket = finding("configuration.socket");
    assert_eq!(socket["detail"], "a quiltd answers on it");
    // What it said is missing is missing, and says what that costs.
    let apparmor = finding("kernel.apparmor");
    let on = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let on = on.is_ok_and(|text| text.trim() == "Y");
    assert_eq!(apparmor["found"], on, "{apparmor}");
    assert!(
        apparmor["costs"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );

    assert!(node.terminate().success());
    let output = doctor(&node, &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{text}");
    assert!(text.contains("nobody answers on it"), "{text}");
    assert_eq!(leftovers(&node), BTreeSet::new());
    node.restart().await;
}

#[tokio::test]
async fn what_is_needed_and_not_there_is_an_exit_status() {
    let node = Node::start().await;
    // The daemon that runs has read its file already.
    let plugins = format!(
        "mode = \"cni\"\ncni_conf_dir = \"{}\"",
        node.path("none").display()
    );
    let path = node.path("config.toml");
    let before = std::fs::read_to_string(&path).expect("the test's own file");
    std::fs::write(&path, format!("[network]\n{plugins}\n")).expect("the test's own file");
    let output = doctor(&node, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let missing = found(&output)("network.plugins");
    assert_eq!(
        (&missing["found"], &missing["needed"]),
        (&false.into(), &true.into())
    );

    std::fs::write(&path, "[network]\nbrigde = \"x\"\n").expect("the test's own file");
    let output = doctor(&node, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("NEEDED   configuration.file"), "{text}");
    assert!(text.contains("brigde"), "{text}");
    std::fs::write(&path, before).expect("the test's own file");
}
