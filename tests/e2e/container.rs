//! A container's life: create, start, end, stop, remove; how it ended, and what it was given.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tonic::Code;

use crate::sandbox::is_id;
use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{container, exited, labels, namespaces, security, shell};
use crate::support::{Node, process, registry};

#[tokio::test]
async fn a_container_lives_from_create_to_remove() {
    let node = Node::start().await;
    let pod = node.pod("life").await;
    let mut config = shell("main", "echo hello; exit 7");
    config.annotations = labels(&[("example.com/a", "b")]);
    let id = pod.create(&config).await;
    assert!(is_id(&id), "{id}");

    let created = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0);

    node.cri.start(&id).await.expect("StartContainer");
    let ended = exited(&node.cri, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
    assert!(ended.created_at <= ended.started_at, "{ended:?}");
    assert!(ended.started_at <= ended.finished_at, "{ended:?}");
    assert_eq!(ended.metadata, config.metadata);
    assert_eq!(ended.labels, config.labels);
    assert_eq!(ended.annotations, config.annotations);
    assert_eq!(ended.log_path, pod.log_path(&config).display().to_string());
    assert_eq!(contents(&pod.log(&config), "stdout"), ["hello"]);
    let image = registry().pushed("busybox:latest");
    assert_eq!(ended.image_id, image.id());
    let named = ended.image.expect("an image").image;
    assert_eq!(named, registry().image("busybox:latest"));
    let image_ref = node.cri.pull(&named).await.expect("PullImage");
    assert_eq!(ended.image_ref, image_ref, "as PullImage answers");

    node.cri.remove(&id).await.expect("RemoveContainer");
    let gone = node.cri.status(&id).await.expect_err("removed");
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
}

#[tokio::test]
async fn an_end_without_error_is_completed() {
    let node = Node::start().await;
    let pod = node.pod("good").await;
    let ended = pod.run_to_end(&container("main", &["true"])).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
}

#[tokio::test]
async fn an_end_by_a_signal_is_128_and_its_number() {
    let node = Node::start().await;
    // Pid 1 of a PID namespace takes no signal but SIGKILL that it has no handler for, so the pod
    // shares its processes: pid 1 is its own.
    let mut config = node.pod_config("signals");
    namespaces(&mut config).pid = NamespaceMode::Pod as i32;
    let pod = node.pod_from(config).await;
    for (signal, code) in [
        (Signal::SIGKILL, 137),
        (Signal::SIGTERM, 143),
        (Signal::SIGSEGV, 139),
    ] {
        let mut config = shell(&format!("by-{code}"), "while :; do sleep 0.05; done");
        let options = security(&mut config)
            .namespace_options
            .get_or_insert_default();
        options.pid = NamespaceMode::Pod as i32;
        let id = pod.run(&config).await;
        process::signal(process::in_cgroup_of(&node.names, &id), signal);
        let ended = exited(&node.cri, &id).await;
        assert_eq!(
            (ended.exit_code, ended.reason.as_str()),
            (code, "Error"),
            "{signal}"
        );
    }
}

#[tokio::test]
async fn a_command_that_does_not_exist_fails_the_start_and_says_so() {
    let node = Node::start().await;
    let pod = node.pod("missing").await;
    for (name, command) in [
        ("absent", "/no/such/command"),
        ("in-path", "no-such-command"),
        ("no-x", "/etc/not-executable"),
        ("a-dir", "/etc"),
    ] {
        let id = pod.create(&container(name, &[command, "argument"])).await;
        let error = node.cri.start(&id).await.expect_err("it cannot start");
        assert!(
            error.message().contains(command),
            "the error names the command: {error}"
        );
        let status = node.cri.status(&id).await.expect("ContainerStatus");
        assert_eq!(status.state(), ContainerState::ContainerExited, "{name}");
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError"),
            "{name}"
        );
        assert!(
            status.message.contains(command),
            "the status names it too: {}",
            status.message
        );
        assert!(status.finished_at > 0);
        node.cri.remove(&id).await.expect("RemoveContainer");
    }
}

#[tokio::test]
async fn a_container_can_be_started_only_once() {
    let node = Node::start().await;
    let pod = node.pod("once").await;
    let id = pod.run(&container("main", &["true"])).await;
    exited(&node.cri, &id).await;
    let error = node.cri.start(&id).await.expect_err("it has ended");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}

#[tokio::test]
async fn the_same_request_again_gets_the_same_container() {
    let node = Node::start().await;
    let pod = node.pod("again").await;
    let config = shell("main", "true");
    let first = pod.create(&config).await;
    assert_eq!(first, pod.create(&config).await);
    let mut next = config.clone();
    next.metadata.as_mut().expect("metadata").attempt = 1;
    assert_ne!(first, pod.create(&next).await);
}

#[tokio::test]
async fn a_container_that_heeds_the_stop_signal_ends_at_once() {
    let node = Node::start().await;
    let pod = node.pod("polite").await;
    let config = shell(
        "main",
        "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done",
    );
    let id = pod.run(&config).await;
    crate::support::eventually("the trap is set", || async {
        contents(&pod.log(&config), "stdout")
            .contains(&"up".into())
            .then_some(())
    })
    .await;
    let begun = Instant::now();
    node.cri.stop(&id, 30).await.expect("StopContainer");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it waited: {:?}",
        begun.elapsed()
    );
    let ended = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(
        (ended.state(), ended.exit_code),
        (ContainerState::ContainerExited, 3)
    );
    assert_eq!(contents(&pod.log(&config), "stdout"), ["up", "bye"]);
}

#[tokio::test]
async fn a_container_that_ignores_the_stop_signal_is_killed_after_its_grace() {
    let node = Node::start().await;
    let pod = node.pod("deaf").await;
    let id = pod
        .run(&shell("main", "trap '' TERM; while :; do sleep 0.05; done"))
        .await;
    let begun = Instant::now();
    node.cri.stop(&id, 1).await.expect("StopContainer");
    let waited = begun.elapsed();
    assert!(
        waited >= Duration::from_secs(1),
        "SIGKILL came before the grace: {waited:?}"
    );
    assert!(
        waited < Duration::from_secs(8),
        "SIGKILL came late: {waited:?}"
    );
    let ended = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(
        (ended.state(), ended.exit_code),
        (ContainerState::ContainerExited, 137)
    );
}

#[tokio::test]
async fn no_grace_means_killed_at_once_with_all_its_children() {
    let node = Node::start().await;
    let pod = node.pod("family").await;
    let script = "trap '' TERM; for n in 1 2 3; do (trap '' TERM; sleep 1000) & done; wait";
    let id = pod.run(&shell("main", script)).await;
    let begun = Instant::now();
    node.cri.stop(&id, 0).await.expect("StopContainer");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(exited(&node.cri, &id).await.exit_code, 137);
}

#[tokio::test]
async fn stopping_and_removing_is_idempotent_and_removing_needs_no_stop() {
    let node = Node::start().await;
    let pod = node.pod("idem").await;
    let created = pod.create(&shell("created", "true")).await;
    node.cri
        .stop(&created, 1)
        .await
        .expect("StopContainer before it was started");
    let id = pod.idle("main").await;
    node.cri
        .remove(&id)
        .await
        .expect("RemoveContainer of a running container");
    node.cri.remove(&id).await.expect("RemoveContainer again");
    node.cri
        .stop(&id, 1)
        .await
        .expect("StopContainer of what is gone");
    let stopped = pod.idle("second").await;
    for _ in 0..2 {
        node.cri.stop(&stopped, 5).await.expect("StopContainer");
    }
}

#[tokio::test]
async fn containers_are_listed_by_id_state_pod_and_labels() {
    let node = Node::start().await;
    let (pod, other) = (node.pod("one").await, node.pod("two").await);
    let running = pod.idle("running").await;
    let created = pod.create(&shell("created", "true")).await;
    other.idle("elsewhere").await;
    let list = async |filter| {
        let found = node.cri.list(Some(filter)).await.expect("ListContainers");
        let mut names: Vec<_> = found
            .into_iter()
            .map(|c| c.metadata.expect("metadata").name)
            .collect();
        names.sort();
        names.join(" ")
    };
    let state = |value: ContainerState| ContainerFilter {
        state: Some(ContainerStateValue {
            state: value as i32,
        }),
        ..Default::default()
    };
    assert_eq!(
        list(ContainerFilter::default()).await,
        "created elsewhere running"
    );
    // CREATED is 0: an empty message on the wire.
    assert_eq!(
        list(state(ContainerState::ContainerCreated)).await,
        "created"
    );
    assert_eq!(
        list(state(ContainerState::ContainerRunning)).await,
        "elsewhere running"
    );
    assert_eq!(list(state(ContainerState::ContainerExited)).await, "");
    let in_pod = ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert_eq!(list(in_pod).await, "created running");
    let by_prefix = ContainerFilter {
        id: created[..13].into(),
        ..Default::default()
    };
    assert_eq!(list(by_prefix).await, "created");
    let selector = labels(&[("io.kubernetes.container.name", "running")]);
    let by_label = ContainerFilter {
        label_selector: selector,
        ..Default::default()
    };
    assert_eq!(list(by_label).await, "running");
    assert_eq!(
        node.cri.status(&running[..16]).await.expect("by prefix").id,
        running
    );
}

#[tokio::test]
async fn a_stopped_pod_takes_no_more_containers() {
    let node = Node::start().await;
    let pod = node.pod("closed").await;
    let created = pod.create(&shell("before", "true")).await;
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    let refused = node
        .cri
        .create(&pod.id, &shell("late", "true"), &pod.config)
        .await;
    assert_eq!(
        refused.expect_err("the pod is stopped").code(),
        Code::FailedPrecondition
    );
    let refused = node
        .cri
        .start(&created)
        .await
        .expect_err("the pod is stopped");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}
