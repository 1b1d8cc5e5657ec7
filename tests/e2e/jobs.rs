//! The queue of jobs, as a client and an operator see it: what is slow keeps nobody else waiting,
//! and is reported, not run twice.

use std::time::Duration;

use tonic::Code;

use crate::support::faults::Faults;
use crate::support::{Node, eventually, registry};

/// More than all workers together.
const PULLS: usize = 60;

/// The answer of `quiltd db query` to a count.
fn count(node: &Node, what: &str) -> String {
    let sql = format!("SELECT 'n=' || count(*) AS n FROM {what}");
    let output = node.operate(&["db", "query", &sql]);
    assert!(output.status.success(), "{sql}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.split(|c: char| c.is_whitespace() || c == '"');
    let found = found.filter_map(|word| word.strip_prefix("n="));
    found.map(str::to_owned).next().unwrap_or(text.clone())
}

#[tokio::test]
async fn slow_pulls_keep_no_pod_waiting() {
    let mut node = Node::prepare("");
    let faults = Faults::of(&mut node);
    node.restart().await;
    let image = registry().image("busybox:latest");
    node.cri.pull(&image).await.expect("PullImage");
    faults.hold("image.asked", "");
    let mut pulls = tokio::task::JoinSet::new();
    for number in 0..PULLS {
        let (cri, name) = (
            node.cri.clone(),
            registry().image(&format!("not-there:{number}")),
        );
        pulls.spawn(async move { cri.pull(&name).await });
    }
    let queued = PULLS.to_string();
    eventually("all pulls are asked for", || {
        let asked = count(&node, "jobs WHERE kind = 'pull'");
        let asked = (asked == queued).then_some(());
        async move { asked }
    })
    .await;
    let config = node.pod_config("quick");
    let pod = node.cri.run_pod(&config).await.expect("RunPodSandbox");
    node.cri.remove_pod(&pod).await.expect("RemovePodSandbox");
    assert_eq!(
        count(&node, "jobs WHERE kind = 'pull'"),
        queued,
        "pulls are still held"
    );
    faults.release();
    while let Some(pulled) = pulls.join_next().await {
        let error = pulled.expect("a task").expect_err("there is no such image");
        assert_eq!(error.code(), Code::NotFound, "{error}");
    }
}

#[tokio::test]
async fn a_job_that_takes_long_is_reported_and_not_run_twice() {
    let mut node = Node::prepare("[jobs]\nlong_running_s = 1\n");
    let faults = Faults::of(&mut node);
    node.restart().await;
    faults.hold("sandbox.network", "*1");
    let config = node.pod_config("slow");
    let cri = node.cri.clone();
    let running = tokio::spawn(async move { cri.run_pod(&config).await });
    eventually("the job is reported", || {
        let overdue = count(&node, "jobs WHERE overdue_at IS NOT NULL");
        async move { (overdue == "1").then_some(()) }
    })
    .await;
    faults.release();
    let pod = tokio::time::timeout(Duration::from_secs(20), running).await;
    let pod = pod
        .expect("an answer")
        .expect("a task")
        .expect("RunPodSandbox");
    let told = format!("events WHERE kind = 'overdue' AND object_id = '{pod}'");
    assert_eq!(count(&node, &told), "1");
    let once = format!("job_history WHERE key = 'sandbox/{pod}' AND status = 'failed'");
    assert_eq!(count(&node, &once), "0");
    node.cri.remove_pod(&pod).await.expect("RemovePodSandbox");
}
