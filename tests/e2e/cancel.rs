//! Calls that lose their callers, at every stage: the work goes on, who asks in time is told the
//! stage, and who asks again gets the one result.
//!
//! The daemon is held at a fault point by [`Faults`]; so these tests need a build that has them
//! (`--features fault-points`), as the crash tests do.

use std::future::Future;
use std::time::Duration;

use tonic::{Code, Status};

use crate::support::cri::*;
use crate::support::faults::Faults;
use crate::support::pod::{container, exited, namespaces, shell};
use crate::support::proxy::{Fault, Proxy};
use crate::support::wait::appears;
use crate::support::{Cri, Node, Pod, eventually, registry};

/// A daemon that can be held.
async fn node(extra: &str) -> (Node, Faults) {
    let mut node = Node::prepare(extra);
    let faults = Faults::of(&mut node);
    node.spawn();
    node.answers().await;
    (node, faults)
}

/// Makes a call while the daemon is held at `point`, and gives it up when that is reached; makes it
/// again with a short deadline, which must be answered with `stage`; makes it once more and lets
/// the daemon go on. Returns what the last call got.
async fn lost<T, F>(
    node: &Node,
    faults: &Faults,
    (point, stage): (&str, &str),
    call: impl Fn(Cri) -> F,
) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    faults.hold(point, "");
    tokio::select! {
        _ = call(node.cri.clone()) => panic!("{point}: answered although it is held"),
        () = faults.reached(point) => {}
    }
    late(node, (point, stage), &call).await;
    let again = call(node.cri.clone());
    let (again, ()) = tokio::join!(again, async { faults.release() });
    again.unwrap_or_else(|error| panic!("{point}: the retry: {error}"))
}

/// Calls with short deadlines until the daemon says that one has passed, at this stage. On a busy
/// machine the client's own clock may be first, or the daemon too late to find out the stage.
async fn late<T, F>(node: &Node, (point, stage): (&str, &str), call: impl Fn(Cri) -> F)
where
    F: Future<Output = Result<T, Status>>,
{
    let mut said = Vec::new();
    for deadline_ms in [500, 1000, 2000, 4000] {
        let impatient = node.cri.within(Duration::from_millis(deadline_ms));
        let Err(error) = call(impatient).await else {
            panic!("{point}: answered although it is held")
        };
        let is_deadline = error.code() == Code::DeadlineExceeded;
        if is_deadline && error.message().contains(stage) {
            return;
        }
        said.push(error.to_string());
    }
    panic!("{point}: no deadline is answered with {stage:?}: {said:#?}");
}

async fn pods(node: &Node) -> Vec<String> {
    let pods = node.cri.list_pods(None).await.expect("ListPodSandbox");
    pods.into_iter().map(|pod| pod.id).collect()
}

async fn containers(node: &Node) -> Vec<String> {
    let all = node.cri.list(None).await.expect("ListContainers");
    all.into_iter().map(|container| container.id).collect()
}

/// A container that heeds its stop signal, from the moment it has printed a line.
fn heeding(name: &str) -> ContainerConfig {
    let script = "trap 'exit 0' TERM; echo ran; while :; do sleep 0.05; done";
    shell(name, script)
}

async fn has_printed(pod: &Pod, config: &ContainerConfig) {
    eventually("the container has printed its line", || async {
        (pod.log_len(config) > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_whose_caller_went_away_at_any_stage_is_there_once() {
    let (node, faults) = node("").await;
    for stage in [
        ("writer.commit", "before RunPodSandbox was under way"),
        ("job.claimed", "\"queued"),
        ("sandbox.recorded", "\"queued"),
        ("sandbox.directory", "\"namespaces\""),
        ("sandbox.namespaces", "\"namespaces\""),
        ("sandbox.network", "\"network\""),
        ("sandbox.files", "\"files\""),
        ("sandbox.init_cgroup", "\"init\""),
        ("sandbox.init_launched", "\"init\""),
        ("sandbox.init", "\"init\""),
    ] {
        let mut config = node.pod_config("once");
        namespaces(&mut config).pid = NamespaceMode::Pod as i32;
        let config = &config;
        let run = |cri: Cri| async move { cri.run_pod(config).await };
        let id = lost(&node, &faults, stage, run).await;
        assert_eq!(pods(&node).await, [id.as_str()], "{stage:?}");
        node.cri.remove_pod(&id).await.expect("RemovePodSandbox");
    }
}

#[tokio::test]
async fn a_container_whose_caller_went_away_at_any_stage_is_there_once() {
    let (node, faults) = node("").await;
    let pod = &node.pod("create").await;
    for stage in [
        ("writer.commit", "before CreateContainer was under way"),
        ("job.claimed", "\"queued"),
        ("container.recorded", "\"queued"),
        ("container.snapshot", "\"snapshot\""),
        ("container.directory", "\"snapshot\""),
        ("container.prepared", "\"snapshot\""),
    ] {
        let config = &shell(stage.0, "true");
        let create = |cri: Cri| async move { cri.create(&pod.id, config, &pod.config).await };
        let id = lost(&node, &faults, stage, create).await;
        assert_eq!(containers(&node).await, [id.as_str()], "{stage:?}");
        node.cri.remove(&id).await.expect("RemoveContainer");
    }
}

#[tokio::test]
async fn a_start_whose_caller_went_away_at_any_stage_happens_once() {
    let (node, faults) = node("").await;
    let pod = node.pod("start").await;
    for stage in [
        ("writer.commit", "before StartContainer was under way"),
        ("job.claimed", "\"queued"),
        ("container.starting", "\"queued"),
        ("container.cgroup", "\"cgroup\""),
        ("container.sources", "\"cgroup\""),
        ("container.plan", "\"cgroup\""),
        ("container.launched", "\"launch\""),
        ("container.held", "\"launch\""),
    ] {
        let config = heeding(stage.0);
        let id = &pod.create(&config).await;
        let start = |cri: Cri| async move { cri.start(id).await };
        lost(&node, &faults, stage, start).await;
        has_printed(&pod, &config).await;
        node.cri.stop(id, 10).await.expect("StopContainer");
        assert_eq!(exited(&node.cri, id).await.exit_code, 0, "{stage:?}");
        assert_eq!(pod.log(&config).len(), 1, "{stage:?}: it ran once");
        node.cri.remove(id).await.expect("RemoveContainer");
    }
}

#[tokio::test]
async fn a_start_whose_answer_was_lost_is_told_and_a_second_one_is_refused() {
    let (node, faults) = node("").await;
    let pod = node.pod("answer").await;
    for (command, ends) in [("true", "good"), ("/no/such/command", "bad")] {
        let id = pod.create(&container(ends, &[command])).await;
        faults.hold("container.starting", "");
        tokio::select! {
            _ = node.cri.start(&id) => panic!("answered although it is held"),
            () = faults.reached("container.starting") => {}
        }
        // Answered after the daemon has read that the start was given up.
        node.cri.version().await.expect("Version");
        faults.release();
        exited(&node.cri, &id).await;
        let retry = node.cri.start(&id).await;
        match ends {
            "good" => retry.expect("it has started, and ended since"),
            _ => {
                let error = retry.expect_err("it could not be started");
                assert_eq!(error.code(), Code::Unknown, "{error}");
                assert!(error.message().contains(command), "{error}");
            }
        }
        let second = node.cri.start(&id).await.expect_err("it has run");
        assert_eq!(second.code(), Code::FailedPrecondition, "{second}");
    }
}

#[tokio::test]
async fn a_stop_whose_caller_went_away_at_any_stage_goes_on() {
    let (node, faults) = node("").await;
    let pod = node.pod("stop").await;
    for (point, stage, grace_s) in [
        ("writer.commit", "before StopContainer was under way", 30),
        ("job.claimed", "\"queued", 30),
        ("container.stopping", "\"stop signal\"", 30),
        ("container.exit_seen", "\"grace, SIGKILL in ", 30),
        ("container.exit_seen", "\"kill\"", 0),
    ] {
        let config = heeding(&format!("{point}-{grace_s}"));
        let id = &pod.run(&config).await;
        has_printed(&pod, &config).await;
        let stop = |cri: Cri| async move { cri.stop(id, grace_s).await };
        lost(&node, &faults, (point, stage), stop).await;
        let ended = node.cri.status(id).await.expect("ContainerStatus");
        assert_eq!(ended.state(), ContainerState::ContainerExited, "{point}");
        if grace_s > 0 {
            assert_eq!(ended.exit_code, 0, "{point}: it heeded the one stop signal");
        }
    }
}

#[tokio::test]
async fn a_removal_whose_caller_went_away_at_any_stage_goes_on() {
    let (node, faults) = node("").await;
    let pod = node.pod("remove").await;
    for stage in [
        ("writer.commit", "before RemoveContainer was under way"),
        ("job.claimed", "\"queued"),
        ("container.killed", "\"kill\""),
        ("container.exit_seen", "\"kill\""),
        ("container.cgroup_removed", "\"release\""),
        ("container.forgotten", "\"remove\""),
        ("container.files_removed", "\"remove\""),
    ] {
        let id = &pod.idle(stage.0).await;
        let remove = |cri: Cri| async move { cri.remove(id).await };
        lost(&node, &faults, stage, remove).await;
        assert!(containers(&node).await.is_empty(), "{stage:?}");
    }
}

#[tokio::test]
async fn a_pods_end_whose_caller_went_away_at_any_stage_goes_on() {
    let (node, faults) = node("").await;
    for (point, stopping, removing) in [
        (
            "writer.commit",
            "before StopPodSandbox was under way",
            "before RemovePodSandbox was under way",
        ),
        ("job.claimed", "\"queued", "\"queued"),
        (
            "container.exit_seen",
            "\"containers end\"",
            "\"containers end\"",
        ),
        (
            "sandbox.namespaces_removed",
            "\"namespaces\"",
            "\"namespaces\"",
        ),
        ("sandbox.files_removed", "", "\"remove\""),
    ] {
        for (whole, stage) in [(false, stopping), (true, removing)] {
            if stage.is_empty() {
                continue;
            }
            let pod = node.pod("end").await;
            pod.idle("main").await;
            let id = &pod.id;
            let end = |cri: Cri| async move {
                match whole {
                    true => cri.remove_pod(id).await,
                    false => cri.stop_pod(id).await,
                }
            };
            lost(&node, &faults, (point, stage), end).await;
            let left = node.cri.pod_status(id).await.ok();
            let state = left.map(|status| status.state());
            let expected = (!whole).then_some(PodSandboxState::SandboxNotready);
            assert_eq!(state, expected, "{point}");
            node.cri.remove_pod(id).await.expect("RemovePodSandbox");
        }
    }
}

#[tokio::test]
async fn a_pull_whose_caller_went_away_at_any_stage_is_one_pull() {
    let (node, faults) = node("").await;
    let proxy = Proxy::start(&registry().address, Fault::Hold);
    proxy.release();
    let name = &format!("{}/schema2:latest", proxy.address);
    for stage in [
        ("writer.commit", "before PullImage was under way"),
        ("job.claimed", "\"queued"),
        ("image.asked", "\"queued"),
        ("image.resolved", "\"resolve\""),
        ("image.layers_recorded", "\"resolve\""),
        ("image.layer_fetched", "\"fetch, 1 of 2 layers done\""),
        ("image.fetched", "\"fetch, 2 of 2 layers done\""),
        ("image.layer_in_place", "\"commit"),
        ("image.layer_committed", "\"commit"),
    ] {
        // A layer that is still being removed would make the pull ask twice.
        eventually("the layers of the last one are gone", || async {
            (rows(&node, "layers") == 0).then_some(())
        })
        .await;
        let before = proxy.manifests_asked();
        let pull = |cri: Cri| async move { cri.pull(name).await };
        lost(&node, &faults, stage, pull).await;
        let asked = proxy.manifests_asked() - before;
        assert_eq!(asked, 1, "{stage:?}: three calls are one pull");
        let remove = |cri: Cri| async move { cri.remove_image(name).await };
        let removing = match stage.0 {
            "writer.commit" => ("writer.commit", "before RemoveImage was under way"),
            "job.claimed" => ("job.claimed", "\"queued"),
            _ => ("image.removing", "\"remove\""),
        };
        lost(&node, &faults, removing, remove).await;
        let images = node.cri.list_images().await.expect("ListImages");
        assert!(images.is_empty(), "{stage:?}: {images:?}");
    }
}

/// Rows of a table, as the daemon counts them.
fn rows(node: &Node, table: &str) -> u64 {
    let counted = node.operate(&["inventory"]).stdout;
    let counted = String::from_utf8_lossy(&counted).into_owned();
    let count = counted.lines().find_map(|line| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        (name == table).then(|| count.trim().parse().expect("a number"))
    });
    count.unwrap_or_else(|| panic!("{table} is not counted: {counted}"))
}

/// PullImage with credentials.
async fn pull_as(cri: &Cri, image: &str, password: &str) -> Result<String, Status> {
    let message = PullImageRequest {
        image: Some(ImageSpec {
            image: image.into(),
            ..Default::default()
        }),
        auth: Some(AuthConfig {
            username: "someone".into(),
            password: password.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let answer = cri.image().pull_image(message).await?;
    Ok(answer.into_inner().image_ref)
}

#[tokio::test]
async fn who_shows_other_credentials_does_not_ride_along() {
    let (node, faults) = node("").await;
    let proxy = Proxy::start(&registry().address, Fault::Hold);
    proxy.release();
    let name = &format!("{}/busybox:latest", proxy.address);
    faults.hold("image.resolved", "");
    let pulls = ["a", "a", "b", ""].map(|password| {
        let cri = node.cri.clone();
        async move {
            match password {
                "" => cri.pull(name).await,
                _ => pull_as(&cri, name, password).await,
            }
        }
    });
    let all = futures_util::future::join_all(pulls);
    let resolved = async {
        eventually("each has asked the registry for itself", || async {
            (proxy.manifests_asked() >= 3).then_some(())
        })
        .await;
        faults.release();
    };
    let (answers, ()) = tokio::join!(all, resolved);
    for answer in answers {
        answer.expect("PullImage");
    }
    assert_eq!(proxy.manifests_asked(), 3, "of four calls two are equal");
}

#[tokio::test]
async fn a_configuration_whose_caller_went_away_is_kept() {
    let (node, faults) = node("").await;
    let stage = ("writer.commit", "before UpdateRuntimeConfig was under way");
    let update = |cri: Cri| async move {
        let network = NetworkConfig {
            pod_cidr: "10.9.0.0/24".into(),
        };
        let message = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig {
                network_config: Some(network),
            }),
        };
        let request = cri.wrap(message);
        cri.runtime().update_runtime_config(request).await.map(drop)
    };
    lost(&node, &faults, stage, update).await;
}

/// Runs a pod whose caller goes away while it is set up; returns when it stands.
async fn abandon(node: &Node, faults: &Faults, name: &str) -> String {
    let config = node.pod_config(name);
    faults.hold("sandbox.network", "*1");
    tokio::select! {
        _ = node.cri.run_pod(&config) => panic!("answered although it is held"),
        () = faults.reached("sandbox.network") => {}
    }
    // On the same connection: once it is answered, the daemon has read that the first was given up.
    node.cri.version().await.expect("Version");
    faults.release();
    eventually("the pod stands", || async {
        let pods = node.cri.list_pods(None).await.expect("ListPodSandbox");
        let is_it = |pod: &PodSandbox| pod.metadata == config.metadata;
        pods.into_iter().find(is_it).map(|pod| pod.id)
    })
    .await
}

/// A pod whose caller hung up at once, while the points are armed for another.
async fn hung_up(node: &Node) -> String {
    for n in 0..50 {
        let config = node.pod_config(&format!("hung-up-{n}"));
        let hasty = node.cri.within(Duration::from_millis(3));
        let answered = hasty.run_pod(&config).await.is_ok();
        let stands = appears(Duration::from_secs(1), || async {
            let pods = node.cri.list_pods(None).await.expect("ListPodSandbox");
            let is_it = |pod: &PodSandbox| pod.metadata == config.metadata;
            pods.into_iter().find(is_it).map(|pod| pod.id)
        });
        match stands.await {
            Some(id) if answered => node.cri.remove_pod(&id).await.expect("RemovePodSandbox"),
            Some(id) => return id,
            // It hung up before the daemon had heard of it.
            None => {}
        }
    }
    panic!("the daemon is always faster than its client")
}

async fn is_withdrawn(node: &Node, id: &str) {
    eventually("the abandoned pod is withdrawn", || async {
        // Lists do not count as coming back.
        (!pods(node).await.iter().any(|known| known == id)).then_some(())
    })
    .await;
    let told = node.operate(&["explain", id]).stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("abandoned"), "{told}");
}

#[tokio::test]
async fn a_pod_nobody_came_back_for_is_withdrawn_and_no_other() {
    let (mut node, faults) = node("[cri]\nabandoned_after_s = 2\n").await;
    let answered = node.pod("answered").await;
    let asked_for = abandon(&node, &faults, "asked-for").await;
    node.cri
        .pod_status(&asked_for)
        .await
        .expect("PodSandboxStatus");
    // One that is waited for longer than that.
    faults.hold("sandbox.files", "*1");
    let config = node.pod_config("awaited");
    let (cri, run) = (node.cri.clone(), config.clone());
    let waiting = tokio::spawn(async move { cri.run_pod(&run).await });
    faults.reached("sandbox.files").await;

    let never = hung_up(&node).await;
    is_withdrawn(&node, &never).await;
    faults.release();
    let awaited = waiting.await.expect("a caller").expect("RunPodSandbox");
    let mut left = pods(&node).await;
    left.sort();
    let mut expected = vec![answered.id.clone(), asked_for, awaited];
    expected.sort();
    assert_eq!(left, expected);

    // A daemon that was killed meanwhile finds the one nobody came back for.
    let over_restart = abandon(&node, &faults, "restart").await;
    node.kill();
    node.restart().await;
    is_withdrawn(&node, &over_restart).await;
    left = pods(&node).await;
    left.sort();
    assert_eq!(left, expected);
}
