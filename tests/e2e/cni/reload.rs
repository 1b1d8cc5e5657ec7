//! The directory of configurations changes under the daemon, and NetworkReady follows.

use super::*;
use tonic::Code;

#[tokio::test]
async fn readiness_follows_the_directory() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "");
    plugged.node.restart().await;
    let dir = plugged.node.path("net.d").display().to_string();
    plugged.is_not_ready(&dir).await;
    let refused = plugged
        .node
        .cri
        .run_pod(&plugged.node.pod_config("early"))
        .await;
    let status = refused.expect_err("there is no network");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(
        status.message().contains("no network configuration"),
        "{status}"
    );
    plugged.network(&witnessed());
    plugged.becomes_ready().await;
    let first = plugged.run("first").await;
    assert_eq!(plugged.told("ADD")["name"], "witnessed");
    // What is wrong is said, and no other file is taken in its place.
    plugged.file("20-other.conflist", &witnessed().to_string());
    plugged.file("10-pods.conflist", "{ not JSON");
    plugged.is_not_ready("10-pods.conflist").await;
    for (text, why) in [
        (
            json!({ "cniVersion": "1.1.0", "plugins": [{ "type": "witness" }] }),
            "no \"name\"",
        ),
        (
            json!({ "cniVersion": "9.0.0", "name": "n", "plugins": [{ "type": "witness" }] }),
            "9.0.0",
        ),
        (
            json!({ "cniVersion": "1.1.0", "name": "n", "plugins": [{ "type": "../sh" }] }),
            "../sh",
        ),
        (
            json!({ "cniVersion": "1.1.0", "name": "n", "plugins": [] }),
            "empty",
        ),
        (
            json!({ "cniVersion": "1.1.0", "name": "a/b", "plugins": [{ "type": "witness" }] }),
            "a/b",
        ),
    ] {
        plugged.network(&text);
        plugged.is_not_ready(why).await;
    }
    let mut second = witnessed();
    second["name"] = "second".into();
    plugged.network(&second);
    plugged.becomes_ready().await;
    let other = plugged.run("second").await;
    assert_eq!(plugged.told("ADD")["name"], "second");
    // Each is taken from the network that it was put on.
    plugged.go(&other).await;
    assert_eq!(plugged.told("DEL")["name"], "second");
    plugged.go(&first).await;
    assert_eq!(plugged.told("DEL")["name"], "witnessed");
    plugged.nothing_is_held().await;
}

#[tokio::test]
async fn with_auto_plugins_connect_pods_as_long_as_there_is_a_configuration() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "auto", "");
    plugged.node.restart().await;
    assert_eq!(plugged.network_problem().await, None);
    let own = plugged.run("own").await;
    assert!(plugged.calls().is_empty());
    plugged.network(&witnessed());
    eventually("new pods are connected by plugins", || async {
        // One that came in between is refused, and kubelet runs another.
        let config = plugged.node.pod_config("theirs");
        let id = plugged.node.cri.run_pod(&config).await.ok()?;
        let is_plugged = plugged.calls_of("ADD", &id) > 0;
        if !is_plugged {
            plugged.go(&id).await;
        }
        is_plugged.then_some(())
    })
    .await;
    assert_eq!(plugged.addresses(&own).await.len(), 1);
    std::fs::remove_file(plugged.node.path("net.d/10-pods.conflist")).expect("a file");
    let held = plugged.held();
    eventually("new pods are connected by the daemon", || async {
        let config = plugged.node.pod_config("again");
        let id = plugged.node.cri.run_pod(&config).await.ok()?;
        let own = plugged.calls_of("ADD", &id) == 0;
        plugged.go(&id).await;
        own.then_some(())
    })
    .await;
    plugged.go(&held[0]).await;
    plugged.go(&own).await;
    plugged.nothing_is_held().await;
}

#[tokio::test]
async fn a_plugin_that_is_not_ready_makes_the_node_not_ready() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    plugged.becomes_ready().await;
    std::fs::write(plugged.book("not-ready"), "since noon").expect("a file of the test");
    plugged
        .is_not_ready("code 50: the agent is away: since noon")
        .await;
    std::fs::remove_file(plugged.book("not-ready")).expect("a file of the test");
    plugged.becomes_ready().await;
}

/// A start asks each plugin once; what was seen before anything is answered is not asked again.
#[tokio::test]
async fn a_start_asks_plugins_once() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    // That comes after the next look.
    eventually("what is stale is collected", || async {
        let calls = plugged.calls();
        calls
            .iter()
            .any(|call| call.starts_with("GC "))
            .then_some(())
    })
    .await;
    for verb in ["VERSION ", "STATUS "] {
        let calls = plugged.calls();
        let count = calls.iter().filter(|call| call.starts_with(verb)).count();
        assert_eq!(count, 1, "{verb}: {calls:?}");
    }
}

/// A single configuration, plugins in files of their own, and versions that both sides know.
#[tokio::test]
async fn configurations_of_all_ages_are_understood() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "");
    let single = json!({ "cniVersion": "0.3.1", "name": "old", "type": "witness" });
    plugged.file("10-pods.conf", &single.to_string());
    plugged.node.restart().await;
    let pod = plugged.run("old").await;
    assert_eq!(plugged.told("ADD")["cniVersion"], "0.3.1");
    plugged.go(&pod).await;
    assert!(plugged.told("DEL").get("prevResult").is_none());
    // Debian's plugins know 1.0.0 at most.
    let several = json!({
        "cniVersion": "0.4.0",
        "cniVersions": ["0.3.1", "1.0.0", "1.1.0", "2.0.0"],
        "name": "several",
        "plugins": [{ "type": "witness" }],
    });
    std::fs::remove_file(plugged.node.path("net.d/10-pods.conf")).expect("a file");
    plugged.network(&several);
    std::fs::create_dir(plugged.node.path("net.d/several")).expect("a directory");
    let own = json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" } });
    plugged.file("several/10-tuning.conf", &own.to_string());
    plugged.becomes_ready().await;
    eventually("the other network is the pods'", || async {
        let pod = plugged.run("new").await;
        let told = plugged.told("ADD");
        let filter = plugged
            .inside(&pod)
            .run(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_filter"));
        plugged.go(&pod).await;
        let new = told["cniVersion"] == "1.0.0" && told["name"] == "several";
        (new && filter.is_ok_and(|text| text.trim() == "1")).then_some(())
    })
    .await;
    let mut inlined = several.clone();
    inlined["loadOnlyInlinedPlugins"] = true.into();
    plugged.network(&inlined);
    eventually("the newest version both know is spoken", || async {
        let pod = plugged.run("inlined").await;
        plugged.go(&pod).await;
        (plugged.told("ADD")["cniVersion"] == "1.1.0").then_some(())
    })
    .await;
}
