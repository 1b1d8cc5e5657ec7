//! The daemon dies while plugins work, at every point between two side effects; and the node starts
//! anew.

use super::*;
use crate::support::faults::Faults;

/// Between two side effects, in the order in which a pod's life meets them.
const POINTS: &[&str] = &[
    "attachment.adding",
    "attachment.called",
    "attachment.added",
    "attachment.released",
    "attachment.leaving",
    "attachment.detached",
    "attachment.deleted",
];

#[tokio::test]
async fn a_daemon_that_dies_at_any_point_loses_no_attachment() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "");
    plugged.network(&witnessed());
    for point in POINTS {
        plugged.node.env = vec![("QUILT_FAULTS".into(), format!("{point}=abort*1"))];
        plugged.node.restart().await;
        plugged.becomes_ready().await;
        let config = plugged.node.pod_config("pod");
        let mut died = false;
        let run = plugged.node.cri.run_pod(&config).await;
        let id = match run {
            Ok(id) => id,
            Err(_) => {
                plugged.comes_back(point).await;
                died = true;
                plugged.run_from(&config).await
            }
        };
        assert_eq!(plugged.held(), std::slice::from_ref(&id), "{point}");
        assert_eq!(plugged.addresses(&id).await.len(), 1, "{point}");
        if plugged.node.cri.stop_pod(&id).await.is_err() {
            plugged.comes_back(point).await;
            died = true;
            plugged
                .node
                .cri
                .stop_pod(&id)
                .await
                .expect("StopPodSandbox");
        }
        // The last one may come after the answer.
        if !died {
            plugged.comes_back(point).await;
        }
        plugged
            .node
            .cri
            .remove_pod(&id)
            .await
            .expect("RemovePodSandbox");
        plugged.nothing_is_held().await;
        plugged.node.terminate();
    }
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_undoes_undoes_it_again() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "");
    plugged.network(&witnessed());
    // The first death is the one that leaves something to undo.
    let both = "attachment.called=abort*1";
    plugged.node.env = vec![("QUILT_FAULTS".into(), both.into())];
    plugged.node.restart().await;
    let config = plugged.node.pod_config("pod");
    let run = plugged.node.cri.run_pod(&config).await;
    run.expect_err("the daemon dies");
    plugged.dies(both);
    plugged.node.env = vec![("QUILT_FAULTS".into(), "attachment.undone=abort*1".into())];
    plugged.node.spawn();
    plugged.comes_back("attachment.undone").await;
    let id = plugged.run_from(&config).await;
    assert_eq!(plugged.held(), std::slice::from_ref(&id));
    plugged.go(&id).await;
    plugged.node.terminate();
    // A failed ADD is undone as well.
    plugged.act("ADD", "take; fail 100 no no");
    plugged.node.env = vec![("QUILT_FAULTS".into(), "attachment.failed=abort*1".into())];
    plugged.node.restart().await;
    let config = plugged.node.pod_config("pod");
    let run = plugged.node.cri.run_pod(&config).await;
    run.expect_err("the daemon dies");
    plugged.comes_back("attachment.failed").await;
    plugged.nothing_is_held().await;
    plugged.act("ADD", "");
}

impl Plugged {
    /// The daemon has died at a point; another one takes over.
    async fn comes_back(&mut self, point: &str) {
        self.dies(point);
        self.node.env.clear();
        self.node.restart().await;
    }

    fn dies(&mut self, point: &str) {
        let node = &mut self.node;
        let ended = crate::support::wait::poll(crate::support::wait::BOUND, || node.ended());
        assert!(ended.is_some(), "{point}: the daemon lives on");
    }
}

/// A plugin outlives its daemon; what it does late must not undo what the next one does.
#[tokio::test]
async fn a_plugin_that_outlives_its_daemon_is_ended_before_anything_is_repeated() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::start(&lan, "cni_timeout_s = 600", &witnessed()).await;
    for verb in ["ADD", "DEL"] {
        let pid = plugged.book("pid");
        let hang = "sleep 1000 & echo $! >\"$dir/pid\"; wait; echo late >\"$dir/late\"";
        let config = plugged.node.pod_config("pod");
        let cri = plugged.node.cri.clone();
        let begun = if verb == "ADD" {
            plugged.act(verb, hang);
            let config = config.clone();
            tokio::spawn(async move { cri.run_pod(&config).await.map(drop) })
        } else {
            let id = cri.run_pod(&config).await.expect("RunPodSandbox");
            plugged.act(verb, hang);
            tokio::spawn(async move { cri.stop_pod(&id).await })
        };
        eventually("the plugin hangs", || async { pid.exists().then_some(()) }).await;
        plugged.node.kill();
        let cut_off = begun.await.expect("a task");
        assert!(cut_off.is_err(), "the daemon was killed");
        plugged.act(verb, "");
        plugged.node.restart().await;
        let child = std::fs::read_to_string(&pid).expect("a pid").trim().parse();
        let child: i32 = child.expect("a pid");
        assert!(
            !process::is_running(child),
            "{verb}: a plugin's child lives on"
        );
        std::fs::remove_file(&pid).expect("a file of the test");
        if verb == "ADD" {
            let id = plugged.run_from(&config).await;
            assert_eq!(plugged.held(), std::slice::from_ref(&id));
            assert_eq!(plugged.calls_of("ADD", &id), 2);
            assert!(
                plugged.calls_of("DEL", &id) >= 1,
                "what was half done is undone"
            );
            plugged.go(&id).await;
        } else {
            for pod in plugged
                .node
                .cri
                .list_pods(None)
                .await
                .expect("ListPodSandbox")
            {
                plugged.go(&pod.id).await;
            }
        }
        plugged.nothing_is_held().await;
        assert!(
            !plugged.book("late").exists(),
            "{verb}: a plugin has gone on"
        );
    }
}

/// A pod is given up while its ADD is called: DEL comes after that, not beside it.
#[tokio::test]
async fn a_pod_that_is_given_up_is_disconnected_after_its_add_has_ended() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::prepare(&lan, "cni", "cni_timeout_s = 600");
    plugged.network(&witnessed());
    let faults = Faults::of(&mut plugged.node);
    plugged.node.restart().await;
    faults.hold("attachment.called", "*1");
    let config = plugged.node.pod_config("pod");
    let cri = plugged.node.cri.clone();
    let run = tokio::spawn(async move { cri.run_pod(&config).await });
    faults.reached("attachment.called").await;
    let held = plugged.held();
    let [id] = &held[..] else {
        panic!("{held:?}");
    };
    let (cri, id_too) = (plugged.node.cri.clone(), id.clone());
    let stop = tokio::spawn(async move { cri.stop_pod(&id_too).await });
    eventually("the pod is to stop", || async {
        let rows = plugged
            .node
            .ask(&["db", "query", "SELECT state FROM v_attachments"]);
        (rows[0]["state"] == "leaving").then_some(())
    })
    .await;
    assert_eq!(plugged.calls_of("DEL", id), 0);
    faults.release();
    run.await.expect("a task").expect_err("it was given up");
    stop.await.expect("a task").expect("StopPodSandbox");
    plugged.nothing_is_held().await;
    // DEL was told what ADD had answered, late as it was.
    assert!(plugged.told("DEL")["prevResult"]["ips"].is_array());
}

/// Every namespace is gone, and so is the daemon's memory; the plugins' books are on the disk.
#[tokio::test]
async fn after_a_reboot_plugins_are_told_of_every_pod_that_is_gone() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::start(&lan, "", &witnessed()).await;
    let pods = [plugged.run("one").await, plugged.run("two").await];
    plugged.node.kill();
    crate::reboot::reboot(&mut plugged.node).await;
    plugged.nothing_is_held().await;
    let calls = plugged.calls();
    for pod in &pods {
        assert!(calls.contains(&format!("DEL {pod} none")), "{calls:?}");
        plugged.go(pod).await;
    }
    let pod = plugged.run("three").await;
    plugged.go(&pod).await;
}

/// What DEL needs is in the pods' records as well.
#[tokio::test]
async fn attachments_come_back_when_the_database_is_lost() {
    let lan = Lan::new(1);
    let mut plugged = Plugged::start(&lan, "", &witnessed()).await;
    let pod = plugged.run("pod").await;
    let addresses = plugged.addresses(&pod).await;
    plugged.node.terminate();
    for file in ["quilt.db", "quilt.db-wal", "quilt.db-shm"] {
        let _none = std::fs::remove_file(plugged.node.names.root().join(file));
    }
    plugged.node.restart().await;
    assert_eq!(plugged.addresses(&pod).await, addresses);
    plugged.go(&pod).await;
    plugged.nothing_is_held().await;
    assert!(plugged.told("DEL")["prevResult"]["ips"].is_array());
}
