//! The same request, carried out by our runtime and, from `quiltd inspect --oci`, by runc: what is
//! seen from inside is the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::printed;
use crate::support::cri::*;
use crate::support::pod::{resources, security, shell};
use crate::support::{Node, Pod};

/// What a container sees of itself, one fact a line.
const FACTS: &str = r#"
id; pwd; umask; hostname; env | sort | sed 's/^/env /'
grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups|Uid|Gid)' /proc/self/status
sed 's/^/limit /' /proc/self/limits
echo "oom $(cat /proc/self/oom_score_adj)"
for one in net ipc uts; do readlink /proc/self/ns/$one; done
for one in uid_map gid_map; do echo $one $(cat /proc/self/$one); done
awk '{ for (i = 7; $i != "-"; i++) sub(/:.*/, "", $i)
  shared = ""; for (i = 7; $i != "-"; i++) shared = shared " " $i
  print "mount", $5, $6, $(i + 1), shared }' /proc/self/mountinfo
find /dev -type c -o -type l | sort | while read one; do
  echo dev $(ls -ld $one | cut -c 1-10) $one; done
for one in kcore keys latency_stats timer_list sched_debug scsi acpi interrupts; do
  [ -e /proc/$one ] || continue
  echo "masked $one $(ls -A /proc/$one | wc -l) $(head -c 1 /proc/$one 2>/dev/null | wc -c)"
done
for one in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/kernel/mm; do
  [ -w $one ] && echo "writable $one"; done
for one in memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares memory.max cpu.max; do
  [ -e /sys/fs/cgroup/$one ] && echo "$one $(cat /sys/fs/cgroup/$one)"
done
[ -e /sys/fs/cgroup/devices/devices.list ] && sort /sys/fs/cgroup/devices/devices.list
true
"#;

/// Requests that differ in what a runtime does for them.
fn requests() -> Vec<ContainerConfig> {
    let plain = shell("plain", FACTS);
    let mut limited = shell("limited", FACTS);
    let given = resources(&mut limited);
    given.memory_limit_in_bytes = 64 << 20;
    given.cpu_period = 100_000;
    given.cpu_quota = 50_000;
    given.cpu_shares = 512;
    given.oom_score_adj = 500;
    let mut confined = shell("confined", FACTS);
    let context = security(&mut confined);
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.supplemental_groups = vec![4000];
    context.no_new_privs = true;
    context.readonly_rootfs = true;
    context.seccomp = Some(SecurityProfile::default());
    context.capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        ..Default::default()
    });
    context.masked_paths = vec![
        "/proc/kcore".into(),
        "/proc/scsi".into(),
        "/proc/none".into(),
    ];
    context.readonly_paths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
    let mut privileged = shell("privileged", FACTS);
    security(&mut privileged).privileged = true;
    vec![plain, limited, confined, privileged]
}

#[tokio::test]
async fn what_is_seen_from_inside_is_the_same_with_runc() {
    let node = Node::start().await;
    let mut config = node.pod_config("alike");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = node.pod_from(config).await;
    let mut differences = Vec::new();
    for request in requests() {
        let ours = facts(printed(&pod, &request).await);
        let theirs = facts(by_runc(&node, &pod, &request).await);
        let name = request.metadata.expect("metadata").name;
        let ours_alone = ours
            .difference(&theirs)
            .map(|fact| format!("{name}, ours: {fact}"));
        let theirs_alone = theirs
            .difference(&ours)
            .map(|fact| format!("{name}, runc's: {fact}"));
        differences.extend(ours_alone.chain(theirs_alone));
    }
    assert!(differences.is_empty(), "{differences:#?}");
}

/// What is compared.
fn facts(lines: Vec<String>) -> BTreeSet<String> {
    let lines = lines.into_iter();
    lines
        .filter(|line| !DIFFERENT.iter().any(|(begin, _)| line.starts_with(begin)))
        .collect()
}

/// What is not the same, and why it need not be.
const DIFFERENT: &[(&str, &str)] = &[
    (
        "mount /sys/fs/cgroup ",
        "with cgroup v1 it is a tmpfs with nothing but mount points; runc leaves it writable",
    ),
    (
        "mount /sys/fs/cgroup/unified ",
        "runc shows the v1 hierarchies of a hybrid node alone; systemd inside looks for this one",
    ),
    (
        "c 10:200 ",
        "runc lets everybody use /dev/net/tun, which is in no container of its own",
    ),
];

/// Runs the container once more, as a bundle made from what `quiltd inspect --oci` prints.
async fn by_runc(node: &Node, pod: &Pod, request: &ContainerConfig) -> Vec<String> {
    let listed = node.cri.list(None).await.expect("ListContainers");
    let name = request.metadata.clone().expect("metadata").name;
    let mut own = listed.into_iter();
    let own = own.find(|one| {
        one.pod_sandbox_id == pod.id && one.metadata.as_ref().is_some_and(|it| it.name == name)
    });
    let id = own.expect("the container is there").id;
    let shown = node.operate(&["inspect", "--oci", &id]);
    assert!(shown.status.success(), "{shown:?}");
    let mut spec: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let bundle = node.path(&format!("bundle-{name}"));
    for directory in ["rootfs", "upper", "work", "root"] {
        fs::create_dir_all(bundle.join(directory)).expect("a directory of the test");
    }
    let cgroup = format!("{}/bundle-{name}", node.names.cgroup_root);
    spec["linux"]["cgroupsPath"] = cgroup.into();
    let layers = spec["annotations"]["io.quilt.rootfs.lowerdir"]
        .as_str()
        .expect("layers");
    let options = format!(
        "lowerdir={layers},upperdir={},workdir={}",
        bundle.join("upper").display(),
        bundle.join("work").display()
    );
    fs::write(bundle.join("config.json"), spec.to_string()).expect("a file of the test");
    run_bundle(&bundle, &options, &name)
}

/// In a mount namespace of its own, so that nothing stays mounted.
fn run_bundle(bundle: &Path, options: &str, name: &str) -> Vec<String> {
    let script = "mount -t overlay overlay -o \"$2\" \"$1/rootfs\" &&
        exec runc --root \"$1/root\" run --bundle \"$1\" \"$3\"";
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    command.arg(bundle).arg(options).arg(format!("qlt-{name}"));
    let output = command.output().expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines().map(str::to_owned).collect()
}
