//! What a process finds itself in: its arguments, its user, its privileges, its namespaces, its
//! files.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::pod::{container, namespaces, security, shell};
use crate::support::{Node, Pod, registry};

/// Runs a container to its end, which must be good, and returns what it printed.
async fn printed(pod: &Pod, config: &ContainerConfig) -> Vec<String> {
    let ended = pod.run_to_end(config).await;
    let lines = pod.log(config);
    assert_eq!(
        ended.exit_code,
        0,
        "{ended:?} {:?}",
        contents(&lines, "stderr")
    );
    contents(&lines, "stdout")
}

/// A container of the image that has settings of its own.
fn configured(name: &str, command: &[&str], args: &[&str]) -> ContainerConfig {
    let mut config = container(name, command);
    config.args = args.iter().map(ToString::to_string).collect();
    let image = registry().image("configured:latest");
    config.image = Some(ImageSpec {
        image,
        ..Default::default()
    });
    config
}

#[tokio::test]
async fn command_and_args_replace_those_of_the_image_as_kubernetes_says() {
    let node = Node::start().await;
    let pod = node.pod("commands").await;
    node.cri
        .pull(&registry().image("configured:latest"))
        .await
        .expect("PullImage");
    assert_eq!(
        printed(&pod, &configured("neither", &[], &[])).await,
        ["default"]
    );
    assert_eq!(
        printed(&pod, &configured("args", &[], &["echo args"])).await,
        ["args"]
    );
    let command = configured("command", &["echo", "only", "this"], &[]);
    assert_eq!(printed(&pod, &command).await, ["only this"]);
    let both = configured("both", &["echo"], &["a", "two  words", "$HOME", ""]);
    assert_eq!(printed(&pod, &both).await, ["a two  words $HOME "]);
}

#[tokio::test]
async fn environment_directory_and_user_come_from_image_and_request() {
    let node = Node::start().await;
    let pod = node.pod("settings").await;
    node.cri
        .pull(&registry().image("configured:latest"))
        .await
        .expect("PullImage");
    let env = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: value.into(),
    };
    let script = "echo $FROM_IMAGE-$BOTH-$FROM_REQUEST; pwd; id -u; id -g; id -G; echo $HOSTNAME";

    let mut config = configured("image", &["sh", "-c", script], &[]);
    config.envs = vec![env("BOTH", "request"), env("FROM_REQUEST", "x=y z")];
    let lines = printed(&pod, &config).await;
    assert_eq!(lines[0], "yes-request-x=y z");
    assert_eq!(lines[1..4], ["/home/made/for/it", "1000", "1000"]);
    assert_eq!(lines[4], "1000 2000", "the image's group file is merged in");
    assert_eq!(lines[5], "settings");

    let mut config = configured("request", &["sh", "-c", script], &[]);
    config.working_dir = "/tmp".into();
    let context = security(&mut config);
    context.run_as_user = Some(Int64Value { value: 4321 });
    context.run_as_group = Some(Int64Value { value: 33 });
    context.supplemental_groups = vec![5000];
    let lines = printed(&pod, &config).await;
    assert_eq!(lines[1..4], ["/tmp", "4321", "33"]);
    assert_eq!(lines[4], "33 5000");
}

#[tokio::test]
async fn a_process_has_the_default_capabilities_and_no_new_privileges_when_asked() {
    let node = Node::start().await;
    let pod = node.pod("caps").await;
    let read = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    let field = |lines: &[String], name: &str| {
        let line = lines
            .iter()
            .find(|line| line.starts_with(&format!("{name}:")));
        line.and_then(|l| l.split_whitespace().nth(1))
            .expect("a line of status")
            .to_owned()
    };
    // What Docker and containerd give: capabilities(7), 0 1 3 4 5 6 7 8 10 13 18 27 29 31.
    let default = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
    let mask = |bits: &[u32]| format!("{:016x}", bits.iter().map(|b| 1_u64 << b).sum::<u64>());

    let lines = printed(&pod, &shell("default", read)).await;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(&lines, set), mask(&default), "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(&lines, set), mask(&[]), "{set}");
    }
    assert_eq!(field(&lines, "NoNewPrivs"), "0", "CRI's field is false");

    let mut config = shell("changed", read);
    let context = security(&mut config);
    context.no_new_privs = true;
    context.capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["MKNOD".into(), "CHOWN".into()],
        ..Default::default()
    });
    let lines = printed(&pod, &config).await;
    let changed: Vec<u32> = default
        .iter()
        .copied()
        .filter(|bit| ![0, 27].contains(bit))
        .chain([12])
        .collect();
    assert_eq!(field(&lines, "CapEff"), mask(&changed));
    assert_eq!(field(&lines, "NoNewPrivs"), "1");

    let mut config = shell("none", read);
    let all = Capability {
        drop_capabilities: vec!["ALL".into()],
        ..Default::default()
    };
    security(&mut config).capabilities = Some(all);
    let lines = printed(&pod, &config).await;
    assert_eq!(field(&lines, "CapBnd"), mask(&[]));
}

#[tokio::test]
async fn a_process_has_the_groups_mask_limits_and_score_that_it_was_promised() {
    let node = Node::start().await;
    let pod = node.pod("process").await;
    let image = registry().image("configured:latest");
    node.cri.pull(&image).await.expect("PullImage");
    let script = "id -G; umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj";
    let mut config = configured("strict", &["sh", "-c", script], &[]);
    crate::support::pod::resources(&mut config).oom_score_adj = 321;
    let context = security(&mut config);
    context.supplemental_groups = vec![5000];
    context.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
    let lines = printed(&pod, &config).await;
    assert_eq!(lines[..3], ["1000 5000", "0022", "1024"], "{lines:?}");
    assert!(
        lines[3].parse::<u64>().expect("a number") >= 1024,
        "{lines:?}"
    );
    assert_eq!(lines[4], "321");

    // Ambient capabilities are what a user has without any file's help.
    let mut config = shell("ambient", "grep ^Cap /proc/self/status");
    let context = security(&mut config);
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.seccomp = Some(SecurityProfile::default());
    context.capabilities = Some(Capability {
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..Default::default()
    });
    let lines = printed(&pod, &config).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let wanted = format!("{set}:\t{:016x}", 1 << 10);
        assert!(lines.contains(&wanted), "{set}: {lines:?}");
    }
}

#[tokio::test]
async fn a_container_sees_its_own_processes_and_nothing_of_the_node() {
    let node = Node::start().await;
    let pod = node.pod("alone").await;
    let id = pod.idle("main").await;
    assert_eq!(node.cri.output(&id, "cat /proc/1/comm").await, "sh");
    let pids = node.cri.output(&id, "ls -d /proc/[0-9]* | wc -l").await;
    assert!(
        pids.parse::<u32>().expect("a number") < 10,
        "{pids} processes are seen"
    );
    for namespace in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let own = fs::read_link(format!("/proc/self/ns/{namespace}")).expect("a namespace");
        let inside = node
            .cri
            .output(&id, &format!("readlink /proc/self/ns/{namespace}"))
            .await;
        assert_ne!(inside, own.to_string_lossy(), "{namespace} is the node's");
    }
    let mounts = node.cri.output(&id, "cat /proc/self/mountinfo").await;
    let dir = node.names.dir.to_string_lossy().into_owned();
    let of_the_node = mounts.lines().filter(|line| {
        let mounted_at = line.split(' ').nth(4).unwrap_or_default();
        mounted_at.starts_with(&dir)
    });
    assert_eq!(of_the_node.count(), 0, "{mounts}");
    assert_eq!(
        node.cri.output(&id, "ls /etc/not-executable").await,
        "/etc/not-executable"
    );
}

#[tokio::test]
async fn containers_of_a_pod_that_shares_processes_see_each_other() {
    let node = Node::start().await;
    let mut config = node.pod_config("shared");
    namespaces(&mut config).pid = NamespaceMode::Pod as i32;
    let pod = node.pod_from(config).await;
    let shared = |name: &str, script: &str| {
        let mut config = shell(name, script);
        let options = security(&mut config)
            .namespace_options
            .get_or_insert_default();
        options.pid = NamespaceMode::Pod as i32;
        config
    };
    let wait = "trap 'exit 0' TERM; while :; do sleep 0.05; done # the-first-of-two";
    let first = pod.run(&shared("one", wait)).await;
    let second = pod
        .run(&shared("two", &wait.replace("first", "second")))
        .await;
    let seen = node
        .cri
        .output(&second, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        .await;
    assert!(seen.contains("the-first-of-two"), "{seen}");
    let own = node
        .cri
        .output(&second, "echo $PPID; cat /proc/1/comm")
        .await;
    assert!(
        !own.ends_with("\nsh"),
        "pid 1 belongs to the pod, not to a container: {own}"
    );
    let ended = async |id: &str| crate::support::pod::exited(&node.cri, id).await.exit_code;
    node.cri.stop(&first, 10).await.expect("StopContainer");
    assert_eq!(ended(&first).await, 0);
    let status = node.cri.status(&second).await.expect("ContainerStatus");
    assert_eq!(
        status.state(),
        ContainerState::ContainerRunning,
        "one end is not the other's"
    );
}

#[tokio::test]
async fn the_usual_mounts_and_devices_are_there_and_the_dangerous_are_not() {
    let node = Node::start().await;
    let pod = node.pod("devices").await;
    let mut config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let context = security(&mut config);
    context.masked_paths = vec![
        "/proc/kcore".into(),
        "/proc/keys".into(),
        "/sys/firmware".into(),
    ];
    context.readonly_paths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
    let id = pod.run(&config).await;
    let says = async |script: &str| node.cri.output(&id, script).await;
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        assert_eq!(
            says(&format!("stat -c %F /dev/{device}")).await,
            "character special file"
        );
    }
    assert_eq!(
        says("readlink /dev/stdout; readlink /dev/fd").await,
        "/proc/self/fd/1\n/proc/self/fd"
    );
    assert_eq!(
        says("head -c 4 /dev/zero | wc -c; echo x > /dev/null").await,
        "4"
    );
    for (at, kind) in [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev/shm", "tmpfs"),
        ("/dev/pts", "devpts"),
    ] {
        let found = says(&format!("awk '$2==\"{at}\" {{print $3}}' /proc/mounts")).await;
        assert_eq!(found.lines().last(), Some(kind), "{at}");
    }
    assert_eq!(
        says("cat /proc/keys /proc/kcore | wc -c; ls /sys/firmware | wc -l").await,
        "0\n0"
    );
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
    ] {
        let denied = format!("if (echo x > {path}) 2>/dev/null; then echo written; fi");
        assert_eq!(says(&denied).await, "", "{path} can be written");
    }
    let raw = "mknod /tmp/disk b 8 0 && cat /tmp/disk >/dev/null 2>&1 && echo read; true";
    assert_eq!(
        says(raw).await,
        "",
        "a block device of the node can be read"
    );
}

#[tokio::test]
async fn volumes_are_mounted_for_reading_or_writing_as_asked() {
    let node = Node::start().await;
    let volume = |name: &str| {
        let path = node.path("volumes").join(name);
        fs::create_dir_all(&path).expect("a directory of the test");
        fs::write(path.join("given"), name).expect("a file of the test");
        path.display().to_string()
    };
    let mount = |container_path: &str, host_path: &str, readonly| Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        readonly,
        ..Default::default()
    };
    let (rw, ro) = (volume("rw"), volume("ro"));
    let file = format!("{ro}/given");
    let pod = node.pod("volumes").await;
    let script = "cat /rw/given /ro/given /etc/one-file; echo new > /rw/new; chown 7:8 /rw/new
        if (echo x > /ro/new) 2>/dev/null; then echo written; fi
        if (echo x > /etc/one-file) 2>/dev/null; then echo written; fi";
    let mut config = shell("main", script);
    config.mounts = vec![
        mount("/rw", &rw, false),
        mount("/ro", &ro, true),
        mount("/etc/one-file", &file, true),
    ];
    assert_eq!(printed(&pod, &config).await, ["rwroro"]);
    let made = fs::metadata(format!("{rw}/new")).expect("written through the mount");
    assert_eq!((made.uid(), made.gid()), (7, 8));
    assert!(fs::metadata(format!("{ro}/new")).is_err());

    // As with Docker and containerd: a path that is not there becomes a directory.
    let absent = format!("{rw}/not-there");
    let mut config = shell("absent", "echo made > /x/by-the-container");
    config.mounts = vec![mount("/x", &absent, false)];
    let ended = pod.run_to_end(&config).await;
    assert_eq!(ended.exit_code, 0);
    assert!(fs::metadata(format!("{absent}/by-the-container")).is_ok());
}

#[tokio::test]
async fn a_volume_can_be_without_programs_devices_and_set_user_ids() {
    let node = Node::start().await;
    let pod = node.pod("options").await;
    let volume = node.path("volumes/options");
    fs::create_dir_all(&volume).expect("a directory of the test");
    // The independent client's API is older than the field.
    let create = async |name: &str, script: &str, options: &[&str]| {
        let mut config = shell(name, script);
        config.mounts = vec![Mount {
            container_path: "/v".into(),
            host_path: volume.display().to_string(),
            ..Default::default()
        }];
        let options = options.iter().map(ToString::to_string).collect();
        let created = pod.create_with(&config, |config| config.mounts[0].mount_options = options);
        created.await.map(|id| (config, id))
    };
    let ran = async |name: &str, script: &str, options: &[&str]| {
        let (config, id) = create(name, script, options)
            .await
            .expect("CreateContainer");
        node.cri.start(&id).await.expect("StartContainer");
        crate::support::pod::exited(&node.cri, &id).await;
        contents(&pod.log(&config), "stdout")
    };
    let script = "cp /bin/busybox /v/true; chmod 4755 /v/true; rm -f /v/null; mknod /v/null c 1 3
        /v/true 2>/dev/null && echo ran; (: > /v/null) 2>/dev/null && echo opened
        awk '$5==\"/v\" {print $6}' /proc/self/mountinfo | tr , '\\n' |
            grep -E '^no(exec|dev|suid)$'
        true";
    assert_eq!(ran("free", script, &[]).await, ["ran", "opened"]);
    let mut lines = ran("bound", script, &["noexec", "nodev", "nosuid"]).await;
    lines.sort_unstable();
    assert_eq!(lines, ["nodev", "noexec", "nosuid"]);
    let error = create("refused", "true", &["noexec", "sync"]).await;
    let error = error.expect_err("sync is no option of a volume");
    assert!(
        error.message().contains("config.mounts[0].mount_options"),
        "{error}"
    );
}

#[tokio::test]
async fn writes_stay_in_the_container_and_a_read_only_rootfs_takes_none() {
    let node = Node::start().await;
    let pod = node.pod("rootfs").await;
    let write = "echo mine > /etc/passwd && rm /bin/ls && mkdir /new && echo done";
    assert_eq!(printed(&pod, &shell("first", write)).await, ["done"]);
    let look = "head -n 1 /etc/passwd | cut -c 1-4; ls -d /bin/ls; ls -d /new 2>/dev/null; true";
    assert_eq!(
        printed(&pod, &shell("second", look)).await,
        ["root", "/bin/ls"]
    );
    let try_all = "for f in /x /etc/passwd; do (echo > $f) 2>/dev/null && echo $f; done
        echo > /dev/shm/x && echo shm";
    let mut config = shell("read-only", try_all);
    security(&mut config).readonly_rootfs = true;
    assert_eq!(printed(&pod, &config).await, ["shm"]);
}
