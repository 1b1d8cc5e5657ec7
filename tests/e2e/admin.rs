//! What operators see of pods, containers, images, events and jobs: with a daemon and without one.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::node::quiltd;
use crate::support::operator::{column, complained, said};
use crate::support::pod::{exited, resources, shell};
use crate::support::{Node, container, eventually, process};

/// Commands that only read, and so answer with and without a daemon.
const READING: [&[&str]; 8] = [
    &["ps", "-a"],
    &["pods"],
    &["images"],
    &["pulls"],
    &["pulls", "--layers"],
    &["events"],
    &["jobs"],
    &["explain"],
];

/// Everything that reading commands say, as far as it does not change by itself.
fn everything(node: &Node, pod: &str) -> Vec<Value> {
    let mut said: Vec<_> = READING.iter().map(|command| node.ask(command)).collect();
    said.push(node.ask(&["explain", pod]));
    said.push(node.ask(&["db", "query", "SELECT * FROM v_containers ORDER BY id"]));
    said
}

/// Waits until nothing is queued: what is read afterwards stays as it is.
async fn at_rest(node: &Node) {
    eventually("nothing is queued", || async {
        (node.ask(&["jobs"]) == Value::Array(vec![])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn reading_commands_say_the_same_with_a_daemon_and_after_its_end() {
    let mut node = Node::start().await;
    let pod = node.pod("read").await;
    let idle = pod.idle("idle").await;
    let ended = pod.run_to_end(&shell("ended", "exit 7")).await.id;
    at_rest(&node).await;
    let living = everything(&node, &pod.id);
    assert_eq!(column(&living[1], "id"), [pod.id.as_str()]);
    let mut containers = column(&living[0], "id");
    containers.sort();
    let mut wanted = vec![idle.clone(), ended.clone()];
    wanted.sort();
    assert_eq!(containers, wanted);
    assert_eq!(column(&node.ask(&["ps"]), "id"), [idle.as_str()]);
    let image = crate::support::registry().image("busybox:latest");
    let tags = &living[2][0]["tags"];
    assert_eq!(tags, &serde_json::json!([image]));

    node.terminate();
    assert_eq!(everything(&node, &pod.id), living, "after SIGTERM");
    node.restart().await;
    at_rest(&node).await;
    let living = everything(&node, &pod.id);
    node.kill();
    assert_eq!(everything(&node, &pod.id), living, "after SIGKILL");
    node.restart().await;
}

#[tokio::test]
async fn tables_have_a_title_short_ids_and_one_line_for_each() {
    let node = Node::start().await;
    let pod = node.pod("table").await;
    let id = pod.idle("main").await;
    let text = said(&node.operate(&["ps"]));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("CONTAINER"), "{text}");
    let cells: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(cells[0], &id[..13], "{text}");
    assert!(
        cells.contains(&"Running") || cells.contains(&"running"),
        "{text}"
    );
    let whole = said(&node.operate(&["ps", "--no-trunc"]));
    assert!(whole.contains(&id) && whole.contains(&pod.id), "{whole}");
    let pods = said(&node.operate(&["pods"]));
    assert!(pods.contains(&pod.ip().await), "{pods}");
    for command in READING {
        let text = said(&node.operate(command));
        assert!(!text.contains("null"), "{command:?}: {text}");
    }
}

/// `ended` of what `explain` says about a container.
fn ended(node: &Node, id: &str) -> String {
    let story = node.ask(&["explain", id]);
    let ended = story["ended"].as_str();
    ended
        .unwrap_or_else(|| panic!("it has ended: {story}"))
        .into()
}

#[tokio::test]
async fn explain_tells_who_ended_a_container_and_how_long_each_stage_took() {
    let node = Node::start().await;
    let pod = node.pod("ends").await;
    let itself = pod.run_to_end(&shell("itself", "exit 7")).await.id;
    let client = pod.idle("client").await;
    process::catches_sigterm(process::in_cgroup_of(&node.names, &client)).await;
    node.cri.stop(&client, 10).await.expect("StopContainer");
    exited(&node.cri, &client).await;
    let mut hungry = container("hungry", &["tail", "/dev/zero"]);
    resources(&mut hungry).memory_limit_in_bytes = 24 << 20;
    let hungry = pod.run_to_end(&hungry).await.id;
    let broken = pod.create(&container("broken", &["/no/such"])).await;
    node.cri.start(&broken).await.expect_err("StartContainer");
    let stopped = pod.idle("stopped").await;
    let removed = pod.idle("removed").await;
    node.cri.remove(&removed).await.expect("RemoveContainer");
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");

    for (id, wanted) in [
        (&itself, "exit code 7, Error: it ended by itself"),
        (&client, "exit code 0, Completed: a client stopped it"),
        (&hungry, "exit code 137, OOMKilled: the kernel killed it"),
        (
            &broken,
            "exit code 128, StartError: it could not be started",
        ),
        (&stopped, "exit code 137, Error: its pod was stopped"),
        (&removed, "exit code 137"),
    ] {
        let ended = ended(&node, id);
        assert!(ended.starts_with(wanted), "{ended}, not {wanted}");
    }
    // Its row is gone, and its story is told all the same.
    let story = node.ask(&["explain", &removed[..20]]);
    assert_eq!(
        (&story["id"], &story["row"]),
        (&removed.into(), &Value::Null)
    );

    let story = node.ask(&["explain", "ends"]);
    assert_eq!(story["kind"], "sandbox");
    let kinds = column(&story["operations"], "kind");
    assert_eq!(kinds, ["run_sandbox", "stop_sandbox"]);
    let stages = story["operations"][0]["stages"].as_array().expect("stages");
    let names: Vec<_> = stages.iter().map(|stage| &stage[0]).collect();
    assert_eq!(names, ["queue", "namespaces", "network", "files"]);
    assert!(stages.iter().all(|stage| stage[1].as_i64() > Some(0)));
    assert_eq!(story["containers"].as_array().map(Vec::len), Some(5));
    let text = said(&node.operate(&["explain", "e2e/ends"]));
    assert!(text.contains("its pod was stopped"), "{text}");
    assert!(
        text.contains("network") && text.contains("OOMKilled"),
        "{text}"
    );
}

#[tokio::test]
async fn explain_tells_each_failed_try_and_why() {
    let mut node = Node::prepare("");
    let faults = "container.cgroup=error*2".to_owned();
    node.env.push(("QUILT_FAULTS".into(), faults));
    node.spawn();
    node.answers().await;
    let pod = node.pod("retried").await;
    let id = pod.idle("main").await;
    let story = node.ask(&["explain", &id]);
    let failures = story["failures"].as_array().expect("a list");
    let tries: Vec<_> = failures.iter().map(|one| &one["attempts"]).collect();
    assert_eq!(tries, [1, 2], "{story}");
    let text = said(&node.operate(&["explain", &id]));
    assert!(text.contains("what failed and was tried again"), "{text}");
    assert!(text.contains("container.cgroup"), "{text}");
}

#[tokio::test]
async fn explain_wants_one_object_and_says_which_there_are() {
    let node = Node::start().await;
    let one = node.pod("one").await;
    let two = node.pod("two").await;
    let (a, b) = (one.idle("same").await, two.idle("same").await);
    let text = complained(&node.operate(&["explain", "same"]));
    assert!(text.contains(&a) && text.contains(&b), "{text}");
    assert_eq!(node.ask(&["explain", "two/same"])["id"], b);
    assert_eq!(node.ask(&["explain", &a[..16]])["id"], a);
    let image = crate::support::registry().image("busybox:latest");
    assert_eq!(node.ask(&["explain", &image])["kind"], "image");
    for nobody in ["nobody", "' OR 1 --", "%", ""] {
        let text = complained(&node.operate(&["explain", nobody]));
        assert!(text.contains("no pod, container or image"), "{text}");
    }
}

/// `quiltd events --follow`, ended with the test.
struct Follower {
    child: Child,
    file: std::path::PathBuf,
}

impl Follower {
    fn start(node: &Node) -> Self {
        let file = node.path("followed");
        let child = Command::new(quiltd())
            .args([
                "events", "--follow", "-o", "json", "--since", "0", "--state",
            ])
            .arg(node.names.state())
            .stdin(Stdio::null())
            .stdout(File::create(&file).expect("a file of the test"))
            .spawn()
            .expect("quiltd runs");
        Self { child, file }
    }

    /// Every whole line so far.
    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).expect("a file of the test");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line| serde_json::from_str(line).expect("each line is JSON");
        whole.lines().map(parse).collect()
    }

    async fn sees(&self, id: &str, kind: &str) {
        eventually("the event is shown", || async {
            let events = self.events();
            let mut seen = events.iter();
            seen.any(|event| event["object_id"] == id && event["kind"] == kind)
                .then_some(())
        })
        .await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[tokio::test]
async fn events_are_followed_over_the_death_of_the_daemon_in_order_and_once() {
    let mut node = Node::start().await;
    let follower = Follower::start(&node);
    let one = node.pod("one").await;
    follower.sees(&one.id, "ready").await;
    node.kill();
    node.restart().await;
    let two = node.pod("two").await;
    node.cri
        .remove_pod(&two.id)
        .await
        .expect("RemovePodSandbox");
    follower.sees(&two.id, "removed").await;
    let sequences = |events: &[Value]| -> Vec<i64> {
        let numbers = events.iter().map(|event| event["sequence"].as_i64());
        numbers.map(|number| number.expect("a number")).collect()
    };
    let followed = sequences(&follower.events());
    assert!(followed.windows(2).all(|pair| pair[0] < pair[1]));
    let listed = node.ask(&["events", "--since", "0"]);
    let listed = sequences(listed.as_array().expect("a list"));
    assert_eq!(followed, listed[..followed.len()], "nothing is left out");

    let of_one = node.ask(&["events", "--object", &one.id[..12]]);
    assert!(!column(&of_one, "object_id").is_empty());
    assert!(column(&of_one, "object_id").iter().all(|id| *id == one.id));
    let newest = node.ask(&["events", "--limit", "1"]);
    assert_eq!(
        sequences(newest.as_array().expect("a list")),
        listed[listed.len() - 1..]
    );
}

#[tokio::test]
async fn without_a_database_commands_say_where_they_looked() {
    let node = Node::prepare("");
    for command in READING {
        let text = complained(&node.operate(command));
        let state = node.names.state().display().to_string();
        assert!(text.contains(&state) && text.contains("--root"), "{text}");
    }
    let root = node.names.root().display().to_string();
    let text = complained(&node.operate(&["ps", "--root", &root]));
    assert!(text.contains("quilt.db"), "{text}");
}

#[tokio::test]
async fn info_and_inventory_speak_json_as_well() {
    let mut node = Node::start().await;
    let info = node.ask(&["info"]);
    assert_eq!(info["pid"], node.pid());
    let pod = node.pod("counted").await;
    assert_eq!(node.ask(&["inventory"])["sandboxes"], 1);
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    node.terminate();
    assert_eq!(node.ask(&["inventory"])["sandboxes"], 0);
}
