//! Attempts to get out of a container, each named after the weakness that it repeats. All fail.
//!
//! Who attacks is root in its container, with the capabilities that a container has by default.
//! What needs no daemon (linked mount targets, forged devices, working directories outside) is
//! tried in `src/runtime/launch_tests/`.

use std::fs;

use crate::support::cri::*;
use crate::support::log::contents;
use crate::support::node::quiltd;
use crate::support::pod::{security, shell};
use crate::support::{Node, Pod, eventually};
use crate::user_namespace;

/// What kubelet masks and makes read-only in a container that is not privileged.
fn as_kubelet_hides(config: &mut ContainerConfig) {
    let own = |paths: &[&str]| paths.iter().map(ToString::to_string).collect();
    let context = security(config);
    context.masked_paths = own(&["/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware"]);
    context.readonly_paths = own(&[
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]);
}

/// Runs an attack to its end and returns what it got, one line each.
async fn gained(pod: &Pod, name: &str, script: &str) -> Vec<String> {
    let mut config = shell(name, &format!("{script}\necho tried all"));
    as_kubelet_hides(&mut config);
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    let mut lines = contents(&lines, "stdout");
    assert_eq!(
        lines.pop().as_deref(),
        Some("tried all"),
        "{name} did not get far"
    );
    lines
}

/// Looks at every process that is on its way into the container (its name says so until exec), and
/// tries each way into it. Builtins of the shell only: it has a millisecond. That it can count the
/// descriptors is no way in.
const WATCH: &str = r#"
got() {
  # What has become the command meanwhile is the container's own.
  read -r now < $p/comm && [ "$now" = "$name" ] && echo "$1 of $name" >> /tmp/got
}
while :; do
  for p in /proc/[0-9]*; do
    read -r name < $p/comm || continue
    case $name in quilt:*) ;; *) continue ;; esac
    echo seen >> /tmp/seen
    read -r x < $p/environ && got environ
    read -r x < $p/maps && got maps
    (: >> $p/mem) && got "memory, as a tracer"
    read -r x < $p/exe && got exe
    (: >> $p/exe) && got "exe to write"
    cd $p/cwd && got cwd
    cd $p/root && got root
    cd /
    for f in $p/fd/* $p/task/*/fd/*; do
      [ -e $f ] && got "file $f"
      cd $f && got "directory $f"
      cd /
    done
  done
done 2>/dev/null"#;

#[tokio::test]
async fn cve_2019_5736_the_runtime_is_neither_opened_nor_overwritten_on_its_way_in() {
    let node = Node::start().await;
    let pod = node.pod("joining").await;
    let program = fs::read(quiltd()).expect("the daemon's program");
    let id = pod.run(&shell("watcher", WATCH)).await;
    // As often as it takes to be seen on the way.
    eventually("a joining process has been seen", || async {
        for command in [["true", ""], ["cat", "/tmp/seen"]] {
            let answer = node
                .cri
                .exec(&id, &command[..], 10)
                .await
                .expect("ExecSync");
            if answer.stdout.len() > 20 {
                return Some(());
            }
        }
        None
    })
    .await;
    let got = node
        .cri
        .output(&id, "cat /tmp/got 2>/dev/null || true")
        .await;
    assert_eq!(got, "", "the container got at a joining process");

    // A command that is the runtime itself, by name and as the interpreter of a script.
    let script = "printf '#!/proc/self/exe\\n' > /tmp/script; chmod 755 /tmp/script";
    node.cri.output(&id, script).await;
    for command in ["/proc/self/exe", "/tmp/script"] {
        let answer = node.cri.exec(&id, &[command], 10).await;
        let ran = answer.is_ok_and(|answer| answer.exit_code == 0);
        assert!(!ran, "{command} was run");
    }
    assert!(
        fs::read(quiltd()).expect("the program") == program,
        "the program was changed"
    );
}

#[tokio::test]
async fn cve_2024_21626_no_descriptor_and_no_directory_of_the_node_comes_along() {
    let node = Node::start().await;
    let pod = node.pod("descriptors").await;
    // Whatever a descriptor of the runtime's might be: as a working directory it would lead out.
    for number in 3..12 {
        let mut config = shell(
            &format!("directory-{number}"),
            "ls -d ../../../../proc/1/root/*",
        );
        config.working_dir = format!("/proc/self/fd/{number}");
        let id = pod.create(&config).await;
        if node.cri.start(&id).await.is_ok() {
            let lines = contents(&pod.log(&config), "stdout");
            panic!("descriptor {number} was a working directory: {lines:?}");
        }
    }
    let id = pod.idle("main").await;
    let own = "ls /proc/self/fd";
    // 3 is the directory that ls reads.
    assert_eq!(node.cri.output(&id, own).await, "0\n1\n2\n3");
    let first = node.cri.output(&id, "ls /proc/1/fd").await;
    let beyond: Vec<_> = first
        .lines()
        .filter(|fd| !["0", "1", "2", "10"].contains(fd))
        .collect();
    assert!(beyond.is_empty(), "{first}");
    let mut inside = node
        .cri
        .output(&id, "readlink /proc/self/cwd; readlink /proc/self/root")
        .await;
    inside.retain(|letter| !letter.is_whitespace());
    assert_eq!(inside, "//");
}

#[tokio::test]
async fn cve_2025_31133_a_forged_dev_null_unmasks_nothing() {
    let node = Node::start().await;
    let pod = node.pod("masks").await;
    let dev = node.path("volumes/dev");
    fs::create_dir_all(&dev).expect("a directory of the test");
    let link = |name: &str, target: &str| {
        std::os::unix::fs::symlink(target, dev.join(name)).expect("a link of the test");
    };
    link("null", "/proc/sys/kernel/core_pattern");
    // cve_2025_52565: the same with the terminal.
    link("console", "/proc/sys/kernel/core_pattern");
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    for tty in [false, true] {
        let script = "cat /proc/keys; (echo forged > /proc/keys) && echo wrote keys; \
                      (echo forged > /proc/sys/kernel/core_pattern) && echo wrote pattern; true";
        let mut config = shell(&format!("forger-{tty}"), script);
        as_kubelet_hides(&mut config);
        config.tty = tty;
        config.mounts = vec![Mount {
            container_path: "/dev".into(),
            host_path: dev.display().to_string(),
            ..Default::default()
        }];
        // It may be refused; it may not lead anywhere.
        let id = pod.create(&config).await;
        if node.cri.start(&id).await.is_ok() {
            crate::support::pod::exited(&node.cri, &id).await;
            let lines = contents(&pod.log(&config), "stdout").join("\n");
            assert!(!lines.contains(before.trim()), "{lines}");
            assert!(!lines.contains("wrote keys"), "{lines}");
        }
        let after = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
        assert_eq!(before, after, "tty {tty}");
    }
}

#[tokio::test]
async fn cve_2022_0492_no_release_agent_is_set_with_or_without_namespaces_of_its_own() {
    let node = Node::start().await;
    let pod = node.pod("agent").await;
    let script = r#"
try() {
  for f in $(find /sys/fs/cgroup "$1" -name release_agent -o -name notify_on_release 2>/dev/null)
  do (echo "/evil" > $f) 2>/dev/null && echo "wrote $f"; done
}
try /sys/fs/cgroup
mkdir /tmp/c
for kind in memory pids rdma cpu devices; do
  mount -t cgroup -o $kind none /tmp/c 2>/dev/null && echo mounted $kind
done
mount -t cgroup2 none /tmp/c 2>/dev/null && echo mounted v2
unshare -U -r -m -C sh -c 'mount -t cgroup -o memory none /tmp/c && echo x > /tmp/c/release_agent' \
  2>/dev/null && echo agent by namespaces"#;
    let got = gained(&pod, "agent", script).await;
    assert!(got.is_empty(), "{got:?}");
}

#[tokio::test]
async fn the_nodes_settings_are_not_written_by_any_way_around_what_is_read_only() {
    let node = Node::start().await;
    let pod = node.pod("settings").await;
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    let script = r#"
p=/proc/sys/kernel/core_pattern
(echo '|/evil' > $p) 2>/dev/null && echo wrote $p
(echo h > /proc/sysrq-trigger) 2>/dev/null && echo sysrq
umount /proc/sys 2>/dev/null && echo unmounted
mount -o remount,rw /proc/sys 2>/dev/null && echo remounted
mkdir /tmp/proc; mount -t proc proc /tmp/proc 2>/dev/null && echo mounted proc
unshare -U -r -m -p -f sh -c 'umount /proc/sys || mount -o remount,bind,rw /proc/sys ||
  mount -t proc proc /tmp/proc' 2>/dev/null && echo by namespaces
(echo /evil > /sys/kernel/uevent_helper) 2>/dev/null && echo helper
(echo 1 > /proc/1/oom_score_adj) 2>/dev/null; (echo -1000 > /proc/1/oom_score_adj) 2>/dev/null \
  && echo oom score lowered"#;
    let got = gained(&pod, "settings", script).await;
    assert!(got.is_empty(), "{got:?}");
    let after = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_device_that_is_made_inside_does_not_open() {
    let node = Node::start().await;
    let pod = node.pod("nodes").await;
    // Memory, its port space, the kernel's log, the first disk, a loop device, fuse.
    let script = r#"
for d in c:1:1 c:1:2 c:1:4 c:1:11 b:8:0 b:7:0 b:254:0 c:10:229 c:10:237; do
  IFS=: read -r kind major minor <<END
$d
END
  mknod /tmp/node $kind $major $minor 2>/dev/null || continue
  (head -c 1 /tmp/node >/dev/null) 2>/dev/null && echo read $d
  (: >> /tmp/node) 2>/dev/null && echo opened $d
  rm -f /tmp/node
done"#;
    let got = gained(&pod, "nodes", script).await;
    assert!(got.is_empty(), "{got:?}");
}

#[tokio::test]
async fn user_namespace_confusion_gives_root_of_a_pod_nothing_of_the_node() {
    let node = Node::start().await;
    let pod = user_namespace::pod(&node, "confused").await;
    let other = node.pod("other").await;
    let other_id = other.idle("other").await;
    let first = crate::support::process::in_cgroup_of(&node.names, &other_id);
    // Files of the node's root, in a volume whose owners are not mapped; and a program that would
    // make whoever runs it the node's root.
    let volume = node.path("volumes/nodes");
    fs::create_dir(&volume).expect("a directory of the test");
    let mode = |name: &str, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(volume.join(name), mode).expect("chmod");
    };
    fs::write(volume.join("secret"), "node").expect("a file of the test");
    mode("secret", 0o600);
    fs::copy("/bin/busybox", volume.join("busybox")).expect("busybox-static is installed");
    mode("busybox", 0o4755);
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    let script = r#"
cat /nodes/secret 2>/dev/null && echo; (echo x > /nodes/secret) 2>/dev/null && echo wrote secret
chown 0:0 /nodes/secret 2>/dev/null && echo chowned
chmod 666 /nodes/secret 2>/dev/null && echo chmodded
ln /nodes/secret /nodes/link 2>/dev/null && echo linked
rm -f /nodes/secret 2>/dev/null && echo removed
b=/nodes/busybox; $b cat /nodes/secret 2>/dev/null; [ "$($b id -u)" = 0 ] || echo other $($b id -u)
for p in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger \
    /sys/kernel/uevent_helper /proc/sys/kernel/modprobe /proc/sys/fs/suid_dumpable; do
  umount /proc/sys 2>/dev/null; mount -o remount,rw /proc 2>/dev/null
  (echo 1 > $p) 2>/dev/null && echo wrote $p
done
for k in net uts ipc pid mnt user cgroup; do
  nsenter -t 1 --$k true 2>/dev/null; [ -e /proc/OTHER/ns/$k ] && echo sees OTHER
  nsenter --$k=/proc/1/ns/$k true 2>/dev/null
done
mkdir /m; mount -t ext4 /dev/vda /m 2>/dev/null && echo mounted a disk
mount -t overlay -o lowerdir=/nodes:/etc,userxattr none /m 2>/dev/null && \
  cat /m/secret 2>/dev/null && echo read by overlay
mount --bind /nodes /m 2>/dev/null && (cat /m/secret 2>/dev/null) && echo read by bind
unshare -U -r cat /nodes/secret 2>/dev/null && echo read by another namespace
mknod /m/n c 1 1 2>/dev/null && echo made a device
hostname stolen; kill -9 OTHER 2>/dev/null && echo killed
chroot /proc/1/root true; echo done 1>&2"#;
    let script = script.replace("OTHER", &first.to_string());
    let mut config = user_namespace::inside(shell("main", &format!("{script}\necho tried all")));
    config.mounts = vec![Mount {
        container_path: "/nodes".into(),
        host_path: volume.display().to_string(),
        ..Default::default()
    }];
    // All rights there are, over what is the pod's own.
    security(&mut config).capabilities = Some(Capability {
        add_capabilities: vec!["ALL".into()],
        ..Default::default()
    });
    pod.run_to_end(&config).await;
    let lines = pod.log(&config);
    assert_eq!(contents(&lines, "stdout"), ["tried all"], "{lines:?}");
    let after = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    assert_eq!(before, after);
    assert_eq!(fs::read(volume.join("secret")).expect("there"), b"node");
    assert_eq!(node.cri.output(&other_id, "hostname").await, "other");
}

/// Changes a path of a volume from a directory to links out of it and back, as fast as it goes.
const SWAP: &str = r#"
cd /volume
while :; do
  for target in / /proc/sys/kernel ../../..; do
    rmdir a || rm -f a
    ln -s $target a
    rm -f a
    mkdir a
  done
done 2>/dev/null"#;

#[tokio::test]
async fn cve_2021_30465_a_mount_target_that_is_exchanged_meanwhile_leads_nowhere() {
    let node = Node::start().await;
    let pod = node.pod("exchange").await;
    let volume = node.path("volumes/shared");
    fs::create_dir(&volume).expect("a directory of the test");
    let other = node.path("volumes/other");
    fs::create_dir(&other).expect("a directory of the test");
    fs::write(other.join("marker"), "m").expect("a file of the test");
    let mount = |host: &std::path::Path, container_path: &str| Mount {
        container_path: container_path.into(),
        host_path: host.display().to_string(),
        ..Default::default()
    };
    let mut swapping = shell("swaps", SWAP);
    swapping.mounts = vec![mount(&volume, "/volume")];
    let swapper = pod.run(&swapping).await;
    let before = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let names = |path: &str| -> Vec<_> {
        let entries = fs::read_dir(path).expect("a directory").flatten();
        entries.map(|entry| entry.file_name()).collect()
    };
    let (top, kernel) = (names("/"), names("/proc/sys/kernel"));
    for attempt in 0..12 {
        // It may lead to another place of the container's own, as it could have asked for.
        let script = "[ -e /marker ] && echo over the root; ls /proc/1/root/home/* 2>/dev/null; \
                      true";
        let mut config = shell(&format!("mounts-{attempt}"), script);
        config.mounts = vec![mount(&volume, "/volume"), mount(&other, "/volume/a")];
        // What it finds may be refused.
        let id = pod.create(&config).await;
        if node.cri.start(&id).await.is_ok() {
            crate::support::pod::exited(&node.cri, &id).await;
            let got = contents(&pod.log(&config), "stdout");
            assert!(got.is_empty(), "{got:?}");
        }
    }
    node.cri.stop(&swapper, 0).await.expect("StopContainer");
    let added = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mut added = added.lines().filter(|line| !before.contains(line));
    assert_eq!(
        added.find(|line| line.contains(&other.display().to_string())),
        None,
        "it is mounted on the node"
    );
    assert_eq!((top, kernel), (names("/"), names("/proc/sys/kernel")));
}

#[tokio::test]
async fn cve_2025_52881_what_lies_over_the_containers_proc_directs_no_write_of_the_runtimes() {
    let node = Node::start().await;
    let pod = node.pod("directed").await;
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    // What the runtime would write into, if it looked for it in the container's tree: its label,
    // its score, its limits.
    let forged = node.path("volumes/forged");
    for directory in ["attr/apparmor", "fd"] {
        fs::create_dir_all(forged.join(directory)).expect("a directory of the test");
    }
    for name in ["attr/exec", "attr/apparmor/exec", "oom_score_adj"] {
        let link = forged.join(name);
        std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", link).expect("a link");
    }
    let targets = [
        "/proc/self",
        "/proc/1",
        "/proc/1/attr",
        "/proc/thread-self/attr",
    ];
    for (number, target) in targets.into_iter().enumerate() {
        let script = "cat /proc/sys/kernel/core_pattern; sleep 1000";
        let mut config = shell(&format!("forger-{number}"), script);
        as_kubelet_hides(&mut config);
        crate::support::pod::resources(&mut config).oom_score_adj = 500;
        security(&mut config).seccomp = Some(SecurityProfile::default());
        let host = match target.ends_with("attr") {
            true => forged.join("attr"),
            false => forged.clone(),
        };
        config.mounts = vec![Mount {
            container_path: target.into(),
            host_path: host.display().to_string(),
            ..Default::default()
        }];
        // It may be refused; if it is not, all that was asked for holds.
        let id = pod.create(&config).await;
        if node.cri.start(&id).await.is_ok() {
            let first = crate::support::process::in_cgroup_of(&node.names, &id);
            let read = |name: &str| {
                let text = fs::read_to_string(format!("/proc/{first}/{name}"));
                text.expect("it runs")
            };
            assert!(read("status").contains("Seccomp:\t2"), "{target}");
            assert_eq!(read("oom_score_adj"), "500\n", "{target}");
            // A command comes the same way.
            let _ = node.cri.exec(&id, &["true"], 10).await;
            node.cri.stop(&id, 0).await.expect("StopContainer");
        }
        let after = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
        assert_eq!(before, after, "{target}");
    }
}

/// The node's programs, for an image that has none that would do.
fn with_perl(name: &str, command: &[&str]) -> ContainerConfig {
    let mut config = crate::support::container(name, command);
    let paths = ["/usr", "/lib", "/lib64"].map(|path| Mount {
        container_path: path.into(),
        host_path: path.into(),
        readonly: true,
        ..Default::default()
    });
    config.mounts = paths.to_vec();
    config
}

#[tokio::test]
async fn a_set_user_id_program_gains_nothing_after_no_new_privs() {
    let node = Node::start().await;
    let pod = node.pod("setuid").await;
    let volume = node.path("volumes/programs");
    fs::create_dir(&volume).expect("a directory of the test");
    let program = volume.join("perl");
    fs::copy("/usr/bin/perl", &program).expect("perl is installed");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o6755);
    fs::set_permissions(&program, mode).expect("chmod");
    for (no_new_privs, effective) in [(false, "0 0"), (true, "1000 1000")] {
        let script = ["/programs/perl", "-e", "print $> + 0, ' ', $) + 0, qq(\n)"];
        let mut config = with_perl(&format!("user-{no_new_privs}"), &script);
        let context = security(&mut config);
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.run_as_group = Some(Int64Value { value: 1000 });
        context.no_new_privs = no_new_privs;
        config.mounts.push(Mount {
            container_path: "/programs".into(),
            host_path: volume.display().to_string(),
            ..Default::default()
        });
        pod.run_to_end(&config).await;
        let lines = pod.log(&config);
        assert_eq!(contents(&lines, "stdout"), [effective], "{lines:?}");
    }
}

#[tokio::test]
async fn tiocsti_and_signals_reach_nobody_outside() {
    let node = Node::start().await;
    let mut shared = node.pod_config("shared");
    crate::support::pod::namespaces(&mut shared).pid = NamespaceMode::Pod.into();
    let pod = node.pod("signals").await;
    let shared = node.pod_from(shared).await;
    let neighbour = pod.idle("neighbour").await;

    // No terminal is at hand to push characters into: not the node's, not another container's, and
    // of its own only who asked for one.
    let script = "(: < /dev/tty) 2>/dev/null && echo a terminal; ls /dev/pts; ls /proc/self/fd; \
                  kill -9 -1; for p in 1 2 3 4 5; do kill -9 $p 2>/dev/null; done; echo tried all";
    let mut config = shell("plain", script);
    as_kubelet_hides(&mut config);
    pod.run_to_end(&config).await;
    let lines = contents(&pod.log(&config), "stdout");
    assert_eq!(lines, ["ptmx", "0", "1", "2", "3", "tried all"]);
    let command = "(: < /dev/tty) 2>/dev/null && echo a terminal; ls /dev/pts";
    assert_eq!(node.cri.output(&neighbour, command).await, "ptmx");

    // Where a pod shares its processes, none of them ends its init, nor whoever is in another pod.
    let mut config = shell(
        "shared",
        "kill -9 1; kill -15 1; kill -11 1; echo tried all",
    );
    security(&mut config)
        .namespace_options
        .get_or_insert_default()
        .pid = NamespaceMode::Pod.into();
    shared.run_to_end(&config).await;
    let lines = contents(&shared.log(&config), "stdout");
    assert_eq!(lines, ["tried all"]);
    let status = node.cri.pod_status(&shared.id).await;
    let status = status.expect("PodSandboxStatus");
    assert_eq!(status.state(), PodSandboxState::SandboxReady, "{status:?}");
    assert_eq!(node.cri.output(&neighbour, "echo well").await, "well");
    assert_eq!(node.shims().len(), 1 + 1, "the shim and the pod's init");
}

/// add_key(2) and keyctl(2) by their numbers, for want of a program that has them. Prints the
/// number of a new key, or what is found in the keyrings by the name or the number that is given.
const KEYS: &str = r#"$| = 1; my ($verb, $name) = @ARGV;
my ($kind, $secret) = ("user", "secret");
if ($verb eq "add") {
  my $id = syscall(248, $kind, $name, $secret, 6, -3);
  die "add_key: $!" if $id < 0;
  syscall(250, 15, $id, 120);
  print "$id\n"; exit;
}
for my $ring (-3, -5) {
  my $id = syscall(250, 10, $ring, $kind, $name, 0);
  print "found $name\n" if $id >= 0;
}
my $space = "\0" x 100;
if ($verb eq "read") {
  my $length = syscall(250, 11, $name + 0, $space, 100);
  print "read ", substr($space, 0, $length), "\n" if $length >= 0;
}"#;

#[tokio::test]
async fn keys_of_the_node_and_of_other_containers_are_in_no_keyring_of_a_container() {
    let node = Node::start().await;
    let pod = node.pod("keys").await;
    let perl = |arguments: &[&str]| -> Vec<String> {
        let command = ["/usr/bin/perl", "-e", KEYS];
        let words = command.iter().chain(arguments);
        words.map(ToString::to_string).collect()
    };
    let run_in = async |id: &str, arguments: &[&str]| {
        let words = perl(arguments);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = node.cri.exec(id, &words, 20).await.expect("ExecSync");
        let error = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert_eq!(answer.exit_code, 0, "{error}");
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    };
    let name = format!("qlt-key-{}", std::process::id());
    let words = perl(&["add", &name]);
    let own = std::process::Command::new(&words[0])
        .args(&words[1..])
        .output();
    let own = own.expect("perl is installed");
    assert!(own.status.success(), "{own:?}");
    let of_node = String::from_utf8_lossy(&own.stdout).trim().to_owned();

    // The container's own process makes one as well, for its neighbour to look for.
    let mut config = with_perl("owner", &[]);
    config.command = perl(&["add", "qlt-of-owner"]);
    config.command[2] = KEYS.replace(" exit;", " sleep 1000;");
    let owner = pod.run(&config).await;
    let of_owner = eventually("it has made a key", || async {
        contents(&pod.log(&config), "stdout").first().cloned()
    })
    .await;
    let idle = [
        "sh",
        "-c",
        "trap 'exit 0' TERM; while :; do sleep 0.05; done",
    ];
    let other = pod.run(&with_perl("other", &idle)).await;
    for (key, number) in [(name.as_str(), &of_node), ("qlt-of-owner", &of_owner)] {
        assert_eq!(run_in(&other, &["find", key]).await, "");
        assert_eq!(run_in(&other, &["read", number]).await, "");
    }
    // Nor does a command find what its container has: each has a keyring of its own.
    assert_eq!(run_in(&owner, &["find", "qlt-of-owner"]).await, "");
    // It would be found where it is.
    let both = "my ($kind, $name, $secret) = ('user', 'own', 'x'); \
                print syscall(248, $kind, $name, $secret, 1, -3) > 0 ? 'made ' : 'no '; \
                print syscall(250, 10, -3, $kind, $name, 0) > 0 ? 'found' : 'lost'";
    let both = ["/usr/bin/perl", "-e", both];
    let answer = node.cri.exec(&other, &both, 20).await;
    let answer = answer.expect("ExecSync");
    assert_eq!(answer.stdout, b"made found", "{answer:?}");
}
