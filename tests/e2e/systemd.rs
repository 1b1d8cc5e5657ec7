//! The systemd cgroup driver, where systemd runs: the machine of `make test-vm`. Elsewhere most of
//! these tests look and pass. `hack/vm.sh systemd` runs other tests under this driver as well.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use quilt::proto::cri::{CgroupDriver, RuntimeConfigRequest};
use tonic::Code;

use crate::support::client::request;
use crate::support::cri::*;
use crate::support::faults::Faults;
use crate::support::pod::{exited, namespaces, resources, shell};
use crate::support::{Node, Pod, cgroup, eventually, process};

/// Whether this node has what the driver needs. The machine of `make test-vm` must.
fn is_there() -> bool {
    let systemd = fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "systemd");
    let there = systemd && Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let must = std::env::var_os("QUILT_VM").is_some();
    assert!(there || !must, "this machine is to have systemd");
    there
}

async fn start() -> Node {
    let mut node = Node::prepare_in_slices();
    node.spawn();
    node.answers().await;
    node
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output();
    let output = output.expect("systemctl runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Properties of a unit, as an operator sees them.
fn shown(unit: &str) -> BTreeMap<String, String> {
    let text = systemctl(&["show", unit]);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Units of this node that systemd has loaded, but for slices that are parents.
fn units(node: &Node) -> Vec<String> {
    let text = systemctl(&["list-units", "--all", "--plain", "--no-legend", "--full"]);
    let stem = node.names.cgroup_root.trim_end_matches(".slice");
    let stem = stem.trim_start_matches('/');
    let names = text.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| name.starts_with(stem) && name.contains("-quilt_"))
        .map(str::to_owned)
        .collect()
}

fn scope(id: &str) -> String {
    format!("quilt-{id}.scope")
}

/// The directory of a container's scope, by the process that runs in it.
fn directory(node: &Node, id: &str) -> PathBuf {
    let pid = process::in_cgroup_of(&node.names, id);
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    let path = text.trim().strip_prefix("0::/").expect("cgroup v2 alone");
    Path::new("/sys/fs/cgroup").join(path)
}

fn limits() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 25_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        unified: [
            ("memory.high".to_owned(), "62914560".to_owned()),
            ("pids.max".to_owned(), "77".to_owned()),
            ("cpu.max.burst".to_owned(), "5000".to_owned()),
        ]
        .into(),
        ..Default::default()
    }
}

/// What the kernel has, by file.
fn kernel(dir: &Path) -> BTreeMap<&'static str, String> {
    let files = [
        "cpu.max",
        "cpu.max.burst",
        "cpu.weight",
        "cpuset.cpus",
        "memory.high",
        "memory.max",
        "pids.max",
    ];
    let read = |name| {
        let text = fs::read_to_string(dir.join(name)).expect("a file of the kernel");
        (name, text.trim().to_owned())
    };
    files.map(read).into()
}

/// What systemd says of a container with [`limits`].
fn is_shown(id: &str) {
    let unit = shown(&scope(id));
    for (name, value) in [
        ("ActiveState", "active"),
        ("Delegate", "yes"),
        ("MemoryMax", "67108864"),
        ("MemoryHigh", "62914560"),
        ("CPUQuotaPerSecUSec", "250ms"),
        ("CPUWeight", "59"),
        ("TasksMax", "77"),
        ("AllowedCPUs", "0"),
    ] {
        assert_eq!(unit[name], value, "{name}");
    }
}

#[tokio::test]
async fn limits_are_in_the_kernel_and_with_systemd_and_outlive_its_reload() {
    if !is_there() {
        return;
    }
    let mut node = start().await;
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let config = runtime
        .runtime_config(request(RuntimeConfigRequest {}))
        .await;
    let linux = config.expect("RuntimeConfig").into_inner().linux;
    let driver = linux.expect("linux").cgroup_driver();
    assert_eq!(driver, CgroupDriver::Systemd);

    let pod = node.pod("limits").await;
    let mut config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    *resources(&mut config) = limits();
    let id = pod.run(&config).await;
    let dir = directory(&node, &id);
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    assert!(
        dir.starts_with(format!("/sys/fs/cgroup{parent}")),
        "{dir:?}"
    );
    is_shown(&id);
    let before = kernel(&dir);
    assert_eq!(before["memory.max"], "67108864");
    assert_eq!(before["cpu.max"], "25000 100000");
    assert_eq!(before["cpu.max.burst"], "5000");
    assert_eq!(before["cpuset.cpus"], "0");
    systemctl(&["daemon-reload"]);
    assert_eq!(kernel(&dir), before, "after a reload");

    let changed = LinuxContainerResources {
        cpu_quota: 40_000,
        memory_limit_in_bytes: 96 << 20,
        ..limits()
    };
    node.cri.update(&id, changed).await.expect("an update");
    let after = kernel(&dir);
    assert_eq!(after["memory.max"], (96 << 20).to_string());
    assert_eq!(after["cpu.max"], "40000 100000");
    let unit = shown(&scope(&id));
    assert_eq!(unit["MemoryMax"], (96 << 20).to_string());
    assert_eq!(unit["CPUQuotaPerSecUSec"], "400ms");
    systemctl(&["daemon-reload"]);
    assert_eq!(kernel(&dir), after, "after another reload");
    // What the kernel does not take changes nothing, with systemd neither.
    let refused = LinuxContainerResources {
        cpuset_cpus: "4000".into(),
        memory_limit_in_bytes: 128 << 20,
        ..limits()
    };
    node.cri
        .update(&id, refused)
        .await
        .expect_err("no CPU 4000");
    assert_eq!(kernel(&dir), after);
    assert_eq!(shown(&scope(&id))["MemoryMax"], (96 << 20).to_string());

    // Over a restart of the daemon, of systemd and of its bus.
    node.kill();
    systemctl(&["daemon-reexec"]);
    systemctl(&["restart", "dbus.service"]);
    node.restart().await;
    assert_eq!(node.cri.output(&id, "echo here").await.trim(), "here");
    assert_eq!(kernel(&dir), after, "after all has been started anew");
    node.cri.stop(&id, 10).await.expect("StopContainer");
    let ended = exited(&node.cri, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    eventually("its units are gone", || async {
        units(&node).is_empty().then_some(())
    })
    .await;
    assert!(!dir.exists());
}

#[tokio::test]
async fn no_kill_for_want_of_memory_goes_with_its_scope() {
    if !is_there() {
        return;
    }
    let node = start().await;
    let pod = node.pod("oom").await;
    for count in 0..10 {
        let name = format!("main{count}");
        let mut config = crate::support::container(&name, &["tail", "/dev/zero"]);
        resources(&mut config).memory_limit_in_bytes = 24 << 20;
        let ended = pod.run_to_end(&config).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
        assert!(ended.message.contains("25165824 bytes"), "{ended:?}");
    }
    // Its neighbour is not taken for it.
    let ended = pod.run_to_end(&shell("other", "kill -9 $$")).await;
    assert_ne!(ended.reason, "OOMKilled", "{ended:?}");
}

#[tokio::test]
async fn a_pods_own_limits_are_told_to_its_slice() {
    if !is_there() {
        return;
    }
    let node = start().await;
    let pod = node.pod("sized").await;
    let message = quilt::proto::cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(quilt::proto::cri::LinuxContainerResources {
            memory_limit_in_bytes: 200 << 20,
            cpu_period: 100_000,
            cpu_quota: 30_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let limited = runtime.update_pod_sandbox_resources(request(message));
    limited.await.expect("UpdatePodSandboxResources");
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    let slice = parent.rsplit('/').next().expect("a name");
    let file = format!("/sys/fs/cgroup{parent}/memory.max");
    for reloaded in [false, true] {
        if reloaded {
            systemctl(&["daemon-reload"]);
        }
        assert_eq!(shown(slice)["MemoryMax"], (200 << 20).to_string());
        let text = fs::read_to_string(&file).expect("the pod's cgroup");
        assert_eq!(text.trim(), (200 << 20).to_string());
    }
    pod.idle("main").await;
}

/// A directory below the pod's slice that bears its id, by which cAdvisor finds it.
fn of_pod(pod: &Pod) -> PathBuf {
    let parent = &pod.config.linux.as_ref().expect("linux").cgroup_parent;
    Path::new("/sys/fs/cgroup")
        .join(parent.trim_start_matches('/'))
        .join(&pod.id)
}

#[tokio::test]
async fn an_init_has_a_scope_and_a_pod_without_one_has_its_stand_in() {
    if !is_there() {
        return;
    }
    let node = start().await;
    let mut config = node.pod_config("shared");
    namespaces(&mut config).pid = NamespaceMode::Pod as i32;
    let shared = node.pod_from(config).await;
    assert_eq!(shown(&scope(&shared.id))["ActiveState"], "active");
    process::in_cgroup_of(&node.names, &shared.id);
    shared.idle("main").await;
    let plain = node.pod("plain").await;
    plain.idle("main").await;
    eventually("the pod's own cgroup", || async {
        of_pod(&plain).is_dir().then_some(())
    })
    .await;
    node.cri.stop_pod(&plain.id).await.expect("StopPodSandbox");
    assert!(!of_pod(&plain).exists());
}

#[tokio::test]
async fn a_daemon_that_dies_beside_a_new_scope_leaves_the_start_to_the_next() {
    if !is_there() {
        return;
    }
    for point in ["container.cgroup", "container.plan", "container.launched"] {
        let mut node = Node::prepare_in_slices();
        let faults = Faults::of(&mut node);
        node.spawn();
        node.answers().await;
        let pod = node.pod("dies").await;
        let config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
        let id = pod.create(&config).await;
        faults.kill(point, 1);
        node.cri.start(&id).await.expect_err("the daemon dies");
        eventually("it has died", || {
            let ended = node.ended().is_some();
            async move { ended.then_some(()) }
        })
        .await;
        faults.release();
        node.restart().await;
        node.cri.start(&id).await.expect("StartContainer, again");
        assert_eq!(shown(&scope(&id))["ActiveState"], "active", "{point}");
        assert_eq!(node.cri.output(&id, "echo here").await.trim(), "here");
    }
}

#[tokio::test]
async fn a_scope_that_nothing_has_is_swept() {
    if !is_there() {
        return;
    }
    let node = start().await;
    let id = "ab".repeat(32);
    let stem = node
        .names
        .cgroup_root
        .trim_matches('/')
        .trim_end_matches(".slice");
    let slice = format!("{stem}-quilt_{}_{}.slice", &id[..32], &id[32..]);
    let mut command = Command::new("systemd-run");
    command.args([
        "--scope",
        "--quiet",
        "--unit",
        &scope(&id),
        "--slice",
        &slice,
    ]);
    let mut child = command
        .args(["sleep", "1000"])
        .spawn()
        .expect("systemd-run");
    let dir = Path::new("/sys/fs/cgroup").join(format!("{stem}.slice/{slice}"));
    eventually("the scope is there", || {
        let there = dir.join(scope(&id)).is_dir();
        async move { there.then_some(()) }
    })
    .await;
    let mark = format!("quilt:{}", node.names.root().display());
    let flags = rustix::fs::XattrFlags::empty();
    let marked = fs::File::open(&dir).expect("a cgroup of the test");
    rustix::fs::fsetxattr(marked, "trusted.quilt", mark.as_bytes(), flags).expect("a mark");
    let checked = node.operate(&["check", "--repair"]);
    assert!(checked.status.success(), "{checked:?}");
    child.wait().expect("a child of this process");
    assert!(!dir.exists());
    assert_eq!(units(&node), Vec::<String>::new());
}

#[tokio::test]
async fn parents_of_the_other_driver_are_refused() {
    let node = Node::start().await;
    let by_systemd = node.names.is_in_slices();
    let mut config = node.pod_config("other");
    let parents: &[&str] = match by_systemd {
        true => &["/kubepods/besteffort/pod1", "/quilt"],
        false => &["kubepods-besteffort-pod1.slice", "/a.slice"],
    };
    for parent in parents.iter().chain(&["/a.slice/b.slice", "a--b.slice"]) {
        config.linux.get_or_insert_default().cgroup_parent = (*parent).into();
        let refused = node.cri.run_pod(&config).await.expect_err(parent);
        assert_eq!(refused.code(), Code::InvalidArgument, "{parent}: {refused}");
        assert!(refused.message().contains("slice"), "{parent}: {refused}");
    }
}

#[tokio::test]
async fn without_systemd_the_driver_is_refused_at_the_start() {
    if is_there() {
        return;
    }
    let node = Node::prepare_in_slices();
    let said = node.refused(&mut node.serve());
    assert!(said.contains("cgroup.driver is \"systemd\""), "{said}");
    let mut doctor = Command::new(crate::support::node::quiltd());
    doctor
        .arg("doctor")
        .arg("--config")
        .arg(node.path("config.toml"));
    doctor.arg("--root").arg(node.names.root());
    doctor.arg("--state").arg(node.names.state());
    let told = doctor.output().expect("quiltd runs");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let line = told.lines().find(|line| line.contains("cgroup.systemd"));
    assert!(line.is_some_and(|line| !line.starts_with("ok")), "{told}");
}

#[tokio::test]
async fn the_driver_is_not_changed_under_pods_that_are_up() {
    if !is_there() {
        return;
    }
    let mut node = start().await;
    let pod = node.pod("up").await;
    let id = pod.idle("main").await;
    node.kill();
    let slice = node.names.cgroup_root.clone();
    node.names.cgroup_root = "/qlt-e2e-other".into();
    node.configure("");
    let said = node.refused(&mut node.serve());
    assert!(said.contains("1 pods are up"), "{said}");
    node.names.cgroup_root = slice;
    node.configure("");
    node.restart().await;
    assert_eq!(node.cri.output(&id, "echo here").await.trim(), "here");
    assert!(cgroup::is_v2("memory"));
}
