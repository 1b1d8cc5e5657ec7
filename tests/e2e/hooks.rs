//! OCI hooks from a configured directory: at each stage, for whom they are meant, with our runtime
//! and with another, and what becomes of one that fails or never ends.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::log::contents;
use crate::support::pod::{labels, shell};
use crate::support::{Node, Pod, eventually};
use crate::user_namespace;

const STAGES: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Longest time of a hook that has to be waited for.
const HANGS_S: u64 = 1;
/// And of one that ends by itself, on whatever machine.
const ENDS_S: u64 = 10;

/// A hook of one stage that runs a script, for containers with the annotation `example.com/hooked`
/// of this value.
fn write_hook(directory: &Path, name: &str, stage: &str, value: &str, script: &str) {
    let hangs = script.contains("sleep");
    let timeout = if hangs { HANGS_S } else { ENDS_S };
    let hook = json!({
        "version": "1.0.0",
        "hook": {
            "path": "/bin/sh",
            "args": ["sh", "-c", script],
            "env": ["PATH=/usr/bin:/bin", format!("STAGE={stage}")],
            "timeout": timeout,
        },
        "when": {"annotations": {"^example\\.com/hooked$": format!("^{value}$")}},
        "stages": [stage],
    });
    let path = directory.join(format!("{name}.json"));
    fs::write(path, hook.to_string()).expect("a file of the test");
}

/// A daemon with a directory of hooks, and one with runc beside our own runtime.
async fn start() -> Node {
    let mut node = Node::prepare("");
    let directory = node.path("hooks.d");
    fs::create_dir(&directory).expect("a directory of the test");
    node.configure(&format!(
        "[hooks]\ndirectories = [{directory:?}]\nannotations = [\"example.com/*\"]\n\
         [runtimes.runc]\npath = \"/usr/sbin/runc\"\n"
    ));
    node.spawn();
    node.answers().await;
    node
}

/// What hooks have said of a container, by the events that tell of it.
fn told(node: &Node, id: &str) -> Vec<String> {
    let events = node.ask(&["events", "--object", id, "--limit", "1000"]);
    let events = events.as_array().expect("a list").iter();
    let hooks = events.filter(|event| event["kind"] == "hook");
    hooks
        .map(|event| event["message"].as_str().expect("a message").to_owned())
        .collect()
}

async fn hooked(pod: &Pod, name: &str, value: &str) -> String {
    let mut config = shell(name, "sleep 1000");
    config.annotations = labels(&[("example.com/hooked", value), ("other.example/secret", "s")]);
    pod.create(&config).await
}

#[tokio::test]
async fn hooks_run_at_their_stages_for_whom_they_are_meant() {
    let node = start().await;
    let directory = node.path("hooks.d");
    for stage in STAGES {
        let place = node.path("ran").display().to_string();
        // Inside the container there is no such place.
        let script =
            format!("read -r state; echo \"$state\"; echo $STAGE 2>/dev/null >>{place}; :");
        write_hook(&directory, stage, stage, "yes", &script);
    }
    for handler in ["", "runc"] {
        let pod = node.pod_of(handler, node.pod_config("pod")).await;
        let id = hooked(&pod, "hooked", "yes").await;
        node.cri.start(&id).await.expect("StartContainer");
        let pid = node.cri.output(&id, "cat /proc/1/comm").await;
        assert!(!pid.is_empty());
        node.cri.stop(&id, 0).await.expect("StopContainer");
        let ran = || fs::read_to_string(node.path("ran")).unwrap_or_default();
        eventually("the last of them has run", || async {
            ran().ends_with("poststop\n").then_some(())
        })
        .await;
        let ran = ran();
        let on_the_node: Vec<_> = ran.lines().collect();
        let expected: Vec<_> = STAGES
            .into_iter()
            .filter(|one| *one != "startContainer")
            .collect();
        assert_eq!(on_the_node, expected, "{handler:?}");
        fs::remove_file(node.path("ran")).expect("a file of the test");
        if handler.is_empty() {
            check_told(
                &eventually("all are told of", || async {
                    let all = told(&node, &id);
                    (all.len() == STAGES.len()).then_some(all)
                })
                .await,
                &id,
            );
        }
        // Who is not meant has none.
        let other = hooked(&pod, "other", "no").await;
        node.cri.start(&other).await.expect("StartContainer");
        node.cri.stop(&other, 0).await.expect("StopContainer");
        assert_eq!(
            ran_nothing(&node, &other),
            Vec::<String>::new(),
            "{handler:?}"
        );
    }
}

fn ran_nothing(node: &Node, id: &str) -> Vec<String> {
    assert!(!node.path("ran").exists());
    told(node, id)
}

/// Each stage once, in order, with the container's state.
fn check_told(messages: &[String], id: &str) {
    for (stage, message) in STAGES.into_iter().zip(messages) {
        let begin = format!("{stage} /bin/sh: ");
        let state = message
            .strip_prefix(&begin)
            .unwrap_or_else(|| panic!("{stage}: {message}"));
        let state: Value = serde_json::from_str(state).unwrap_or_else(|_| panic!("{message}"));
        assert_eq!(state["id"], *id);
        // The pod has one of that beginning as well, and the container one that is not for hooks.
        let seen = json!({"example.com/hooked": "yes", "example.com/note": "kept as it is"});
        assert_eq!(state["annotations"], seen);
        let on_the_node = !matches!(stage, "createContainer" | "startContainer" | "poststop");
        assert_eq!(state["pid"].is_number(), on_the_node, "{message}");
        let status = match stage {
            "prestart" | "createRuntime" => "creating",
            "poststart" => "running",
            "poststop" => "stopped",
            _ => "created",
        };
        assert_eq!(state["status"], status, "{message}");
    }
}

#[tokio::test]
async fn a_hook_that_fails_or_never_ends_fails_its_container_alone() {
    let node = start().await;
    let directory = node.path("hooks.d");
    let fates = [
        ("createRuntime", "echo because >&2; exit 3", "because"),
        ("createContainer", "echo because; exit 3", "because"),
        ("startContainer", "echo because; exit 3", "because"),
        ("prestart", "exec sleep 1000.75", "did not end in 1 s"),
    ];
    for (stage, script, _) in fates {
        write_hook(&directory, stage, stage, stage, script);
    }
    let pod = node.pod("fated").await;
    let idle = pod.idle("idle").await;
    for (stage, _, why) in fates {
        let id = hooked(&pod, &stage.to_lowercase(), stage).await;
        let (started, meanwhile) =
            tokio::join!(node.cri.start(&id), node.cri.output(&idle, "echo well"));
        assert_eq!(meanwhile, "well");
        let error = started.expect_err("the hook has failed");
        assert!(error.message().contains(why), "{stage}: {error}");
        assert!(error.message().contains(stage), "{stage}: {error}");
        let status = node.cri.status(&id).await.expect("ContainerStatus");
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError"),
            "{stage}"
        );
        let said = told(&node, &id);
        assert!(
            said.iter().any(|message| message.contains(why)),
            "{stage}: {said:?}"
        );
    }
    let left = crate::support::process::with_argument("1000.75");
    assert_eq!(left, [0; 0], "what hung is gone");
    // What is no hook is an error, by its file, for whoever it might have been for.
    fs::write(directory.join("bad.json"), "{}").expect("a file of the test");
    let id = hooked(&pod, "bad", "none").await;
    let error = node.cri.start(&id).await.expect_err("a bad file");
    assert!(error.message().contains("bad.json"), "{error}");
}

/// In the container's namespaces, as root there, with the node's files and the container's.
const IN_USERS: &str = r#"read -r state
bundle=${state#*'"bundle":"'}; bundle=${bundle%%'"'*}
root=$(sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' $bundle/config.json)
echo $(cat /proc/self/uid_map) > $root/by-create; cat $root/volume/word >> $root/by-create"#;

#[tokio::test]
async fn hooks_and_a_user_namespace_go_together() {
    let node = start().await;
    let directory = node.path("hooks.d");
    let place = node.path("ran").display().to_string();
    let of_process = format!(
        "read -r state; pid=${{state#*'\"pid\":'}}; pid=${{pid%%,*}}; \
         echo $STAGE $(cat /proc/$pid/uid_map) >>{place}"
    );
    for stage in ["prestart", "createRuntime", "poststart"] {
        write_hook(&directory, stage, stage, "yes", &of_process);
    }
    write_hook(&directory, "inside", "createContainer", "yes", IN_USERS);
    let script = "echo $(cat /proc/self/uid_map) > /by-start";
    write_hook(&directory, "start", "startContainer", "yes", script);
    let script = format!("echo $STAGE >>{place}");
    write_hook(&directory, "poststop", "poststop", "yes", &script);
    write_hook(&directory, "late", "poststop", "late", &script);
    fs::write(node.path("volumes/word"), "word\n").expect("a file of the test");

    let map = format!("0 {} {}", user_namespace::FIRST, user_namespace::LENGTH);
    for handler in ["", "runc"] {
        let config = user_namespace::pod_config(&node, "users");
        let pod = node.pod_of(handler, config).await;
        let script = "cat /by-create /by-start; sleep 1000";
        let mut config = user_namespace::inside(shell("main", script));
        config.annotations = labels(&[("example.com/hooked", "yes")]);
        config.mounts = vec![user_namespace::mount(&node.path("volumes"), "/volume")];
        let id = pod.run(&config).await;
        eventually("it has printed", || async {
            let said = contents(&pod.log(&config), "stdout");
            (said == [&map, "word", &map]).then_some(())
        })
        .await;
        node.cri.stop(&id, 0).await.expect("StopContainer");
        let ran = || fs::read_to_string(node.path("ran")).unwrap_or_default();
        eventually("the last of them has run", || async {
            ran().ends_with("poststop\n").then_some(())
        })
        .await;
        let stages = ["prestart", "createRuntime", "poststart"];
        let mut expected = stages.map(|stage| format!("{stage} {map}")).to_vec();
        expected.push("poststop".into());
        assert_eq!(ran().lines().collect::<Vec<_>>(), expected, "{handler:?}");
        fs::remove_file(node.path("ran")).expect("a file of the test");
    }

    // A hook for the end alone runs as well.
    let pod = node.pod("late").await;
    let id = hooked(&pod, "late", "late").await;
    node.cri.start(&id).await.expect("StartContainer");
    node.cri.stop(&id, 0).await.expect("StopContainer");
    eventually("it has run", || async {
        let ran = fs::read_to_string(node.path("ran")).unwrap_or_default();
        (ran == "poststop\n").then_some(())
    })
    .await;
}
