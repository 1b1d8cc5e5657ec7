//! CHECK and GC.

use super::*;
use crate::support::operator::column;
use crate::support::prometheus::Page;

#[tokio::test]
async fn a_pod_whose_link_was_taken_away_is_found_and_told_of() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    let pod = plugged.run("pod").await;
    assert!(plugged.node.operate(&["check"]).status.success());
    assert_eq!(plugged.calls_of("CHECK", &pod), 1);
    assert!(plugged.told("CHECK")["prevResult"]["ips"].is_array());
    plugged.inside(&pod).remove_link("eth0");
    let checked = plugged.node.operate(&["check"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success(), "{said}");
    for word in [
        "pod network",
        "code 103: the link is gone",
        "delete the pod",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let story = plugged.node.ask(&["explain", &pod]);
    let kinds = column(&story["events"], "kind");
    assert!(kinds.iter().any(|kind| kind == "check_failed"), "{kinds:?}");
    let output = plugged.node.operate(&["metrics"]);
    let page = Page::read(&String::from_utf8_lossy(&output.stdout));
    let name = "quilt_cni_call_duration_seconds_count";
    for (verb, outcome, count) in [("ADD", "ok", 1.0), ("CHECK", "ok", 1.0)] {
        let labels = [("verb", verb), ("outcome", outcome)];
        assert_eq!(page.get(name, &labels), Some(count), "{verb}");
    }
    let failed = page.get(name, &[("verb", "CHECK"), ("outcome", "failed")]);
    assert!(failed.is_some_and(|count| count >= 1.0), "{failed:?}");
    plugged.go(&pod).await;
}

/// Nothing lives in the pod, so it gets another namespace, and is connected anew.
#[tokio::test]
async fn a_pod_whose_namespace_was_taken_away_is_connected_anew() {
    let lan = Lan::new(1);
    let plugged = Plugged::start(&lan, "", &witnessed()).await;
    let pod = plugged.run("pod").await;
    let state = plugged.node.names.state();
    let pin = state.join("sandboxes").join(&pod).join("ns/net");
    nix::mount::umount2(&pin, nix::mount::MntFlags::MNT_DETACH).expect("a pin");
    let checked = plugged.node.operate(&["check", "--repair"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("net namespace is not pinned"), "{said}");
    eventually("ADD is called again", || async {
        let again = plugged.calls_of("ADD", &pod) == 2 && !plugged.addresses(&pod).await.is_empty();
        again.then_some(())
    })
    .await;
    assert_eq!(plugged.calls_of("DEL", &pod), 1, "what was is undone first");
    assert!(plugged.inside(&pod).links().contains(&"eth0".to_owned()));
    plugged.go(&pod).await;
    plugged.nothing_is_held().await;
}

#[tokio::test]
async fn a_network_that_forbids_check_and_gc_is_not_asked() {
    let lan = Lan::new(1);
    let mut network = witnessed();
    network["disableCheck"] = true.into();
    network["disableGC"] = true.into();
    let plugged = Plugged::start(&lan, "cni_verify_s = 1", &network).await;
    let pod = plugged.run("pod").await;
    assert!(plugged.node.operate(&["check"]).status.success());
    // STATUS comes with the same looks.
    eventually("several looks", || async {
        let calls = plugged.calls();
        (calls
            .iter()
            .filter(|call| call.starts_with("STATUS"))
            .count()
            > 0)
        .then_some(())
    })
    .await;
    let calls = plugged.calls();
    let forbidden = calls
        .iter()
        .find(|call| call.starts_with("CHECK") || call.starts_with("GC"));
    assert_eq!(forbidden, None);
    plugged.go(&pod).await;
}

/// What no row stands for: the books of a node that was restored from elsewhere.
#[tokio::test]
async fn what_is_of_no_pod_is_collected_and_what_is_of_one_stays() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "cni_verify_s = 1");
    plugged.network(&witnessed());
    let stale = |plugged: &Plugged, number: u8| {
        let numbers = plugged.book("numbers").join(number.to_string());
        std::fs::create_dir(numbers).expect("a directory of the test");
        let held = plugged.book("held").join("f".repeat(64));
        std::fs::write(held, number.to_string()).expect("a file of the test");
    };
    stale(&plugged, 200);
    plugged.node.restart().await;
    eventually("it is collected at the start", || async {
        plugged.held().is_empty().then_some(())
    })
    .await;
    let pod = plugged.run("pod").await;
    stale(&plugged, 201);
    eventually("it is collected every now and then", || async {
        (plugged.held() == [pod.clone()]).then_some(())
    })
    .await;
    // One that leaves is not stale: that is what DEL is for.
    plugged.act("DEL", "fail 5 'the store is away' ''");
    plugged.go(&pod).await;
    let collections = |plugged: &Plugged| {
        let calls = plugged.calls();
        calls.iter().filter(|call| call.starts_with("GC ")).count()
    };
    let before = collections(&plugged);
    eventually("it is collected once more", || async {
        (collections(&plugged) > before + 1).then_some(())
    })
    .await;
    assert_eq!(plugged.held(), [pod]);
    plugged.act("DEL", "");
    plugged.nothing_is_held().await;
}
