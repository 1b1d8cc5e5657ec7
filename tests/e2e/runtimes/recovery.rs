//! Containers of other runtimes outlive the daemon and the shim.

use nix::sys::signal::Signal;

use super::{RUNTIMES, start};
use crate::support::log::contents;
use crate::support::pod::{exited, labels, shell};
use crate::support::{eventually, process};

#[tokio::test]
async fn containers_of_other_runtimes_outlive_daemon_and_shim() {
    let mut node = start().await;
    let script = "while [ ! -e /tmp/end ]; do echo tick; sleep 0.05; done; exit 7";
    let config = shell("ticks", script);
    let mut all = Vec::new();
    for handler in RUNTIMES {
        let pod = node.pod_of(handler, node.pod_config(handler)).await;
        let id = pod.run(&config).await;
        let log = pod.log_path(&config);
        all.push((handler, id, log));
    }
    let ticks = |log: &std::path::Path| {
        let lines = crate::support::log::read(log);
        contents(&lines, "stdout").len()
    };

    // Without the daemon they go on, and an exit is not missed.
    node.kill();
    for (handler, _, log) in &all {
        let before = std::fs::metadata(log).expect("a log").len();
        eventually("it goes on", || async {
            let now = std::fs::metadata(log).expect(handler).len();
            (now > before).then_some(())
        })
        .await;
    }
    node.restart().await;
    for (handler, id, _) in &all {
        assert_eq!(
            node.cri.output(id, "echo again").await,
            "again",
            "{handler}"
        );
    }

    // Nor does the end of the shim end them: the next one takes them over.
    let shims = node.shims();
    assert_eq!(shims.len(), 1);
    process::signal(shims[0], Signal::SIGKILL);
    eventually("another shim", || async {
        let now = node.shims();
        (!now.is_empty() && now != shims).then_some(())
    })
    .await;
    for (handler, id, log) in &all {
        eventually("a command runs in it", || async {
            let touched = node.cri.exec(id, &["touch", "/tmp/end"], 20).await;
            touched
                .is_ok_and(|response| matches!(response.exit_code, 0 | 137))
                .then_some(())
        })
        .await;
        let ended = exited(&node.cri, id).await;
        // Who is not its parent learns its exit code from Linux 6.15 on.
        let known = (ended.exit_code, ended.reason.as_str());
        assert!(
            matches!(known, (7, "Error") | (255, "ShimLost")),
            "{handler}: {known:?}"
        );
        assert!(ticks(log) > 0, "{handler}");
    }
}

#[tokio::test]
async fn a_container_of_another_runtime_is_attached_to() {
    let node = start().await;
    for handler in RUNTIMES {
        let pod = node.pod_of(handler, node.pod_config(handler)).await;
        let mut config = shell(
            "main",
            "while read -r line; do echo got $line; done; exit 3",
        );
        (config.stdin, config.stdin_once) = (true, true);
        let id = pod.run(&config).await;
        let url = crate::streaming::attach::attach_url(&node, &id, true, false).await;
        let ran = crate::support::streaming::run(&url, b"one\ntwo\n").await;
        assert_eq!(ran.stdout, b"got one\ngot two\n", "{handler}");
        assert_eq!(exited(&node.cri, &id).await.exit_code, 3, "{handler}");
    }
}

#[tokio::test]
async fn a_runtime_gets_to_see_the_annotations_that_are_meant_for_it_alone() {
    let mut node = crate::support::Node::prepare("");
    node.configure(
        "[runtimes.runc]\npath = \"/usr/sbin/runc\"\nannotations = [\"for.it/*\", \"exact\"]\n",
    );
    node.spawn();
    node.answers().await;
    let mut config = node.pod_config("annotated");
    let of_pod = [("for.it/pod", "p"), ("for.it/both", "p"), ("other", "no")];
    config.annotations = labels(&of_pod);
    let pod = node.pod_of("runc", config).await;
    let mut config = shell("main", "sleep 1000");
    config.annotations = labels(&[("for.it/both", "c"), ("exact", "e"), ("exactly", "no")]);
    let id = pod.run(&config).await;
    let bundle = node
        .names
        .state()
        .join("containers")
        .join(&id)
        .join("bundle");
    let spec = std::fs::read(bundle.join("config.json")).expect("the bundle");
    let spec: serde_json::Value = serde_json::from_slice(&spec).expect("JSON");
    let seen: std::collections::BTreeMap<_, _> = spec["annotations"]
        .as_object()
        .expect("annotations")
        .iter()
        .filter(|(name, _)| !name.starts_with("io.quilt.rootfs."))
        .collect();
    let seen = serde_json::json!(seen);
    let expected = serde_json::json!({"for.it/pod": "p", "for.it/both": "c", "exact": "e"});
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn after_a_reboot_a_runtimes_containers_have_ended_and_it_forgets_them() {
    let mut node = start().await;
    let mut all = Vec::new();
    for handler in RUNTIMES {
        let pod = node.pod_of(handler, node.pod_config(handler)).await;
        let id = pod.idle("main").await;
        all.push((handler, pod.id, id));
    }
    node.kill();
    crate::reboot::reboot(&mut node).await;
    for (handler, pod, id) in &all {
        let status = node.cri.status(id).await.expect("ContainerStatus");
        let ended = (status.exit_code, status.reason.as_str());
        assert_eq!(ended, (255, "Unknown"), "{handler}");
        node.cri.remove_pod(pod).await.expect("RemovePodSandbox");
        let known = node.names.state().join("runtimes").join(handler);
        eventually("the runtime has forgotten it", || async {
            let left = std::fs::read_dir(&known).expect("its root").count();
            (left == 0).then_some(())
        })
        .await;
        // And runs others.
        let pod = node.pod_of(handler, node.pod_config(handler)).await;
        let again = pod.run_to_end(&shell("again", "exit 4")).await;
        assert_eq!(again.exit_code, 4, "{handler}");
    }
    // A node that starts anew has no cgroups; here those that stood for pods are left to the sweep.
    node.kill();
    node.restart().await;
}
