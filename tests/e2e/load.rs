//! Many calls at once, and a database that somebody else has locked.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tonic::{Code, Status};

use crate::support::database::WriteLock;
use crate::support::pod::shell;
use crate::support::{Cri, Node, Pod, registry};

/// How long somebody else holds the database.
const HELD: Duration = Duration::from_secs(3);
/// Pods beside which the storm comes.
const STANDING: usize = 10;

type Call = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A call and what may come of it.
fn call<T, F>(what: &'static str, expected: Code, work: F) -> Call
where
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    Box::pin(async move {
        let (code, text) = match work.await {
            Ok(_) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        };
        if code == expected {
            return Ok(());
        }
        Err(format!("{what}: {code:?} {text}, not {expected:?}"))
    })
}

/// A pod with one container, from nothing to nothing.
async fn pod_life(
    node_cri: Cri,
    config: crate::support::cri::PodSandboxConfig,
) -> Result<(), Status> {
    let pod = node_cri.run_pod(&config).await?;
    let main = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let id = node_cri.create(&pod, &main, &config).await?;
    node_cri.start(&id).await?;
    node_cri.exec(&id, &["true"], 30).await?;
    node_cri.stop(&id, 30).await?;
    node_cri.remove(&id).await?;
    node_cri.stop_pod(&pod).await?;
    node_cri.remove_pod(&pod).await
}

/// What one standing pod is asked for: reads and commands, and more.
fn calls_about(cri: &Cri, pod: &Pod, id: &str, doomed: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let with = |n: usize| vec![(cri.clone(), id.to_owned(), pod.id.clone()); n];
    for (cri, id, _) in with(10) {
        let status = async move { cri.status(&id).await };
        calls.push(call("ContainerStatus", Code::Ok, status));
    }
    for (cri, _, pod) in with(5) {
        let status = async move { cri.pod_status(&pod).await };
        calls.push(call("PodSandboxStatus", Code::Ok, status));
    }
    for (cri, _, _) in with(5) {
        calls.push(call("ListContainers", Code::Ok, async move {
            cri.list(None).await
        }));
    }
    for (cri, _, _) in with(3) {
        calls.push(call("ListPodSandbox", Code::Ok, async move {
            cri.list_pods(None).await
        }));
    }
    for (cri, _, _) in with(2) {
        calls.push(call("ListImages", Code::Ok, async move {
            cri.list_images().await
        }));
    }
    for (cri, _, _) in with(2) {
        let image = registry().image("busybox:latest");
        calls.push(call("PullImage", Code::Ok, async move {
            cri.pull(&image).await
        }));
    }
    for (cri, id, _) in with(4) {
        let exec = async move { cri.exec(&id, &["true"], 30).await };
        calls.push(call("ExecSync", Code::Ok, exec));
    }
    calls.extend(changes_about(cri, id, doomed));
    calls
}

/// What one standing pod is told: ends, what is so already, and nonsense.
fn changes_about(cri: &Cri, id: &str, doomed: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let with = |n: usize| vec![(cri.clone(), id.to_owned()); n];
    for (cri, _) in with(2) {
        let doomed = doomed.to_owned();
        let stop = async move { cri.stop(&doomed, 0).await };
        calls.push(call("StopContainer", Code::Ok, stop));
    }
    for (cri, _) in with(2) {
        let doomed = doomed.to_owned();
        calls.push(call("RemoveContainer", Code::Ok, async move {
            cri.remove(&doomed).await
        }));
    }
    for (cri, id) in with(2) {
        let again = async move { cri.start(&id).await };
        calls.push(call("StartContainer of one that runs", Code::Ok, again));
    }
    for (cri, _) in with(2) {
        let absent = async move { cri.status(&"f".repeat(64)).await };
        calls.push(call("ContainerStatus of nothing", Code::NotFound, absent));
    }
    for (cri, _) in with(1) {
        let nothing = async move { cri.exec("", &["true"], 1).await };
        calls.push(call("ExecSync nowhere", Code::InvalidArgument, nothing));
    }
    for (cri, id) in with(1) {
        let nothing = async move { cri.exec(&id, &[], 1).await };
        calls.push(call("ExecSync of nothing", Code::InvalidArgument, nothing));
    }
    for (cri, _) in with(1) {
        let absent = async move { cri.image_status("absent.invalid/x:1").await };
        calls.push(call("ImageStatus of nothing", Code::Ok, absent));
    }
    for (cri, _) in with(1) {
        calls.push(call(
            "Version",
            Code::Ok,
            async move { cri.version().await },
        ));
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_hundred_calls_at_once_all_come_out_as_they_should() {
    let node = Node::start().await;
    let mut pods = Vec::new();
    for place in 0..STANDING {
        let pod = node.pod(&format!("standing-{place}")).await;
        let id = pod.idle("main").await;
        let doomed = pod.idle("doomed").await;
        pods.push((pod, id, doomed));
    }
    let mut calls: Vec<Call> = Vec::new();
    for (pod, id, doomed) in &pods {
        calls.extend(calls_about(&node.cri, pod, id, doomed));
    }
    for place in 0..8 {
        // Each asked for twice: the second joins the first.
        let config = node.pod_config(&format!("new-{place}"));
        for _ in 0..2 {
            let (cri, config) = (node.cri.clone(), config.clone());
            let run = async move { cri.run_pod(&config).await };
            calls.push(call("RunPodSandbox", Code::Ok, run));
        }
        let life = pod_life(node.cri.clone(), node.pod_config(&format!("whole-{place}")));
        calls.push(call("a pod's life", Code::Ok, life));
    }
    for (place, (pod, _, _)) in pods.iter().enumerate() {
        let (cri, config, pod) = (node.cri.clone(), pod.config.clone(), pod.id.clone());
        let life = async move {
            let id = cri
                .create(&pod, &shell(&format!("short-{place}"), "exit 3"), &config)
                .await?;
            cri.start(&id).await
        };
        calls.push(call("a short container", Code::Ok, life));
    }
    assert!(calls.len() >= 450, "{} calls, some of several", calls.len());
    let started = calls.into_iter().map(tokio::spawn);
    let ended = futures_util::future::join_all(started).await;
    let problems: Vec<String> = ended
        .into_iter()
        .filter_map(|result| result.expect("a call does not panic").err())
        .collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_locked_database_delays_writes_and_never_reads() {
    let node = Node::start().await;
    let pod = node.pod("standing").await;
    let id = pod.idle("main").await;

    let lock = WriteLock::take(&node).await;
    let writes: Vec<_> = (0..5)
        .map(|n| {
            let life = pod_life(node.cri.clone(), node.pod_config(&format!("waits-{n}")));
            tokio::spawn(life)
        })
        .collect();
    let until = Instant::now() + HELD;
    while Instant::now() < until {
        node.cri.status(&id).await.expect("ContainerStatus");
        node.cri
            .pod_status(&pod.id)
            .await
            .expect("PodSandboxStatus");
        let listed = node.cri.list(None).await.expect("ListContainers");
        assert_eq!(listed.len(), 1, "nothing can have been written");
        assert_eq!(node.cri.output(&id, "echo well").await, "well");
    }
    assert!(
        !writes.iter().any(tokio::task::JoinHandle::is_finished),
        "nothing can have been written"
    );
    lock.release().await;
    for write in writes {
        let done = write.await.expect("a call does not panic");
        done.expect("every call of a pod's life");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_hears_at_its_deadline_that_the_database_is_locked() {
    let node = Node::start().await;
    let config = node.pod_config("late");
    let lock = WriteLock::take(&node).await;
    let mut request = tonic::Request::new(crate::support::cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(2));
    let status = node.cri.runtime().run_pod_sandbox(request).await;
    let status = status.expect_err("nothing can be written");
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status}"
    );
    lock.release().await;
    // The retry joins what the first call asked for.
    node.cri.run_pod(&config).await.expect("RunPodSandbox");
    let pods = node.cri.list_pods(None).await.expect("ListPodSandbox");
    assert_eq!(pods.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_end_leaves_one_database_file() {
    let mut node = Node::start().await;
    let pod = node.pod("p").await;
    pod.idle("main").await;
    assert!(node.terminate().success());
    let files = std::fs::read_dir(node.names.root()).expect("the root directory");
    let names = files.map(|file| {
        file.expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned()
    });
    let mut names: Vec<String> = names.filter(|name| name.starts_with("quilt.db")).collect();
    names.sort();
    assert_eq!(names, ["quilt.db"]);
    node.restart().await;
}
