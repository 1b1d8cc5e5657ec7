//! Pods with a user namespace of their own (KEP-127): what kubelet asks for, seen from inside, from
//! the disk, and after everything that may happen to daemon and shim.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::signal::Signal;
use tonic::Code;

use crate::support::client::request;
use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{container, exited, namespaces, security, shell};
use crate::support::{Node, Pod, eventually, process, streaming};

/// The node's id of the pods' root.
pub(crate) const FIRST: u32 = 3_563_520_000;
pub(crate) const LENGTH: u32 = 65_536;

fn range(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping {
        host_id,
        container_id: 0,
        length: LENGTH,
    }]
}

fn users(host_id: u32) -> Option<UserNamespace> {
    Some(UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: range(host_id),
        gids: range(host_id),
    })
}

/// A pod's configuration, with a user namespace.
pub(crate) fn pod_config(node: &Node, name: &str) -> PodSandboxConfig {
    let mut config = node.pod_config(name);
    namespaces(&mut config).userns_options = users(FIRST);
    config
}

/// The same for one of its containers.
pub(crate) fn inside(mut config: ContainerConfig) -> ContainerConfig {
    let context = security(&mut config);
    let options = context.namespace_options.get_or_insert_default();
    options.userns_options = users(FIRST);
    config
}

pub(crate) async fn pod(node: &Node, name: &str) -> Pod {
    node.pod_from(pod_config(node, name)).await
}

pub(crate) fn mount(host: &Path, container_path: &str) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host.display().to_string(),
        uid_mappings: range(FIRST),
        gid_mappings: range(FIRST),
        ..Default::default()
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::metadata(path).expect("it is there");
    (found.uid(), found.gid())
}

/// As kubelet makes volumes: a hosts file, a termination log for anybody, a projected volume, and
/// one with the group of `fsGroup`.
fn volumes(node: &Node) -> Vec<Mount> {
    let path = |name: &str| node.path(&format!("volumes/{name}"));
    let written = |name: &str, mode| {
        fs::write(path(name), name).expect("a file of the test");
        fs::set_permissions(path(name), PermissionsExt::from_mode(mode)).expect("chmod");
    };
    written("etc-hosts", 0o644);
    written("termination-log", 0o666);
    fs::create_dir(path("projected")).expect("a directory of the test");
    written("projected/token", 0o600);
    fs::create_dir(path("group")).expect("a directory of the test");
    std::os::unix::fs::chown(path("group"), None, Some(2000)).expect("chown");
    fs::set_permissions(path("group"), PermissionsExt::from_mode(0o2770)).expect("chmod");
    vec![
        mount(&path("etc-hosts"), "/etc/hosts"),
        mount(&path("termination-log"), "/dev/termination-log"),
        mount(&path("projected"), "/var/run/secrets"),
        mount(&path("group"), "/group"),
    ]
}

#[tokio::test]
async fn what_kubelet_asks_for_works_inside_and_stays_as_it_is_on_the_disk() {
    let node = Node::start().await;
    let mut config = pod_config(&node, "userns");
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "7".into());
    sysctls.insert("kernel.shmmni".into(), "77".into());
    let pod = node.pod_from(config).await;
    let script = "for f in uid_map gid_map; do echo $(cat /proc/self/$f); done; \
        stat -c '%u:%g' / /etc/passwd /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm \
            /dev/termination-log /var/run/secrets/token /proc/1; \
        cat /var/run/secrets/token; echo bye > /dev/termination-log; echo h >> /etc/resolv.conf; \
        echo s > /dev/shm/s; echo d > /data; ip addr add 10.9.9.9/32 dev lo && ip addr show lo | \
            grep -c 10.9.9.9; cat /proc/sys/net/ipv4/ip_unprivileged_port_start \
            /proc/sys/kernel/shmmni; echo x > /sys/fs/cgroup/x || echo e > /dev/stderr; hostname";
    let mut config = inside(shell("main", script));
    config.mounts = volumes(&node);
    let added = vec!["NET_ADMIN".to_owned()];
    security(&mut config).capabilities = Some(Capability {
        add_capabilities: added,
        ..Default::default()
    });
    let ended = pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    let map = format!("0 {FIRST} {LENGTH}");
    let mut expected = vec![map.as_str(), &map];
    expected.extend(["0:0"; 9]);
    expected.extend(["projected/token1", "7", "77", "userns"]);
    assert_eq!(contents(&lines, "stdout"), expected, "{ended:?} {lines:?}");
    assert_eq!(
        contents(&lines, "stderr").last().map(String::as_str),
        Some("e")
    );

    // The files stay the node's root's, the writable layer is the pod's.
    let path = |name: &str| node.path(&format!("volumes/{name}"));
    assert_eq!(fs::read(path("termination-log")).expect("read"), b"bye\n");
    assert_eq!(owner(&path("termination-log")), (0, 0));
    let upper = node
        .names
        .root()
        .join("snapshots")
        .join(&ended.id)
        .join("upper/data");
    assert_eq!(owner(&upper), (FIRST, FIRST));

    // A user with the group of a volume.
    let mut config = inside(shell(
        "user",
        "echo g > /group/made; id -u; id -G; echo o >/dev/stdout",
    ));
    config.mounts = vec![mount(&path("group"), "/group")];
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut config).supplemental_groups = vec![2000];
    let ended = pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert_eq!(
        contents(&lines, "stdout"),
        ["1000", "1000 2000", "o"],
        "{lines:?}"
    );
    assert_eq!(owner(&path("group/made")), (1000, 2000));
    let runs_as = ended.user.and_then(|user| user.linux).expect("a user");
    assert_eq!((runs_as.uid, runs_as.gid), (1000, 1000));

    // Who is not among the ids cannot be run as.
    let mut config = inside(shell("beyond", "true"));
    security(&mut config).run_as_user = Some(Int64Value { value: 65_536 });
    let id = pod.create(&config).await;
    let error = node.cri.start(&id).await.expect_err("nobody");
    assert!(
        error.message().contains("user 65536 is not among the ids"),
        "{error}"
    );
}

#[tokio::test]
async fn it_is_told_in_statuses_and_asked_for_by_whoever_joins() {
    let node = Node::start().await;
    let mut client = node.cri.runtime();
    let features = client.status(request(StatusRequest { verbose: false }));
    let features = features.await.expect("Status").into_inner();
    let default = features
        .runtime_handlers
        .iter()
        .find(|one| one.name.is_empty());
    let default = default.and_then(|one| one.features).expect("features");
    assert!(default.user_namespaces, "{features:?}");

    let pod = pod(&node, "told").await;
    let status = node
        .cri
        .pod_status(&pod.id)
        .await
        .expect("PodSandboxStatus");
    let namespaces_told = status.linux.and_then(|linux| linux.namespaces);
    let options = namespaces_told
        .and_then(|told| told.options)
        .expect("options");
    assert_eq!(options.userns_options, users(FIRST));
    let mut config = inside(shell("mounts", "true"));
    fs::write(node.path("volumes/file"), "x").expect("a file of the test");
    config.mounts = vec![mount(&node.path("volumes/file"), "/file")];
    let id = pod.create(&config).await;
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(status.mounts[0].uid_mappings, range(FIRST));

    // A container that says nothing, or something else, is none of this pod.
    let mut other = inside(shell("other", "true"));
    let options = security(&mut other)
        .namespace_options
        .get_or_insert_default();
    options.userns_options = users(FIRST + LENGTH);
    for config in [shell("silent", "true"), other] {
        let refused = node.cri.create(&pod.id, &config, &pod.config).await;
        let error = refused.expect_err("another namespace");
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(
            error
                .message()
                .contains(&format!("uids 0:{FIRST}:{LENGTH}")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn nothing_of_the_nodes_is_shared_with_it_but_the_network() {
    let node = Node::start().await;
    for (pid, ipc) in [
        (NamespaceMode::Node, NamespaceMode::Pod),
        (NamespaceMode::Pod, NamespaceMode::Node),
    ] {
        let mut config = pod_config(&node, "nodes");
        namespaces(&mut config).pid = pid.into();
        namespaces(&mut config).ipc = ipc.into();
        let error = node.cri.run_pod(&config).await.expect_err("the node's");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let mut config = pod_config(&node, "network");
    namespaces(&mut config).network = NamespaceMode::Node.into();
    let pod = node.pod_from(config).await;
    let script = "readlink /proc/self/ns/net; ls /sys/class/net/lo/mtu; \
                  echo $(cat /proc/self/uid_map); \
                  (: > /sys/class/net/lo/mtu) 2>/dev/null && echo wrote; ip link add d type dummy \
                  2>/dev/null && echo made; true";
    let mut config = inside(shell("main", script));
    let context = security(&mut config);
    let options = context.namespace_options.get_or_insert_default();
    options.network = NamespaceMode::Node.into();
    context.capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        ..Default::default()
    });
    pod.run_to_end(&config).await;
    let own = fs::read_link("/proc/self/ns/net").expect("our own");
    let map = format!("0 {FIRST} {LENGTH}");
    let expected = [&own.display().to_string(), "/sys/class/net/lo/mtu", &map];
    assert_eq!(contents(&pod.log(&config), "stdout"), expected);
}

#[tokio::test]
async fn it_lives_through_the_deaths_of_daemon_and_shim() {
    let mut node = Node::start().await;
    let mut config = pod_config(&node, "shared");
    namespaces(&mut config).pid = NamespaceMode::Pod.into();
    let pod = node.pod_from(config).await;
    let mut config = inside(shell(
        "main",
        "trap 'exit 7' TERM; echo begun; while :; do sleep 0.05; done",
    ));
    let options = security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.pid = NamespaceMode::Pod.into();
    config.stdin = true;
    let id = pod.run(&config).await;
    let works = async |node: &Node| {
        let script =
            "echo $(cat /proc/self/uid_map); id -u; echo out > /dev/stdout; cat /proc/1/comm";
        let expected = format!("0 {FIRST} {LENGTH}\n0\nout\nquilt-pod");
        assert_eq!(node.cri.output(&id, script).await, expected);
        let url = node
            .exec_url(&id, &["sh", "-c", "read x; echo got $x"], false)
            .await;
        let ran = streaming::run(&url, b"this\n").await;
        assert_eq!(ran.stdout, b"got this\n", "{:?}", ran.status);
    };
    works(&node).await;
    node.kill();
    node.restart().await;
    works(&node).await;
    node.kill();
    // The pod's init is a copy of the shim, and looks like it.
    let comm = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    for shim in node
        .shims()
        .into_iter()
        .filter(|pid| comm(pid) != "quilt-pod\n")
    {
        process::signal(shim, Signal::SIGKILL);
    }
    node.restart().await;
    works(&node).await;

    // A pin that somebody took is set again, the user namespace' own as well.
    let pins = node
        .names
        .state()
        .join("sandboxes")
        .join(&pod.id)
        .join("ns");
    let inode = |name: &str| fs::metadata(pins.join(name)).expect("a pin").ino();
    let before = inode("user");
    node.kill();
    for pin in ["user", "net"] {
        rustix::mount::unmount(pins.join(pin), rustix::mount::UnmountFlags::DETACH)
            .expect("a pin of the test");
    }
    node.restart().await;
    eventually("the pins are back", || async {
        (inode("user") == before && inode("net") != 0).then_some(())
    })
    .await;
    works(&node).await;

    node.cri.stop(&id, 10).await.expect("StopContainer");
    let status = exited(&node.cri, &id).await;
    // Who is not its parent learns its exit code from Linux 6.15 on.
    let known = (status.exit_code, status.reason.as_str());
    assert!(
        matches!(known, (7, "Error") | (255, "ShimLost")),
        "{status:?}"
    );
    assert_eq!(contents(&pod.log(&config), "stdout"), ["begun"]);
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    assert!(!pins.exists(), "pins are left");
}

#[tokio::test]
async fn copies_of_images_belong_to_the_pod_as_overlays_do() {
    let mut node = Node::prepare("[snapshot]\ndriver = \"native\"\n");
    node.restart().await;
    let pod = pod(&node, "native").await;
    let config = inside(shell(
        "main",
        "stat -c %u /etc/passwd; echo d > /data; stat -c %u /data",
    ));
    let ended = pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert_eq!(contents(&lines, "stdout"), ["0", "0"], "{lines:?}");
    let rootfs = node
        .names
        .root()
        .join("snapshots")
        .join(&ended.id)
        .join("rootfs");
    assert_eq!(
        owner(&rootfs.join("data")),
        (0, 0),
        "a copy is mapped as a whole"
    );
}

#[tokio::test]
async fn a_privileged_container_has_all_rights_over_its_pod_and_none_over_the_node() {
    let node = Node::start().await;
    let mut config = pod_config(&node, "privileged");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = node.pod_from(config).await;
    let script = "mkdir /m && mount -t tmpfs none /m && echo mounted; hostname other && hostname; \
        [ -c /dev/kmsg ] && (: < /dev/kmsg) 2>/dev/null && echo kmsg; \
        echo 1 > /proc/sys/vm/drop_caches && echo dropped; mknod /n b 7 0 && echo made; \
        mount -o remount,rw /sys; echo x > /sys/power/state && echo slept; true";
    let mut config = inside(container("main", &["sh", "-c", script]));
    security(&mut config).privileged = true;
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert_eq!(
        contents(&lines, "stdout"),
        ["mounted", "other"],
        "{lines:?}"
    );
}
