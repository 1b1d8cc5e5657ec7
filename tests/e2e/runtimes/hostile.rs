//! Programs that are no runtimes: missing, lying, or never ending. Each fails its container with a
//! reason, within its time, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::pod::shell;
use crate::support::{Node, process};

/// Name, script, and what its failure says.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("missing", "", "find the program"),
    ("silent", "#!/bin/sh\nexit 0\n", "process id"),
    ("failing", "#!/bin/sh\nexit 9\n", "exit status 9"),
    (
        "hanging",
        "#!/bin/sh\nexec sleep 1000.25\n",
        "did not end in 1 s",
    ),
    // Leaves a process behind, and then hangs.
    (
        "forking",
        "#!/bin/sh\ncase \"$*\" in *create*) (setsid sleep 1000.5 &) ;; esac\n\
            exec sleep 1000.5\n",
        "did not end in 1 s",
    ),
    // Names a process that is not its own.
    (
        "lying",
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do\n\
            [ \"$1\" = --pid-file ] && echo 1 >\"$2\"; shift; done\n",
        "process id",
    ),
];

#[tokio::test]
async fn a_program_that_is_no_runtime_fails_its_container_alone() {
    let mut node = Node::prepare("");
    let mut extra = String::new();
    for (name, script, _) in PROGRAMS {
        let path = node.path(&format!("{name}.sh"));
        if !script.is_empty() {
            fs::write(&path, script).expect("a file of the test");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its own file");
        }
        let path = path.display();
        extra.push_str(&format!(
            "[runtimes.{name}]\npath = \"{path}\"\ntimeout_s = 1\n"
        ));
    }
    node.configure(&extra);
    node.spawn();
    node.answers().await;
    let ours = node.pod("ours").await;
    let fates = PROGRAMS
        .iter()
        .map(|(name, _, why)| fails(&node, name, why));
    futures_util::future::join_all(fates).await;
    // Whoever shares the node with them has noticed nothing.
    let idle = ours.idle("idle").await;
    assert_eq!(node.cri.output(&idle, "echo well").await, "well");
    for argument in ["1000.25", "1000.5"] {
        assert_eq!(
            process::with_argument(argument),
            [0; 0],
            "left behind: sleep {argument}"
        );
    }
}

async fn fails(node: &Node, name: &str, why: &str) {
    let pod = node.pod_of(name, node.pod_config(name)).await;
    let id = pod.create(&shell("main", "sleep 1000")).await;
    let error = node.cri.start(&id).await.expect_err("no runtime");
    assert!(error.message().contains(why), "{name}: {error}");
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError"),
        "{name}"
    );
    node.cri.remove(&id).await.expect("RemoveContainer");
}
