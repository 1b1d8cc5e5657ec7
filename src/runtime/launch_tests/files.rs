//! What a container sees: its rootfs, mounts, devices, hidden paths, and nothing of the node.

use super::*;

#[test]
fn writes_go_to_the_upper_layer_and_the_lower_stays() {
    alone(|| {
        let image = Image::new();
        let outcome = image.sh("echo new > /etc/passwd; echo x > /file; busybox rm -r /var");
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert_eq!(
            fs::read_to_string(image.path("upper/etc/passwd")).expect("read"),
            "new\n"
        );
        assert!(image.path("upper/file").is_file());
        assert!(
            fs::read_to_string(image.layer("etc/passwd"))
                .expect("read")
                .contains("root")
        );
        assert!(image.layer("var/lib/data").is_dir());
        assert!(
            !image.layer("proc").exists(),
            "mount points are made in the upper layer"
        );
    });
}

#[test]
fn layers_stack_in_order_and_long_paths_fit() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["sh", "-c", "cat /which; ls /many | busybox wc -l"]);
        for index in 0..40 {
            let layer = image.path(&format!("{}/{index}", "d".repeat(250)));
            fs::create_dir_all(layer.join("many")).expect("mkdir");
            fs::write(layer.join("which"), index.to_string()).expect("write");
            fs::write(layer.join(format!("many/{index}")), "").expect("write");
            plan.rootfs.lower.insert(0, layer);
        }
        assert_eq!(run(&plan).stdout, "3940\n");
    });
}

#[test]
fn the_older_overlay_interface_gives_the_same() {
    alone(|| {
        use crate::runtime::rootfs::{OverlayInterface, Site, assemble, isolate_propagation};
        use crate::runtime::scratch::move_to;
        let image = Image::new();
        let mut rootfs = image.rootfs();
        for index in 0..60 {
            let layer = image.path(&format!("{}/{index}", "e".repeat(100)));
            fs::create_dir_all(&layer).expect("mkdir");
            fs::write(layer.join("which"), index.to_string()).expect("write");
            rootfs.lower.insert(0, layer);
        }
        let child =
            crate::sys::clone::spawn(rustix::thread::ThreadNameSpaceType::MOUNT, None, |_| {
                isolate_propagation().expect("private");
                let here = std::env::current_dir().expect("somewhere");
                let site = Site {
                    mount_point: &rootfs.mount_point,
                    with: OverlayInterface::OnePage,
                    users: None,
                };
                let tree = assemble(&rootfs, site).expect("assembles");
                assert_eq!(std::env::current_dir().expect("somewhere"), here);
                move_to(&tree, site.mount_point).expect("mounts");
                let which = fs::read(rootfs.mount_point.join("which")).expect("read");
                i32::from(which != b"59" || !rootfs.mount_point.join("bin/sh").is_file())
            });
        let child = child.expect("clone");
        let started = Started {
            pid: child.pid,
            pidfd: child.pidfd,
            terminal: None,
            identity: None,
        };
        assert_eq!(wait(&started), 0);
    });
}

#[test]
fn an_image_without_layers_has_only_what_is_mounted() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["/bin/sh", "-c", "echo ok > /written; ls /"]);
        plan.rootfs.lower.clear();
        let bin = bind(&image.layer("bin"), "/bin", &["rbind", "ro"]);
        add_mount(&mut plan, bin);
        assert_eq!(run(&plan).stdout, "bin\ndev\nproc\nsys\nwritten\n");
        assert!(image.path("upper/written").is_file());
    });
}

#[test]
fn a_launch_can_be_tried_again_on_the_same_layers() {
    alone(|| {
        let image = Image::new();
        for _ in 0..2 {
            assert_eq!(image.sh("echo again >> /file").code, 0);
        }
        assert_eq!(
            fs::read_to_string(image.path("upper/file")).expect("read"),
            "again\nagain\n"
        );
    });
}

#[test]
fn a_read_only_rootfs_refuses_writes_but_mounts_take_them() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&[
            "sh",
            "-c",
            "echo x > /file; echo y > /dev/shm/file && echo z",
        ]);
        edit(&mut plan, |spec| spec["root"]["readonly"] = json!(true));
        let outcome = run(&plan);
        assert!(
            outcome.stderr.contains("Read-only file system"),
            "{outcome:?}"
        );
        assert_eq!(outcome.stdout, "z\n");
    });
}

#[test]
fn paths_are_masked_and_read_only() {
    alone(|| {
        let image = Image::new();
        fs::write(image.layer("secret/key"), "key").expect("write");
        let outcome = image.sh(
            "ls /secret | busybox wc -l; echo x > /secret/y; busybox wc -c < /proc/keys; \
             stat -c %t:%T /proc/keys; echo 1 > /proc/sys/kernel/printk; ls /sys/firmware",
        );
        assert_eq!(outcome.stdout, "0\n0\n1:3\n");
        let refused = outcome.stderr.matches("Read-only file system").count();
        assert_eq!(refused, 2, "{outcome:?}");
    });
}

#[test]
fn devices_and_links_are_there() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&[
            "sh",
            "-c",
            "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty fuse; \
             for n in fd stdin stdout stderr ptmx; do busybox readlink $n; done; echo x > null; \
             busybox head -c 4 zero | busybox wc -c; stat -c '%a %u:%g' fuse",
        ]);
        edit(&mut plan, |spec| {
            spec["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10,
                "minor": 229, "fileMode": 0o640, "uid": 33, "gid": 44}]);
        });
        let expected = "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\n\
            tty 5:0 666\nfuse a:e5 640\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n\
            /proc/self/fd/2\npts/ptmx\n4\n640 33:44\n";
        assert_eq!(run(&plan).stdout, expected);
    });
}

#[test]
fn an_image_cannot_pass_off_something_else_as_a_device() {
    alone(|| {
        let image = Image::new();
        fs::create_dir(image.layer("dev")).expect("mkdir");
        fs::write(image.layer("dev/null"), "").expect("write");
        let mut plan = image.plan(&["true"]);
        edit(&mut plan, |spec| {
            spec["mounts"].as_array_mut().expect("a list").drain(1..5);
        });
        let error = refusal(&plan);
        assert_eq!(error.message, "device /dev/null: file exists");
    });
}

#[test]
fn bind_mounts_keep_to_their_flags() {
    alone(|| {
        let image = Image::new();
        let volume = image.path("volume");
        fs::create_dir(&volume).expect("mkdir");
        fs::write(image.path("hosts"), "127.0.0.1 here\n").expect("write");
        let mut plan = image.plan(&[
            "sh",
            "-c",
            "echo w > /rw/new/file; echo r > /ro/file; cat /etc/hosts; echo h > /etc/hosts; \
             busybox grep -E ' /(rw|ro|etc)[ /]' /proc/self/mountinfo",
        ]);
        fs::create_dir(volume.join("new")).expect("mkdir");
        add_mount(&mut plan, bind(&volume, "/rw", &["rbind", "rw"]));
        add_mount(
            &mut plan,
            bind(
                &volume,
                "/ro",
                &["rbind", "ro", "nosuid", "nodev", "noexec"],
            ),
        );
        add_mount(
            &mut plan,
            bind(&image.path("hosts"), "/etc/hosts", &["bind", "ro"]),
        );
        let outcome = run(&plan);
        assert_eq!(
            fs::read_to_string(volume.join("new/file")).expect("read"),
            "w\n"
        );
        assert_eq!(
            outcome.stderr.matches("Read-only file system").count(),
            2,
            "{outcome:?}"
        );
        assert!(
            outcome.stdout.starts_with("127.0.0.1 here\n"),
            "{outcome:?}"
        );
        assert!(
            outcome.stdout.contains("/ro ro,nosuid,nodev,noexec,"),
            "{outcome:?}"
        );
        assert!(
            !outcome.stdout.contains("shared:"),
            "private by default: {outcome:?}"
        );
    });
}

/// Runs the rest of a test in a mount namespace of its own, so that mounts of the node can be made.
pub(super) fn with_mounts(body: impl FnOnce()) {
    let namespaces = rustix::thread::ThreadNameSpaceType::MOUNT;
    let child = crate::sys::clone::spawn(namespaces, None, |_| {
        crate::runtime::rootfs::isolate_propagation().expect("private");
        body();
        0
    });
    let child = child.expect("clone");
    let started = Started {
        pid: child.pid,
        pidfd: child.pidfd,
        terminal: None,
        identity: None,
    };
    assert_eq!(wait(&started), 0);
}

/// A directory with another one bound below it.
pub(super) fn nested_binds(path: &Path, below: &Path) {
    fs::create_dir(below).expect("mkdir");
    fs::create_dir_all(path.join("sub")).expect("mkdir");
    rustix::mount::mount_bind(below, path.join("sub")).expect("mount");
}

/// A directory with a tmpfs on it, shared, and another tmpfs below.
fn nested_tmpfs(path: &Path) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    fs::create_dir(path).expect("mkdir");
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).expect("mount");
    mount_change(path, MountPropagationFlags::SHARED).expect("shared");
    fs::create_dir(path.join("sub")).expect("mkdir");
    mount(
        "tmpfs",
        path.join("sub"),
        "tmpfs",
        MountFlags::empty(),
        None,
    )
    .expect("mount");
}

#[test]
fn read_only_reaches_mounts_below_only_when_recursive() {
    alone(|| {
        // Removed by the process that does not see what is mounted in it.
        let image = Image::new();
        with_mounts(|| {
            nested_tmpfs(&image.path("volume"));
            for (option, refused) in [("ro", 1), ("rro", 2)] {
                let script = "echo x > /data/file; echo x > /data/sub/file";
                let mut plan = image.plan(&["sh", "-c", script]);
                add_mount(
                    &mut plan,
                    bind(&image.path("volume"), "/data", &["rbind", option]),
                );
                let outcome = run(&plan);
                let count = outcome.stderr.matches("Read-only file system").count();
                assert_eq!(count, refused, "{option}: {outcome:?}");
            }
        });
    });
}

#[test]
fn propagation_is_as_asked_for() {
    alone(|| {
        // Removed by the process that does not see what is mounted in it.
        let image = Image::new();
        with_mounts(|| {
            nested_tmpfs(&image.path("volume"));
            for (option, shared, master) in [
                ("rprivate", false, false),
                ("rslave", false, true),
                ("rshared", true, false),
            ] {
                let script = "busybox grep ' /data ' /proc/self/mountinfo";
                let mut plan = image.plan(&["sh", "-c", script]);
                add_mount(
                    &mut plan,
                    bind(&image.path("volume"), "/data", &["rbind", option]),
                );
                let line = run(&plan).stdout;
                assert_eq!(line.contains("shared:"), shared, "{option}: {line}");
                assert_eq!(line.contains("master:"), master, "{option}: {line}");
            }
            // Both ways: what a container mounts in a shared volume is seen by the node.
            let script = "busybox mkdir /data/new && busybox mount -t tmpfs x /data/new && \
                echo here > /data/new/file";
            let mut plan = image.plan(&["sh", "-c", script]);
            add_mount(
                &mut plan,
                bind(&image.path("volume"), "/data", &["rbind", "rshared"]),
            );
            let all = json!(["CAP_SYS_ADMIN"]);
            edit(&mut plan, |spec| {
                for set in ["bounding", "effective", "permitted"] {
                    spec["process"]["capabilities"][set] = all.clone();
                }
            });
            let outcome = run(&plan);
            assert_eq!(outcome.code, 0, "{outcome:?}");
            let file = image.path("volume/new/file");
            assert_eq!(fs::read_to_string(file).expect("propagated"), "here\n");
        });
    });
}

#[test]
fn a_linked_mount_target_cannot_lead_out() {
    alone(|| {
        let image = Image::new();
        let outside = image.path("outside");
        fs::create_dir(&outside).expect("mkdir");
        let volume = image.path("volume");
        fs::create_dir(&volume).expect("mkdir");
        fs::write(volume.join("marker"), "m").expect("write");
        let up = format!("/../../../../../..{}", outside.display());
        symlink(&up, image.layer("mnt")).expect("symlink");
        symlink(format!("{up}/resolv.conf"), image.layer("etc/resolv.conf")).expect("symlink");
        let script = format!("cat {0}/marker; cat {0}/resolv.conf", outside.display());
        let mut plan = image.plan(&["sh", "-c", &script]);
        fs::write(image.path("resolv.conf"), "nameserver 127.0.0.1\n").expect("write");
        let resolv = bind(&image.path("resolv.conf"), "/etc/resolv.conf", &["bind"]);
        add_mount(&mut plan, resolv);
        assert_eq!(run(&plan).stdout, "nameserver 127.0.0.1\n");
        add_mount(&mut plan, bind(&volume, "/mnt", &["rbind"]));
        assert!(
            run(&plan).stdout.starts_with('m'),
            "the mount is inside, by the same name"
        );
        assert_eq!(
            fs::read_dir(&outside).expect("list").count(),
            0,
            "and not outside"
        );
        for target in ["/", "/..", "/proc/self/root", "/proc/1/root/x"] {
            let mut plan = image.plan(&["true"]);
            add_mount(&mut plan, bind(&volume, target, &["rbind"]));
            let error = refusal(&plan);
            assert_eq!(error.stage, format!("mount {target}"), "{error}");
        }
    });
}

/// CVE-2019-19921, CVE-2023-27561: an image whose `/proc` is a link had what is to be masked and
/// read-only there hidden somewhere else.
#[test]
fn cve_2019_19921_what_is_hidden_below_a_linked_proc_stays_hidden() {
    alone(|| {
        let image = Image::new();
        fs::create_dir_all(image.layer("tmp/forged/sys")).expect("mkdir");
        fs::write(image.layer("tmp/forged/keys"), "forged").expect("write");
        let _ = fs::remove_dir(image.layer("proc"));
        symlink("tmp/forged", image.layer("proc")).expect("symlink");
        let script = "cat /proc/keys | wc -c; (: > /proc/sys/kernel/domainname) 2>/dev/null && \
                      echo wrote; stat -f -c %T /proc/ /tmp/forged";
        let mut plan = image.plan(&["sh", "-c", script]);
        let linux = plan.spec.linux_mut().as_mut().expect("linux");
        linux.set_masked_paths(Some(vec!["/proc/keys".into()]));
        linux.set_readonly_paths(Some(vec!["/proc/sys".into()]));
        let outcome = run(&plan);
        assert_eq!(outcome.stdout, "0\nproc\nproc\n", "{outcome:?}");
    });
}

#[test]
fn the_nodes_tree_is_out_of_sight() {
    alone(|| {
        let image = Image::new();
        let outcome = image.sh("busybox wc -l < /proc/self/mountinfo; ls /..; ls -l /proc/self/fd");
        let lines: Vec<&str> = outcome.stdout.lines().collect();
        let mounts: usize = lines[0].parse().expect("a number");
        assert!(mounts < 20, "{outcome:?}");
        assert!(!outcome.stdout.contains("home"), "{outcome:?}");
        // 0, 1, 2 and the directory that ls itself had open.
        assert_eq!(outcome.stdout.matches(" root ").count(), 4, "{outcome:?}");
    });
}
