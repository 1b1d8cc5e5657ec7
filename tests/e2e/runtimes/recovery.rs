//! Containers of other runtimes outlive the daemon and the shim.

use nix::sys::signal::Signal;

use super::{RUNTIMES, start};
use crate::support::log::contents;
use crate::support::pod::{exited, shell};
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
