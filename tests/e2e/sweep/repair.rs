//! A running pod, broken by hand in every way: `check` tells exactly that, `check --repair` gives
//! back what is missing, and the pod works again.

use std::fs;
use std::path::PathBuf;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::support::cri::*;
use crate::support::pod::{exited, namespaces, shell};
use crate::support::{Node, Pod, eventually, link, process, registry};

/// A daemon that sweeps only when asked.
async fn quiet_node() -> Node {
    let mut node = Node::prepare("[cleanup]\ninterval_s = 0\n");
    node.spawn();
    node.answers().await;
    node
}

/// A pod whose container serves a page.
async fn web(node: &Node) -> (Pod, String) {
    let pod = node.pod("web").await;
    let script = "mkdir -p /www && echo here > /www/index.html && exec httpd -f -p 8080 -h /www";
    let id = pod.run(&shell("web", script)).await;
    works(node, &pod, &id).await;
    (pod, id)
}

/// The page comes over the pod's network, from the node's namespace; and commands run.
async fn works(node: &Node, pod: &Pod, container: &str) {
    let ip = pod.ip().await;
    let page = eventually("the pod serves its page", || async {
        let address = format!("{ip}:8080").parse().expect("an address");
        let patience = std::time::Duration::from_millis(500);
        let mut stream = std::net::TcpStream::connect_timeout(&address, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n").ok()?;
        std::io::read_to_string(stream).ok()
    })
    .await;
    assert!(page.contains("here"), "{page}");
    assert_eq!(node.cri.output(container, "echo works").await, "works");
}

fn sandbox_dir(node: &Node, pod: &Pod) -> PathBuf {
    node.names.state().join("sandboxes").join(&pod.id)
}

fn unmount(path: PathBuf) {
    umount2(&path, MntFlags::MNT_DETACH).expect("it was mounted");
}

/// The node's end of the only pod's link.
fn host_link(node: &Node) -> String {
    let mut ports = link::ports(&node.names.bridge);
    assert_eq!(ports.len(), 1, "one pod, one link");
    ports.remove(0)
}

/// A way to break a pod, and what `check` says then.
type Break = (
    &'static str,
    fn(&Node, &Pod),
    &'static [(&'static str, &'static str)],
);

const BREAKS: [Break; 7] = [
    (
        "the link is deleted",
        |node, _| link::delete(&host_link(node)),
        &[("wrong", "link")],
    ),
    (
        "the link is set down",
        |node, _| link::set_down(&host_link(node)),
        &[("wrong", "link")],
    ),
    (
        "the bridge is deleted",
        |node, _| link::delete(&node.names.bridge),
        &[("missing", "bridge"), ("wrong", "link")],
    ),
    (
        "the pin of the network is lost",
        |node, pod| unmount(sandbox_dir(node, pod).join("ns/net")),
        &[("missing", "namespace")],
    ),
    (
        "all pins are lost",
        |node, pod| {
            for kind in ["net", "ipc", "uts"] {
                unmount(sandbox_dir(node, pod).join("ns").join(kind));
            }
        },
        &[
            ("missing", "namespace"),
            ("missing", "namespace"),
            ("missing", "namespace"),
        ],
    ),
    (
        "shm is unmounted",
        |node, pod| unmount(sandbox_dir(node, pod).join("shm")),
        &[("missing", "mount")],
    ),
    (
        "a file is deleted",
        |node, pod| {
            let hosts = sandbox_dir(node, pod).join("hosts");
            fs::remove_file(hosts).expect("a generated file");
        },
        &[("missing", "pod file")],
    ),
];

#[tokio::test]
async fn a_broken_pod_is_told_and_mended_and_works_again() {
    let node = quiet_node().await;
    let (pod, container) = web(&node).await;
    let whole = node.check();
    assert_eq!((whole.status, whole.found.len()), (0, 0), "{whole:?}");
    for (what, break_it, expected) in BREAKS {
        break_it(&node, &pod);
        let told = node.check();
        assert!(told.has(expected), "{what}: {told:?}");
        assert_eq!(told.status, 1, "{what}");
        let again = node.check();
        assert_eq!(again.found, told.found, "{what}: a check changes nothing");
        let mended = node.check_and_repair();
        assert_eq!(mended.status, 0, "{what}: {mended:?}");
        assert!(mended.has(expected), "{what}: {mended:?}");
        let after = node.check();
        assert_eq!(
            (after.status, after.found.len()),
            (0, 0),
            "{what}: {after:?}"
        );
        works(&node, &pod, &container).await;
    }
    // A container that is made now gets the same.
    let script = "test -e /dev/shm && hostname && ip -4 addr show eth0";
    let seen = pod.run_to_end(&shell("late", script)).await;
    assert_eq!(seen.exit_code, 0, "{seen:?}");
}

#[tokio::test]
async fn a_pod_without_a_process_gets_new_namespaces() {
    let node = quiet_node().await;
    let pod = node.pod("empty").await;
    let before = pod.ip().await;
    // Nothing holds them: they end with their pins, and the link with them.
    for kind in ["net", "ipc", "uts"] {
        unmount(sandbox_dir(&node, &pod).join("ns").join(kind));
    }
    let mended = node.check_and_repair();
    assert_eq!(mended.status, 0, "{mended:?}");
    assert_eq!(pod.ip().await, before);
    let seen = pod
        .run_to_end(&shell(
            "late",
            &format!("ip -4 addr show eth0 | grep {before}/"),
        ))
        .await;
    assert_eq!(seen.exit_code, 0, "{seen:?}");
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_a_repair_leaves_a_whole_pod() {
    for point in [
        "sweep.mended",
        "sandbox.lacking",
        "sandbox.pinned",
        "sandbox.given_back",
        "sandbox.mended",
    ] {
        let mut node = Node::prepare("[cleanup]\ninterval_s = 0\n");
        node.env = vec![("QUILT_FAULTS".into(), format!("{point}=abort"))];
        node.spawn();
        node.answers().await;
        let (pod, container) = web(&node).await;
        link::delete(&host_link(&node));
        unmount(sandbox_dir(&node, &pod).join("ns/net"));
        unmount(sandbox_dir(&node, &pod).join("shm"));
        // At the last point the answer may just have been given.
        let cut_off = node.operate(&["check", "--repair"]).status.code();
        let last = point == "sandbox.mended" && cut_off == Some(0);
        assert!(cut_off == Some(2) || last, "{point}: {cut_off:?}");
        eventually("the daemon has died", || {
            let ended = node.ended();
            async move { ended }
        })
        .await;
        node.env.clear();
        node.restart().await;
        // A look at each pod is part of every start.
        works(&node, &pod, &container).await;
        eventually("the pod is whole", || async {
            (node.check().status == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_layer_that_is_gone_is_no_longer_claimed_and_the_next_pull_brings_it_back() {
    let node = quiet_node().await;
    let name = registry().image("busybox:latest");
    let pod = node.pod("before").await;
    let layers = node.names.root().join("layers");
    let layer = fs::read_dir(&layers).expect("layers").next();
    let layer = layer.expect("one layer").expect("an entry").path();
    fs::remove_dir_all(&layer).expect("root may remove");

    let told = node.check();
    assert!(told.has(&[("missing", "layer")]), "{told:?}");
    let shown = node.cri.image_status(&name).await.expect("ImageStatus");
    assert!(shown.is_some(), "a check alone changes nothing");
    let mended = node.check_and_repair();
    assert_eq!(mended.status, 0, "{mended:?}");
    let shown = node.cri.image_status(&name).await.expect("ImageStatus");
    assert!(shown.is_none(), "what cannot be run does not show");
    node.cri.pull(&name).await.expect("PullImage");
    assert!(layer.join("fs").is_dir(), "it was fetched again");
    let ran = pod.run_to_end(&shell("after", "true")).await;
    assert_eq!(ran.exit_code, 0);
    let after = node.check();
    assert_eq!((after.status, after.found.len()), (0, 0), "{after:?}");
}

#[tokio::test]
async fn a_container_that_has_not_started_gets_its_directories_back() {
    let node = quiet_node().await;
    let pod = node.pod("waits").await;
    let id = pod.create(&shell("main", "exit 4")).await;
    let snapshot = node.names.root().join("snapshots").join(&id);
    let files = node.names.state().join("containers").join(&id);
    fs::remove_dir_all(snapshot).expect("a snapshot");
    fs::remove_dir_all(files).expect("a directory");
    let expected = [("missing", "snapshot"), ("missing", "container directory")];
    let told = node.check();
    assert!(told.has(&expected), "{told:?}");
    let mended = node.check_and_repair();
    assert_eq!(mended.status, 0, "{mended:?}");
    node.cri.start(&id).await.expect("StartContainer");
    assert_eq!(exited(&node.cri, &id).await.exit_code, 4);
}

#[tokio::test]
async fn what_nothing_mends_is_told_with_what_to_do() {
    let node = quiet_node().await;
    let pod = node.pod("runs").await;
    let id = pod.idle("main").await;
    let plan = node
        .names
        .state()
        .join("containers")
        .join(&id)
        .join("plan.json");
    fs::remove_file(plan).expect("a plan");
    let said = node.check_and_repair();
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.has(&[("missing", "container directory")]), "{said:?}");
    let one = &said.differences[0];
    assert_eq!(one["mended"], false);
    let detail = one["detail"].as_str().expect("a text");
    assert!(detail.contains("plan.json"), "{detail}");
    let advice = one["repair"].as_str().expect("a text");
    assert!(advice.contains("create it anew"), "{advice}");
    let table = node.operate(&["check"]);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(
        table.contains("plan.json") && table.contains("create it anew"),
        "{table}"
    );
}

/// A pod with a shared PID namespace, and its init.
async fn shared(node: &Node) -> (Pod, String, i32) {
    let mut config = node.pod_config("shared");
    namespaces(&mut config).pid = NamespaceMode::Pod as i32;
    let pod = node.pod_from(config).await;
    let mut container = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let linux = container.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod as i32;
    let id = pod.run(&container).await;
    let init = process::in_cgroup_of(&node.names, &pod.id);
    (pod, id, init)
}

/// The shim; a pod's init is a fork of it that has kept its arguments.
fn shim_beside(node: &Node, init: i32) -> i32 {
    let shims = node.shims();
    let shim = shims.into_iter().find(|pid| *pid != init);
    shim.expect("a shim runs")
}

/// The pod shows as down, its container has ended, and both can be removed.
async fn comes_down(node: &Node, pod: &Pod, container: &str) {
    eventually("the pod is not ready", || async {
        let status = node.cri.pod_status(&pod.id).await.expect("a pod");
        (status.state() == PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
    assert_eq!(exited(&node.cri, container).await.exit_code, 137);
    let explained = node.operate(&["explain", &pod.id]);
    let explained = String::from_utf8_lossy(&explained.stdout);
    assert!(explained.contains("init_ended"), "{explained}");
    eventually("nothing of it is left but its record", || async {
        (node.check().status == 0 && link::ports(&node.names.bridge).is_empty()).then_some(())
    })
    .await;
    let late = shell("late", "true");
    let refused = node.cri.create(&pod.id, &late, &pod.config);
    assert!(refused.await.is_err(), "nothing can run in it");
}

#[tokio::test]
async fn a_pod_whose_init_is_killed_comes_down() {
    let node = quiet_node().await;
    let (pod, container, init) = shared(&node).await;
    process::signal(init, Signal::SIGKILL);
    comes_down(&node, &pod, &container).await;
}

#[tokio::test]
async fn a_pod_whose_init_outlived_its_shim_comes_down_with_it_all_the_same() {
    let node = quiet_node().await;
    let (pod, container, init) = shared(&node).await;
    let first = shim_beside(&node, init);
    process::signal(first, Signal::SIGKILL);
    eventually("another shim", || async {
        let shims = node.shims();
        let another = |pid: &i32| *pid != init && *pid != first;
        shims.iter().any(another).then_some(())
    })
    .await;
    eventually("it is connected, and commands run again", || async {
        let command = node.cri.exec(&container, &["true"], 5).await;
        command
            .is_ok_and(|ended| ended.exit_code == 0)
            .then_some(())
    })
    .await;
    process::signal(init, Signal::SIGKILL);
    eventually("the pod is not ready", || async {
        let status = node.cri.pod_status(&pod.id).await.expect("a pod");
        (status.state() == PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_whose_init_ended_while_nobody_looked_comes_down() {
    let mut node = quiet_node().await;
    let (pod, container, init) = shared(&node).await;
    node.kill();
    process::signal(shim_beside(&node, init), Signal::SIGKILL);
    process::signal(init, Signal::SIGKILL);
    eventually("both have ended", || async {
        (!process::is_running(init) && node.shims().is_empty()).then_some(())
    })
    .await;
    node.restart().await;
    eventually("the pod is not ready", || async {
        let status = node.cri.pod_status(&pod.id).await.expect("a pod");
        (status.state() == PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
    exited(&node.cri, &container).await;
}

#[tokio::test]
async fn without_a_daemon_nothing_is_checked() {
    let node = Node::prepare("");
    let output = node.operate(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no daemon runs here"), "{errors}");
}
