//! What single recorded containers show beside what the table of `pods` has a column for.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tonic::Code;

use super::Replay;
use super::pods::{Running, probe, serves};

/// What every container is to see of its own request: who it is, how it is confined, whose
/// namespaces it is in, and what limits it was given.
pub(super) async fn check_settings(replay: &Replay, name: &str, request: &Value, id: &str) {
    let config = &request["config"]["linux"];
    let security = &config["security_context"];
    let cri = &replay.node.cri;
    let script = "cat /proc/self/oom_score_adj; id -u; cat /etc/hosts
        sed -n 's/^Seccomp:[^0-9]*//p' /proc/self/status
        for one in net ipc uts pid user; do readlink /proc/self/ns/$one; done";
    let said = cri.output(id, script).await;
    let mut lines = said.lines();
    let mut next = || {
        lines
            .next()
            .unwrap_or_else(|| panic!("{name} says too little: {said}"))
    };
    let number = |value: &Value| value.as_str().unwrap_or("0").to_owned();
    let resources = &config["resources"];
    let (score, wanted) = (next(), number(&resources["oom_score_adj"]));
    // A machine that may not lower its own score gives it to the container.
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("/proc");
    let lowered = wanted.starts_with('-') && score == own.trim_end();
    assert!(
        score == wanted || lowered,
        "OOM score of {name}: {score}, not {wanted}"
    );
    assert_eq!(
        next(),
        number(&security["run_as_user"]["value"]),
        "user of {name}"
    );
    assert_eq!(next(), "# etc-hosts", "kubelet's hosts file in {name}");
    let unconfined = security["seccomp"]["profile_type"] == "Unconfined";
    assert_eq!(
        next(),
        if unconfined { "0" } else { "2" },
        "seccomp mode of {name}"
    );
    let options = &security["namespace_options"];
    let of_node = |key: &str| options[key] == "NODE";
    let own_users = options["userns_options"]["mode"] != "NODE";
    for (namespace, of_node) in [
        ("net", of_node("network")),
        ("ipc", of_node("ipc")),
        ("uts", of_node("network")),
        ("pid", of_node("pid")),
        ("user", !own_users),
    ] {
        let ours = fs::read_link(format!("/proc/self/ns/{namespace}")).expect("/proc");
        assert_eq!(
            next() == ours.to_string_lossy(),
            of_node,
            "{namespace} of {name}"
        );
    }
    let status = cri.status(id).await.expect("ContainerStatus");
    let given = status
        .resources
        .and_then(|all| all.linux)
        .expect("resources");
    let wanted = |key: &str| number(&resources[key]).parse::<i64>().expect("a number");
    for (found, key) in [
        (given.memory_limit_in_bytes, "memory_limit_in_bytes"),
        (given.cpu_shares, "cpu_shares"),
        (given.cpu_quota, "cpu_quota"),
    ] {
        // Without a quota the kernel says -1.
        assert_eq!(found.max(0), wanted(key), "{key} of {name}");
    }
}

/// Whether the container is one that this machine cannot run, and is refused by name.
pub(super) async fn cannot_run(replay: &Replay, name: &str, id: &str) -> bool {
    if name != "privileged-node-main-Unknown" || is_shared(&replay.node.names.dir) {
        return false;
    }
    // What it mounts is to be seen by the node, which the node's mount does not allow.
    let error = replay
        .node
        .cri
        .start(id)
        .await
        .expect_err("no shared mount");
    assert!(error.message().contains("shared"), "{error}");
    assert!(error.message().contains("/srv/hostdir"), "{error}");
    true
}

/// Whether mounts below `path` spread (`shared:N` in proc_pid_mountinfo(5)).
fn is_shared(path: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let lines = text.lines().filter(|line| {
        let point = line.split(' ').nth(4).unwrap_or_default();
        path.starts_with(point)
    });
    let nearest = lines.max_by_key(|line| line.split(' ').nth(4).unwrap_or_default().len());
    nearest.is_some_and(|line| line.contains(" shared:"))
}

/// What the newest container of a pod, which may have ended, is known for.
pub(super) async fn check_container(replay: &Replay, name: &str, running: &[Running]) {
    let cri = &replay.node.cri;
    let id = |index: usize| running[index].id.as_str();
    match name {
        "crash-node-main" | "crash-node-main-restart" => {
            assert_eq!(replay.host_file(name, "/dev/termination-log"), "reason\n");
        }
        "hostns-node-main" => {
            let node = fs::read_to_string("/proc/sys/kernel/hostname").expect("/proc");
            assert_eq!(cri.output(id(0), "hostname").await, node.trim_end());
        }
        "hostport-node-web" => drop(serves(replay, id(0)).await),
        "lifecycle-node-main" => {
            let hook = ["sh", "-c", "echo post > /tmp/post"];
            assert_eq!(probe(replay, id(0), &hook, 0).await, 0);
            assert_eq!(cri.output(id(0), "cat /tmp/post").await, "post");
        }
        "multi-node-two" => {
            let namespace = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc";
            let first = cri.output(id(0), namespace).await;
            assert_eq!(cri.output(id(2), namespace).await, first);
        }
        "poststartfail-node-main" | "poststartfail-node-main-restart" => {
            assert_eq!(probe(replay, id(0), &["cat", "/nope"], 0).await, 1);
        }
        "privileged2-node-main" => check_privileged(replay, id(0)).await,
        "probefail-node-exec" | "probefail-node-exec-restart" => {
            let command = ["sh", "-c", "echo bad; exit 1"];
            assert_eq!(probe(replay, id(0), &command, 1).await, 1);
        }
        "probes-node-web" => {
            assert_eq!(probe(replay, id(0), &["true"], 1).await, 0);
            assert_eq!(probe(replay, id(0), &["sh", "-c", "exit 0"], 1).await, 0);
            assert!(serves(replay, id(1)).await.starts_with("root:"));
        }
        "probetimeout-node-exec" => {
            let late = cri
                .exec(id(0), &["sleep", "10"], 1)
                .await
                .expect_err("time is up");
            assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        }
        "sharepid-node-two" => {
            let pid = "readlink /proc/self/ns/pid; cat /proc/1/comm";
            let first = cri.output(id(0), pid).await;
            assert_eq!(cri.output(id(1), pid).await, first);
            let asks = "for one in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$one; echo; done";
            let seen = cri.output(id(0), asks).await;
            let shells = seen.lines().filter(|line| line.starts_with("sh -c trap"));
            assert!(shells.count() >= 2, "each sees the other: {seen}");
        }
        "web-debugger-8rrmr" => {
            serves(replay, id(0)).await;
            let target = cri.output(id(1), "tr '\\0' ' ' </proc/1/cmdline").await;
            assert!(target.starts_with("httpd "), "{target}");
            let bounding = cri
                .output(id(1), "sed -n 's/^CapBnd:.//p' /proc/self/status")
                .await;
            let bounding = u64::from_str_radix(&bounding, 16).expect("a mask");
            assert_ne!(bounding & 1 << 19, 0, "CAP_SYS_PTRACE");
        }
        _ => {}
    }
}

/// All capabilities, the node's devices, a writable sysfs, and nothing hidden, although kubelet
/// sends the lists of what is to be.
async fn check_privileged(replay: &Replay, id: &str) {
    let cri = &replay.node.cri;
    let bounding = "sed -n 's/^CapBnd:.//p' /proc/self/status";
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let ours = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"));
    assert_eq!(cri.output(id, bounding).await, ours.expect("a mask"));
    assert_eq!(cri.output(id, "ls /dev/kmsg").await, "/dev/kmsg");
    let mounted = cri
        .output(id, "grep ' /sys sysfs' /proc/mounts | cut -d ' ' -f 4")
        .await;
    assert!(mounted.starts_with("rw"), "{mounted}");
    let hidden = cri
        .output(id, "grep -c ' /proc/' /proc/mounts || true")
        .await;
    assert_eq!(hidden, "0", "nothing is mounted over parts of /proc");
    assert_eq!(cri.output(id, "echo x >/h/x && cat /h/x").await, "x");
}
