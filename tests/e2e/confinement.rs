//! What a process may not do, as seen from inside: seccomp and AppArmor of a request, in the
//! container's own process and in each of its commands.

use std::fs;

use tonic::Code;

use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{namespaces, security, shell};
use crate::support::{Node, Pod};

/// Seccomp mode and capabilities of whoever asks.
const STATUS: &str = "grep -E '^(Seccomp|NoNewPrivs|Cap...):' /proc/self/status";

fn profile(kind: security_profile::ProfileType, reference: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: reference.into(),
    })
}

/// What kubelet sends for `RuntimeDefault`.
fn default_profile() -> Option<SecurityProfile> {
    Some(SecurityProfile::default())
}

fn localhost(path: &str) -> Option<SecurityProfile> {
    profile(security_profile::ProfileType::Localhost, path)
}

/// Runs a container to its end, and returns all it printed.
async fn printed(pod: &Pod, config: &ContainerConfig) -> Vec<String> {
    let ended = pod.run_to_end(config).await;
    let lines = pod.log(config);
    assert_eq!(ended.exit_code, 0, "{ended:?} {lines:?}");
    contents(&lines, "stdout")
}

/// A field of `/proc/self/status` in what was printed.
fn field(lines: &[String], name: &str) -> String {
    let mut lines = lines.iter();
    let found = lines.find_map(|line| line.strip_prefix(&format!("{name}:")));
    found.expect(name).trim().to_owned()
}

/// A pod in which containers may be privileged.
async fn privileged_pod(node: &Node, name: &str) -> Pod {
    let mut config = node.pod_config(name);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    namespaces(&mut config).pid = NamespaceMode::Container as i32;
    node.pod_from(config).await
}

#[tokio::test]
async fn a_container_has_the_filter_that_it_asks_for_whoever_it_runs_as() {
    let node = Node::start().await;
    let pod = privileged_pod(&node, "filters").await;
    let unconfined = profile(security_profile::ProfileType::Unconfined, "");
    for (name, seccomp, mode) in [
        ("unset", None, "0"),
        ("default", default_profile(), "2"),
        ("unconfined", unconfined, "0"),
    ] {
        for (who, user) in [("root", 0), ("user", 1000)] {
            for no_new_privs in [false, true] {
                let mut config = shell(&format!("{name}-{who}-{no_new_privs}"), STATUS);
                let context = security(&mut config);
                context.seccomp = seccomp.clone();
                context.run_as_user = Some(Int64Value { value: user });
                context.no_new_privs = no_new_privs;
                let lines = printed(&pod, &config).await;
                assert_eq!(field(&lines, "Seccomp"), mode, "{lines:?}");
                assert_eq!(
                    field(&lines, "NoNewPrivs"),
                    u8::from(no_new_privs).to_string()
                );
                // What installing a filter needs is not left behind.
                for set in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
                    let bits = u64::from_str_radix(&field(&lines, set), 16).expect("a mask");
                    assert_eq!(bits & 1 << 21, 0, "{set} has CAP_SYS_ADMIN: {lines:?}");
                }
            }
        }
    }
    // Privileged is without, and nobody even looks for the profile.
    let mut config = shell("privileged", STATUS);
    security(&mut config).privileged = true;
    security(&mut config).seccomp = localhost("/absent.json");
    assert_eq!(field(&printed(&pod, &config).await, "Seccomp"), "0");
}

#[tokio::test]
async fn a_privileged_container_has_what_the_node_has() {
    let node = Node::start().await;
    let pod = privileged_pod(&node, "privileged").await;
    let script = "for d in /dev/kmsg /dev/loop-control; do [ -c $d ] && echo $d; done; \
                  [ -e /dev/pts/ptmx ] && readlink /dev/ptmx; (: < /dev/kmsg) && \
                  echo opened; grep -q ' /sys sysfs rw' /proc/mounts && echo sysfs; \
                  mount -t tmpfs none /tmp && echo mounted";
    let mut config = shell("privileged", script);
    security(&mut config).privileged = true;
    security(&mut config).masked_paths = vec!["/proc/kcore".into()];
    let all = [
        "/dev/kmsg",
        "/dev/loop-control",
        "pts/ptmx",
        "opened",
        "sysfs",
        "mounted",
    ];
    let there = |device: &&str| !device.starts_with("/dev/") || fs::exists(device).is_ok_and(|y| y);
    let wanted: Vec<_> = all.iter().filter(|line| there(line)).collect();
    assert_eq!(
        printed(&pod, &config).await.iter().collect::<Vec<_>>(),
        wanted
    );

    // Another has a device that it asks for, and none that is not there.
    let mut config = shell("asked", "[ -c /dev/mine ] && echo there");
    let device = |host_path: &str| Device {
        container_path: "/dev/mine".into(),
        host_path: host_path.into(),
        permissions: "r".into(),
    };
    config.devices = vec![device("/dev/zero")];
    assert_eq!(printed(&pod, &config).await, ["there"]);
    let mut config = shell("absent", "true");
    config.devices = vec![device("/dev/no-such-device")];
    let id = pod.create(&config).await;
    let error = node.cri.start(&id).await.expect_err("it is not there");
    assert!(error.message().contains("no-such-device"), "{error}");
}

#[tokio::test]
async fn a_directory_of_devices_comes_with_all_that_is_in_it() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let node = Node::start().await;
    let pod = node.pod("directory").await;
    let directory = node.path("volumes/devices");
    fs::create_dir_all(directory.join("below")).expect("a directory of the test");
    for (name, minor) in [("null", 3), ("below/zero", 5)] {
        let path = directory.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, minor)).expect("a node of the test");
    }
    // What is no device is left out.
    fs::write(directory.join("file"), "x").expect("a file of the test");
    let script = "find /dev/many -type c | sort; find /dev/many -type f; \
                  head -c 2 /dev/many/below/zero | wc -c";
    let mut config = shell("main", script);
    config.devices = vec![Device {
        container_path: "/dev/many".into(),
        host_path: directory.display().to_string(),
        permissions: "r".into(),
    }];
    let expected = ["/dev/many/below/zero", "/dev/many/null", "2"];
    assert_eq!(printed(&pod, &config).await, expected);
}

#[tokio::test]
async fn a_command_has_the_filter_of_its_container_also_under_a_new_daemon() {
    let mut node = Node::start().await;
    let pod = node.pod("commands").await;
    let mut config = shell("main", "while :; do sleep 0.05; done");
    security(&mut config).seccomp = default_profile();
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let confined = pod.run(&config).await;
    let open = pod.idle("open").await;
    for _ in 0..2 {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let status = lines(node.cri.output(&confined, STATUS).await);
        assert_eq!(field(&status, "Seccomp"), "2");
        let status = lines(node.cri.output(&open, STATUS).await);
        assert_eq!(field(&status, "Seccomp"), "0");
        node.kill();
        node.restart().await;
    }
}

#[tokio::test]
async fn the_default_profile_forbids_what_reaches_the_node_until_a_capability_allows_it() {
    let node = Node::start().await;
    let pod = node.pod("default").await;
    let script = "unshare -U true && echo made a user namespace; \
                  unshare -n true && echo made a network namespace; \
                  mount -t tmpfs none /mnt && echo mounted; exit 0";
    let capability = |name: &str| {
        Some(Capability {
            add_capabilities: vec![name.into()],
            ..Default::default()
        })
    };
    let mut config = shell("confined", script);
    security(&mut config).seccomp = default_profile();
    let ended = pod.run_to_end(&config).await;
    assert_eq!(ended.exit_code, 0);
    let lines = pod.log(&config);
    assert!(contents(&lines, "stdout").is_empty(), "{lines:?}");
    let refusals = contents(&lines, "stderr");
    let refused = |line: &&String| line.ends_with("Operation not permitted");
    assert_eq!(refusals.iter().filter(refused).count(), 2, "{refusals:?}");

    // Without a filter a user may make a user namespace: it was the filter that forbade it.
    let mut config = shell("open", "unshare -U true && echo made a user namespace");
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    assert_eq!(printed(&pod, &config).await, ["made a user namespace"]);

    let mut config = shell(
        "admin",
        "unshare -m mount -t tmpfs none /tmp && echo mounted",
    );
    security(&mut config).seccomp = default_profile();
    security(&mut config).capabilities = capability("SYS_ADMIN");
    // AppArmor's profile, on a node that has it, lets nobody mount.
    security(&mut config).apparmor = profile(security_profile::ProfileType::Unconfined, "");
    assert_eq!(printed(&pod, &config).await, ["mounted"]);
}

#[tokio::test]
async fn a_profile_of_the_node_holds_and_a_bad_one_is_refused_by_what_is_wrong_with_it() {
    let node = Node::start().await;
    let pod = node.pod("profiles").await;
    let written = |name: &str, text: &str| {
        let path = node.path(name);
        fs::write(&path, text).expect("a profile");
        path.display().to_string()
    };
    let chmod = written(
        "chmod.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}"#,
    );
    let mut config = shell("held", "chmod 777 /tmp; ls -d /tmp");
    security(&mut config).seccomp = localhost(&chmod);
    assert_eq!(printed(&pod, &config).await, ["/tmp"]);
    let complaint = contents(&pod.log(&config), "stderr").join("");
    assert!(complaint.contains("Operation not permitted"), "{complaint}");

    // A profile that lets a program be executed and end, and nothing of what comes before that.
    let strict = written(
        "strict.json",
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["execve", "exit_group",
            "write", "brk", "mmap", "arch_prctl", "set_tid_address", "set_robust_list", "rseq",
            "prctl", "getrandom", "mprotect", "readlinkat", "readlink", "prlimit64", "getuid",
            "getgid", "setuid", "setgid"],
            "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    let mut config = shell("strict", "");
    config.command = vec!["echo".into(), "still here".into()];
    security(&mut config).seccomp = localhost(&strict);
    assert_eq!(printed(&pod, &config).await, ["still here"]);

    let absent = node.path("absent.json").display().to_string();
    let unknown = written(
        "unknown.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["chmodd"], "action": "SCMP_ACT_ERRNO"}]}"#,
    );
    let misspelt = written(
        "misspelt.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "rules": []}"#,
    );
    for (path, word) in [
        (absent.as_str(), "No such file"),
        (unknown.as_str(), "\"chmodd\""),
        (misspelt.as_str(), "`rules`"),
        ("relative.json", "localhost_ref"),
        ("", "localhost_ref"),
    ] {
        let mut config = shell("refused", "true");
        security(&mut config).seccomp = localhost(path);
        let error = node.cri.create(&pod.id, &config, &pod.config).await;
        let error = error.expect_err(path);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(word), "{error}");
        assert!(
            error.message().contains("security_context.seccomp"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_a_container_was_started_from_is_shown_as_an_oci_spec() {
    let node = Node::start().await;
    let pod = node.pod("inspected").await;
    let mut config = shell("main", "true");
    security(&mut config).seccomp = default_profile();
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    config.mounts = vec![Mount {
        container_path: "/v".into(),
        host_path: node.path("volume").display().to_string(),
        readonly: true,
        ..Default::default()
    }];
    let id = pod.create(&config).await;
    let inspect = |id: &str| node.operate(&["inspect", "--oci", id]);
    let before = inspect(&id);
    assert!(!before.status.success());
    let said = String::from_utf8_lossy(&before.stderr).into_owned();
    assert!(said.contains("has not been started"), "{said}");
    node.cri.start(&id).await.expect("StartContainer");

    let answer = inspect(&id[..12]);
    assert!(answer.status.success(), "{answer:?}");
    let spec: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    let process = &spec["process"];
    assert_eq!(process["user"]["uid"], 1000);
    assert_eq!(process["args"][2], "true");
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    let volumes = spec["mounts"].as_array().expect("mounts").iter();
    let volume = volumes.clone().find(|mount| mount["destination"] == "/v");
    let options = volume.expect("the volume")["options"]
        .as_array()
        .expect("options");
    assert!(options.contains(&"ro".into()), "{options:?}");
    let layers = spec["annotations"]["io.quilt.rootfs.lowerdir"].as_str();
    assert!(
        layers.is_some_and(|layers| layers.starts_with('/')),
        "{spec}"
    );
}

#[tokio::test]
async fn a_profile_of_apparmor_that_the_node_lacks_is_refused() {
    let node = Node::start().await;
    let pod = node.pod("apparmor").await;
    let mut config = shell("refused", "true");
    security(&mut config).apparmor = localhost("no-such-profile");
    let error = node.cri.create(&pod.id, &config, &pod.config).await;
    let error = error.expect_err("the node has no such profile");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("apparmor"), "{error}");
    let mut config = shell("unconfined", "true");
    security(&mut config).apparmor = profile(security_profile::ProfileType::Unconfined, "");
    assert_eq!(pod.run_to_end(&config).await.exit_code, 0);
}

#[tokio::test]
async fn a_container_sees_the_processes_of_the_one_that_it_names() {
    let node = Node::start().await;
    let pod = node.pod("target").await;
    let main = pod.run(&shell("main", "exec sleep 12345")).await;
    let mut config = shell("debug", "tr '\\0' ' ' </proc/1/cmdline");
    let wanted = security(&mut config)
        .namespace_options
        .get_or_insert_default();
    wanted.pid = NamespaceMode::Target as i32;
    wanted.target_id = main.clone();
    let lines = printed(&pod, &config).await;
    assert_eq!(lines[0].trim(), "sleep 12345");

    // A container of another pod, one that does not run, and none at all.
    let other = node.pod("other").await;
    let foreign = other.idle("foreign").await;
    let created = pod.create(&shell("created", "true")).await;
    for (id, code) in [
        (foreign.as_str(), Code::FailedPrecondition),
        (created.as_str(), Code::FailedPrecondition),
        ("", Code::InvalidArgument),
        ("none", Code::InvalidArgument),
    ] {
        let mut config = config.clone();
        config.metadata.get_or_insert_default().name = "refused".into();
        let wanted = security(&mut config)
            .namespace_options
            .get_or_insert_default();
        wanted.target_id = id.into();
        let error = node.cri.create(&pod.id, &config, &pod.config).await;
        let error = error.expect_err(id);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains("target_id"), "{error}");
    }
}
