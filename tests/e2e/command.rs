//! What a command gets from its request and from the node's configuration: variables of any bytes,
//! limits, and an answer when the kernel finds it too long.

use quilt::proto::cri as ours;
use tonic::Code;

use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{container, shell};
use crate::support::{Node, Pod, eventually};

fn variable(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

/// Creates a container with these variables as well. The independent client's API has no bytes.
async fn create(pod: &Pod, config: &ContainerConfig, more: &[(&str, &[u8])]) -> String {
    let more = more.iter().map(|(key, value)| ours::KeyValue {
        key: (*key).into(),
        value: value.to_vec(),
    });
    let created = pod.create_with(config, |config| config.envs.extend(more));
    created.await.expect("CreateContainer")
}

#[tokio::test]
async fn a_variable_may_hold_any_bytes_for_the_command_and_for_what_is_run_beside_it() {
    let mut node = Node::start().await;
    let pod = node.pod("bytes").await;
    let script = "printf %s \"$RAW\" | od -An -tx1; echo $TEXT $PATH; sleep 1000";
    let mut config = shell("main", script);
    config.envs = vec![variable("RAW", "replaced"), variable("TEXT", "ü")];
    let more: [(&str, &[u8]); 2] = [("RAW", b"\xff=\xfe\n\x80"), ("PATH", b"/bin:/\xf0")];
    let id = create(&pod, &config, &more).await;
    node.cri.start(&id).await.expect("StartContainer");
    eventually("it has printed", || async {
        (contents(&pod.log(&config), "stdout").len() == 2).then_some(())
    })
    .await;
    let lines = contents(&pod.log(&config), "stdout");
    assert_eq!(lines[0].trim(), "ff 3d fe 0a 80", "{lines:?}");
    assert!(lines[1].starts_with("ü /bin:/"), "{lines:?}");
    let own = "printf %s \"$RAW\" | od -An -tx1";
    assert_eq!(node.cri.output(&id, own).await.trim(), "ff 3d fe 0a 80");
    // It is in the rows and in the plan, not in the daemon's memory.
    node.kill();
    node.restart().await;
    assert_eq!(node.cri.output(&id, own).await.trim(), "ff 3d fe 0a 80");
}

#[tokio::test]
async fn a_command_that_is_too_long_for_the_kernel_is_told_so() {
    let node = Node::start().await;
    let pod = node.pod("long").await;
    let mut config = container("word", &["true"]);
    config.args = vec!["x".repeat(131_072)];
    let error = node.cri.create(&pod.id, &config, &pod.config).await;
    let error = error.expect_err("too long");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().starts_with("config.args[0]"), "{error}");
    let mut config = container("variable", &["true"]);
    config.envs = vec![variable("X", &"x".repeat(131_070))];
    let error = node.cri.create(&pod.id, &config, &pod.config).await;
    let error = error.expect_err("too long");
    assert!(error.message().starts_with("config.envs[0]"), "{error}");
    // The longest that there is.
    let mut config = shell("longest", "echo ${#X}");
    config.envs = vec![variable("X", &"x".repeat(131_069))];
    pod.run_to_end(&config).await;
    assert_eq!(contents(&pod.log(&config), "stdout"), ["131069"]);

    // Each by itself is short enough; all together are what a quarter of the stack does not hold.
    let mut config = container("all", &["true"]);
    let word = "x".repeat(100_000);
    config.command.extend(vec![word.clone(); 10]);
    config.args = vec![word.clone(); 10];
    config.envs = (0..10)
        .map(|number| variable(&format!("V{number}"), &word))
        .collect();
    let id = pod.create(&config).await;
    let error = node.cri.start(&id).await.expect_err("too much in all");
    assert!(
        error.message().contains("arguments and environment have 3"),
        "{error}"
    );
}

#[tokio::test]
async fn limits_are_the_operators_where_there_are_any() {
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -Ss";
    let mut node = Node::prepare("[container]\nulimits = [\"nofile=77:99\", \"core=0\"]\n");
    node.restart().await;
    let pod = node.pod("limits").await;
    let config = shell("main", script);
    pod.run_to_end(&config).await;
    let lines = contents(&pod.log(&config), "stdout");
    assert_eq!(&lines[..4], ["77", "99", "0", "0"], "{lines:?}");
    let id = pod.idle("idle").await;
    let told = node.cri.output(&id, script).await;
    assert_eq!(told.lines().collect::<Vec<_>>(), lines);

    // Without, there are as many open files as systemd gives its services.
    let node = Node::start().await;
    let pod = node.pod("limits").await;
    let config = shell("main", "ulimit -Sn; ulimit -Hn");
    pod.run_to_end(&config).await;
    let lines = contents(&pod.log(&config), "stdout");
    let hard: u64 = lines[1].parse().expect("a number");
    assert!(
        lines[0] == "1024" && (1024..=524_288).contains(&hard),
        "{lines:?}"
    );
}

#[tokio::test]
async fn what_is_in_an_environment_can_be_read_on_the_node_by_root_alone() {
    use std::os::unix::fs::MetadataExt;
    let mut node = Node::prepare("[runtimes.runc]\npath = \"/usr/sbin/runc\"\n");
    node.restart().await;
    for handler in ["", "runc"] {
        let pod = node.pod_of(handler, node.pod_config("secret")).await;
        let mut config = shell("main", "sleep 1000");
        config.envs = vec![variable("SECRET", "qlt-very-secret")];
        let id = pod.run(&config).await;
        let mut found = 0;
        let mut ahead = vec![node.names.state().join("containers").join(&id)];
        while let Some(directory) = ahead.pop() {
            for entry in std::fs::read_dir(&directory)
                .expect("a directory")
                .flatten()
            {
                let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
                if kind.is_dir() {
                    ahead.push(path);
                } else if kind.is_file() {
                    let text = std::fs::read(&path).expect("read");
                    let holds = String::from_utf8_lossy(&text).contains("qlt-very-secret");
                    let mode = entry.metadata().expect("there").mode();
                    assert!(!holds || mode & 0o077 == 0, "{path:?}: {mode:o}");
                    found += u32::from(holds);
                }
            }
        }
        assert!(found >= 2, "the plan and the record: {found}");
    }
}
