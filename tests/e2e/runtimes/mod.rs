//! RuntimeClass handlers: pods of Debian's runc and crun live as those of our own runtime do, and
//! a program that is no runtime harms nobody.

mod compare;
mod hostile;
mod recovery;
mod users;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tonic::Code;

use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{exited, resources, security, shell};
use crate::support::{Node, Pod, eventually};

/// The runtimes that are tried.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// crun refuses a node whose unified hierarchy has controllers beside those of cgroup v1. There it
/// runs in a mount namespace of its own without that hierarchy, which is ours to enter anyway.
const CRUN_OF_HYBRID_NODE: &str = "#!/bin/sh
exec unshare --mount --propagation slave \\
    sh -c 'umount -l /sys/fs/cgroup/unified; exec crun \"$@\"' sh \"$@\"\n";

/// Has both in the configuration.
fn configure(node: &Node) {
    let controllers = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
    let mut crun = PathBuf::from("/usr/bin/crun");
    if controllers.is_ok_and(|controllers| !controllers.trim().is_empty()) {
        crun = node.path("crun.sh");
        fs::write(&crun, CRUN_OF_HYBRID_NODE).expect("a file of the test");
        fs::set_permissions(&crun, fs::Permissions::from_mode(0o755)).expect("its own file");
    }
    node.configure(&format!(
        "[runtimes.runc]\npath = \"/usr/sbin/runc\"\n[runtimes.crun]\npath = {crun:?}\n\
         user_namespaces = true\n[runtimes.silent]\npath = {crun:?}\n"
    ));
}

async fn start() -> Node {
    let mut node = Node::prepare("");
    configure(&node);
    node.spawn();
    node.answers().await;
    node
}

/// Runs a container to its end, and returns all it printed.
async fn printed(pod: &Pod, config: &ContainerConfig) -> Vec<String> {
    let ended = pod.run_to_end(config).await;
    let lines = pod.log(config);
    assert_eq!(ended.exit_code, 0, "{ended:?} {lines:?}");
    contents(&lines, "stdout")
}

#[tokio::test]
async fn a_pod_of_another_runtime_lives_as_ours_do() {
    let node = start().await;
    let lives = RUNTIMES.map(|handler| live(&node, handler));
    futures_util::future::join_all(lives).await;
}

async fn live(node: &Node, handler: &str) {
    let cri = &node.cri;
    let pod = node.pod_of(handler, node.pod_config(handler)).await;
    let status = cri.pod_status(&pod.id).await.expect("PodSandboxStatus");
    assert_eq!(status.runtime_handler, handler);

    ends(&pod, handler).await;
    runs_commands(node, &pod, handler).await;
    ends_by_others(node, &pod, handler).await;

    // The runtime itself has forgotten what has ended.
    let known = node.names.state().join("runtimes").join(handler);
    crate::support::eventually("the runtime has forgotten", || async {
        let left = std::fs::read_dir(&known).expect("its root").count();
        (left == 0).then_some(())
    })
    .await;
}

/// What it prints, how it ends, who it is.
async fn ends(pod: &Pod, handler: &str) {
    let mut config = shell("ends", "echo out; echo err >&2; id -un; echo $HOME; exit 3");
    security(&mut config).run_as_username = "tester".into();
    let ended = pod.run_to_end(&config).await;
    assert_eq!(
        (ended.exit_code, ended.reason.as_str()),
        (3, "Error"),
        "{handler}"
    );
    let lines = pod.log(&config);
    assert_eq!(
        contents(&lines, "stdout"),
        ["out", "tester", "/home/tester"],
        "{handler}"
    );
    assert_eq!(contents(&lines, "stderr"), ["err"], "{handler}");
    let user = ended.user.and_then(|user| user.linux).expect("a user");
    assert_eq!((user.uid, user.gid), (1000, 1000), "{handler}");
}

/// Commands in it, what it uses, and its end by its stop signal.
async fn runs_commands(node: &Node, pod: &Pod, handler: &str) {
    let cri = &node.cri;
    let idle = pod.idle("idle").await;
    assert_eq!(cri.output(&idle, "cat; hostname").await, handler);
    let failing = cri
        .exec(&idle, &["sh", "-c", "echo no >&2; exit 5"], 20)
        .await;
    let failing = failing.expect("ExecSync");
    assert_eq!(
        (failing.exit_code, failing.stderr),
        (5, b"no\n".to_vec()),
        "{handler}"
    );
    let absent = cri
        .exec(&idle, &["/no/such/command"], 20)
        .await
        .expect_err("absent");
    assert!(
        absent.message().contains("/no/such/command"),
        "{handler}: {absent}"
    );
    let late = cri
        .exec(&idle, &["sleep", "1000"], 1)
        .await
        .expect_err("time is up");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{handler}: {late}");
    let commands = "for one in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$one; echo; done";
    let commands = cri.output(&idle, commands).await;
    assert!(!commands.contains("sleep 1000"), "{handler}: {commands}");

    let stats = cri.stats(&idle).await.expect("ContainerStats");
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
    assert!(
        memory.is_some_and(|bytes| bytes.value > 0),
        "{handler}: {memory:?}"
    );

    cri.stop(&idle, 20).await.expect("StopContainer");
    let status = cri.status(&idle).await.expect("ContainerStatus");
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (0, "Completed"),
        "{handler}"
    );
}

/// Want of memory, a terminal that is hung up, and a command that is not there.
async fn ends_by_others(node: &Node, pod: &Pod, handler: &str) {
    let cri = &node.cri;
    let mut hungry = shell("hungry", "x=a; while :; do x=$x$x$x$x; done");
    resources(&mut hungry).memory_limit_in_bytes = 24 << 20;
    resources(&mut hungry).memory_swap_limit_in_bytes = 24 << 20;
    let ended = pod.run_to_end(&hungry).await;
    assert_eq!(
        (ended.exit_code, ended.reason.as_str()),
        (137, "OOMKilled"),
        "{handler}"
    );

    // A terminal.
    let mut config = shell("tty", "[ -t 0 ] && [ -t 1 ] && echo terminal; sleep 1000");
    config.tty = true;
    let id = pod.run(&config).await;
    crate::support::eventually("the terminal says so", || async {
        let said = contents(&pod.log(&config), "stdout");
        (said.first().map(|line| line.trim_end()) == Some("terminal")).then_some(())
    })
    .await;
    cri.stop(&id, 0).await.expect("StopContainer");
    assert_eq!(exited(cri, &id).await.exit_code, 137, "{handler}");

    // A command that is not there.
    let id = pod
        .create(&crate::support::container("absent", &["/no/such/command"]))
        .await;
    let error = cri.start(&id).await.expect_err("absent");
    assert!(
        error.message().contains("/no/such/command"),
        "{handler}: {error}"
    );
    let status = cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError"),
        "{handler}"
    );
}

#[tokio::test]
async fn status_names_the_handlers_and_an_unknown_one_is_refused() {
    let node = start().await;
    // They are asked while calls are answered already.
    let handlers = eventually("all have told their features", || async {
        let message = StatusRequest::default();
        let status = node.cri.runtime().status(node.cri.wrap(message)).await;
        let handlers = status.expect("Status").into_inner().runtime_handlers;
        let told = handlers.iter().all(|handler| handler.features.is_some());
        told.then_some(handlers)
    })
    .await;
    let names: Vec<_> = handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    assert_eq!(names, ["", "crun", "runc", "silent"]);
    let features = |name: &str| {
        let handler = handlers.iter().find(|handler| handler.name == name);
        handler
            .and_then(|handler| handler.features)
            .expect("features")
    };
    // As `runc features` has it; Debian's crun knows no `features`.
    let recursive = |name| features(name).recursive_read_only_mounts;
    assert!(recursive("runc") && !recursive("crun"));
    let users = |name| features(name).user_namespaces;
    assert!(users("") && users("runc") && users("crun") && !users("silent"));
    let message = RunPodSandboxRequest {
        config: Some(node.pod_config("unknown")),
        runtime_handler: "kata".into(),
    };
    let refused = node
        .cri
        .runtime()
        .run_pod_sandbox(node.cri.wrap(message))
        .await;
    let refused = refused.expect_err("no such handler");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .contains("no runtime for \"kata\" is configured"),
        "{refused}"
    );
}
