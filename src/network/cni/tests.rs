//! Configurations as files, results as text, and plugins as shell scripts, which are real ones.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::child::MARK_VARIABLE;
use super::*;

/// A directory of configurations and one of programs.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn conf(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("net.d").join(name), text).unwrap();
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.dir.path().join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn look(&self) -> Directory {
        Directory::look(&self.dir.path().join("net.d")).unwrap()
    }

    fn load(&self) -> NetworkList {
        self.look().load().unwrap().expect("a network")
    }

    fn refused(&self, text: &str) -> String {
        self.conf("10.conflist", text);
        self.look().load().expect_err(text).to_string()
    }

    fn plugins(&self) -> Plugins {
        Plugins {
            dirs: vec![self.dir.path().join("none"), self.dir.path().join("bin")],
            timeout: Duration::from_secs(20),
            mark: format!("test:{}", self.dir.path().display()),
        }
    }
}

fn attachment<'a>(capabilities: &'a Map<String, Value>) -> Attachment<'a> {
    Attachment {
        container_id: "c1",
        netns: Some(Path::new("/run/netns/n")),
        arguments: "K8S_POD_NAME=p",
        capabilities,
    }
}

#[test]
fn the_first_file_by_name_is_the_network() {
    let place = Place::new();
    assert!(!place.look().holds_any());
    assert_eq!(place.look().load().unwrap(), None);
    place.conf("README", "no configuration");
    place.conf(
        "20.conflist",
        r#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"x"}]}"#,
    );
    place.conf("10.conf", r#"{"cniVersion":"0.3.1","name":"a","type":"y"}"#);
    let before = place.look();
    let list = place.load();
    assert_eq!(
        (list.name.as_str(), list.version),
        ("a", SpecVersion::V0_3_1)
    );
    assert_eq!(list.plugin_names().collect::<Vec<_>>(), ["y"]);
    assert_eq!(place.look(), before, "nothing has changed");
    place.conf(
        "05.json",
        r#"{"cniVersion":"1.1.0","name":"c","plugins":[{"type":"z"}]}"#,
    );
    assert_ne!(place.look(), before);
    assert_eq!(place.load().name, "c");
}

#[test]
fn configurations_that_cannot_be_are_refused_with_their_reason() {
    let place = Place::new();
    let long = "x".repeat(1024 * 1024 + 1);
    for (text, why) in [
        ("", "EOF"),
        ("[]", "map"),
        (
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#,
            "no \"name\"",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"","plugins":[{"type":"x"}]}"#,
            "name",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"x"}]}"#,
            "../x",
        ),
        (r#"{"name":"n","plugins":[{"type":"x"}]}"#, "cniVersion"),
        (
            r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"x"}]}"#,
            "0.2.0",
        ),
        (
            r#"{"cniVersion":1,"name":"n","plugins":[{"type":"x"}]}"#,
            "no text",
        ),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "empty"),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#, "no plugins"),
        (
            r#"{"cniVersion":"1.1.0","name":"n","loadOnlyInlinedPlugins":true}"#,
            "no \"plugins\"",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#,
            "plugin 1: it has no \"type\"",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a/b"}]}"#,
            "a/b",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":".."}]}"#,
            "..",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","disableCheck":"maybe","plugins":[{"type":"x"}]}"#,
            "disableCheck",
        ),
        (&long, "bytes"),
    ] {
        let said = place.refused(text);
        assert!(
            said.contains(why) && said.contains("10.conflist"),
            "{why}: {said}"
        );
    }
    let many: Vec<_> = (0..33)
        .map(|n| json!({ "type": format!("p{n}") }))
        .collect();
    let many = json!({ "cniVersion": "1.0.0", "name": "n", "plugins": many });
    assert!(place.refused(&many.to_string()).contains("33 plugins"));
}

#[test]
fn what_was_stored_is_the_same_network() {
    let place = Place::new();
    let text = json!({
        "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "9.9.9"], "name": "n",
        "disableGC": true, "disableCheck": "TRUE",
        "plugins": [{ "type": "x", "capabilities": { "dns": true, "mac": false } }],
    });
    place.conf("10.conflist", &text.to_string());
    std::fs::create_dir(place.dir.path().join("net.d/n")).unwrap();
    place.conf("n/20-y.conf", r#"{"type":"y"}"#);
    let list = place.load();
    assert_eq!(list.version, SpecVersion::V1_0_0);
    assert!(list.disable_check && list.disable_gc);
    let wanted = |name: &str| list.plugins.iter().any(|p| p.capabilities.contains(name));
    assert!(wanted("dns") && !wanted("mac"));
    assert_eq!(list.plugin_names().collect::<Vec<_>>(), ["x", "y"]);
    let again = NetworkList::from_text(&list.to_text()).unwrap();
    assert_eq!(again.to_text(), list.to_text());
    assert_eq!(again.plugin_names().collect::<Vec<_>>(), ["x", "y"]);
}

#[test]
fn the_pods_addresses_are_those_of_its_interface() {
    let of = |result: Value| addresses(&result);
    let parsed = |texts: &[&str]| -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let interfaces = json!([
        { "name": "veth1" }, { "name": "eth0", "sandbox": "/run/netns/n" },
        { "name": "net1", "sandbox": "/run/netns/n" }, { "name": "eth0" },
    ]);
    let result = json!({ "interfaces": interfaces, "ips": [
        { "address": "fd00::5/64", "interface": 1 }, { "address": "10.0.0.5/24", "interface": 1 },
        { "address": "10.9.0.5/24", "interface": 2 }, { "address": "10.8.0.1/24", "interface": 0 },
        { "address": "10.7.0.1/24", "interface": 3 }, { "address": "fd01::5/64", "interface": 1 },
        { "address": "10.0.0.5/24" },
    ] });
    assert_eq!(
        of(result).unwrap(),
        parsed(&["10.0.0.5", "fd00::5", "fd01::5"])
    );
    // Version 0.3.1 has the family as well, and results without interfaces.
    let old = json!({ "ips": [{ "version": "6", "address": "fd00::5/64" }] });
    assert_eq!(of(old).unwrap(), parsed(&["fd00::5"]));
    assert_eq!(of(json!({})).unwrap(), parsed(&[]));
    let nothing = json!({ "ips": null, "interfaces": null });
    assert_eq!(of(nothing).unwrap(), parsed(&[]));
    for wrong in [
        json!([]),
        json!({ "ips": "10.0.0.5" }),
        json!({ "ips": [{ "address": "10.0.0.5" }] }),
        json!({ "ips": [{ "address": "10.0.0.5/24", "interface": -1 }] }),
        json!({ "ips": [{ "address": "10.0.0.5/24", "interface": 4 }] }),
    ] {
        assert!(of(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn arguments_that_would_read_as_others_are_refused() {
    let pairs = [("A", "1"), ("B", "x y")];
    assert_eq!(arguments(&pairs).unwrap(), "A=1;B=x y");
    for bad in ["a;B=2", "a=b", "a\nb", "a\0b"] {
        assert!(arguments(&[("A", bad)]).is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn each_plugin_is_told_what_is_its_own_and_what_came_before() {
    let place = Place::new();
    let text = json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [
        { "type": "one", "capabilities": { "dns": true }, "cni.dev/x": 1, "key": "kept" },
        { "type": "two", "capabilities": { "ips": true } },
    ] });
    place.conf("10.conflist", &text.to_string());
    let told = place.dir.path().join("told");
    for name in ["one", "two"] {
        let script = format!(
            "printf '%s %s ' {name} $CNI_COMMAND >>{0}; cat >>{0}; echo >>{0}\n\
             [ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"1.0.0\",\"by\":\"{name}\"}}'",
            told.display()
        );
        place.program(name, &script);
    }
    let (plugins, list) = (place.plugins(), place.load());
    let capabilities = json!({ "dns": { "servers": [] }, "mac": "x" });
    let capabilities = capabilities.as_object().unwrap();
    let mut calls = Vec::new();
    let at = attachment(capabilities);
    let result = plugins.add(&list, &at, &mut calls).await.unwrap();
    assert_eq!(result["by"], "two");
    plugins
        .check(&list, &at, &result, &mut calls)
        .await
        .unwrap();
    plugins
        .delete(&list, &at, Some(&result), &mut calls)
        .await
        .unwrap();
    // Neither is known to this version.
    assert!(plugins.collect(&list, &[], &mut calls).await.is_empty());
    plugins.status(&list, &mut calls).await.unwrap();
    let verbs: Vec<_> = calls
        .iter()
        .map(|call| (call.plugin.as_str(), call.verb))
        .collect();
    let expected = [
        ("one", Verb::Add),
        ("two", Verb::Add),
        ("one", Verb::Check),
        ("two", Verb::Check),
        ("two", Verb::Del),
        ("one", Verb::Del),
    ];
    assert_eq!(verbs, expected);
    let text = std::fs::read_to_string(told).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let first = concat!(
        r#"one ADD {"cniVersion":"1.0.0","key":"kept","name":"n","#,
        r#""runtimeConfig":{"dns":{"servers":[]}},"type":"one"}"#
    );
    assert_eq!(lines[0], first);
    assert!(
        lines[1].contains(r#""prevResult":{"by":"one","#),
        "{}",
        lines[1]
    );
    assert!(!lines[1].contains("runtimeConfig"), "{}", lines[1]);
    for line in &lines[2..] {
        assert!(line.contains(r#""prevResult":{"by":"two","#), "{line}");
    }
}

#[tokio::test]
async fn versions_are_agreed_on_or_the_plugin_that_lacks_them_is_named() {
    let place = Place::new();
    let text = json!({ "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "n",
        "plugins": [{ "type": "new" }, { "type": "old" }, { "type": "mute" }] });
    place.conf("10.conflist", &text.to_string());
    place.program(
        "new",
        r#"echo '{"supportedVersions":["0.4.0","1.0.0","1.1.0","2.0.0"]}'"#,
    );
    place.program("mute", "exit 1");
    let (plugins, mut calls) = (place.plugins(), Vec::new());
    let mut list = place.load();
    let missing = plugins
        .agree(&mut list, &mut calls)
        .await
        .unwrap_err()
        .to_string();
    assert!(missing.contains("no plugin \"old\""), "{missing}");
    place.program("old", r#"echo '{"supportedVersions":["0.3.1","1.0.0"]}'"#);
    plugins.agree(&mut list, &mut calls).await.unwrap();
    assert_eq!(list.version, SpecVersion::V1_0_0);
    place.program("old", r#"echo '{"supportedVersions":["0.3.1"]}'"#);
    let mut list = place.load();
    let refused = plugins
        .agree(&mut list, &mut calls)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("\"old\" speaks version 0.3.1"),
        "{refused}"
    );
}

#[tokio::test]
async fn only_plugins_of_unfinished_work_are_ended() {
    let place = Place::new();
    let plugins = place.plugins();
    let start = |command: &str, id: &str, mark: &str| {
        std::process::Command::new("sleep")
            .arg("1000")
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env(MARK_VARIABLE, mark)
            .spawn()
            .unwrap()
    };
    let own = plugins.mark.as_str();
    let mut gone = [
        start("ADD", "half", own),
        start("DEL", "half", own),
        start("GC", "", own),
    ];
    let mut stay = [
        start("ADD", "done", own),
        start("ADD", "half", "test:another"),
    ];
    let half = BTreeSet::from(["half".to_owned()]);
    let ended = end_leftovers(own, &half).unwrap();
    assert!(ended >= 3, "{ended}");
    for child in &mut gone {
        assert!(!child.wait().unwrap().success());
    }
    for child in &mut stay {
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
