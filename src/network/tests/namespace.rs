//! Namespaces that live without a process.

use super::*;

#[test]
fn namespaces_are_pinned_with_everything_set() {
    on_a_node(|dir| {
        let sysctls = [
            (
                "net.ipv4.ip_unprivileged_port_start".to_owned(),
                "0".to_owned(),
            ),
            ("kernel.shmmni".to_owned(), "77".to_owned()),
            ("net.ipv4.conf.eth0.rp_filter".to_owned(), "2".to_owned()),
        ];
        let pod = dir.join("pod");
        let spec = NamespaceSpec {
            sysctls: &sysctls,
            ..namespaces(&pod)
        };
        ensure_namespaces(&spec).unwrap();
        for name in ["net", "ipc", "uts"] {
            let own = fs::metadata(Path::new("/proc/thread-self/ns").join(name)).unwrap();
            assert!(is_pinned(&pod.join(name)));
            assert_ne!(
                fs::metadata(pod.join(name)).unwrap().ino(),
                own.ino(),
                "{name}"
            );
        }
        let read = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for name in ["net", "ipc", "uts"] {
                    let file = fs::File::open(pod.join(name)).unwrap();
                    nix::sched::setns(file, CloneFlags::empty()).unwrap();
                }
                assert_eq!(read("/proc/sys/kernel/hostname"), "pod-a");
                assert_eq!(read("/proc/sys/kernel/shmmni"), "77");
                assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "0");
                let lo = find(&mut Socket::open().unwrap(), "lo").unwrap().unwrap();
                assert!(lo.up);
            });
        });
        assert_ne!(read("/proc/sys/kernel/hostname"), "pod-a");
        assert_ne!(read("/proc/sys/kernel/shmmni"), "77");
        // Again: everything is kept.
        let before = fs::metadata(pod.join("net")).unwrap().ino();
        ensure_namespaces(&spec).unwrap();
        assert_eq!(fs::metadata(pod.join("net")).unwrap().ino(), before);
        remove_namespaces(&pod).unwrap();
        remove_namespaces(&pod).unwrap();
        assert!(!pod.exists());
        let mounts = crate::sys::mountinfo::read().unwrap();
        assert!(
            !mounts
                .iter()
                .any(|entry| entry.mount_point.starts_with(&pod))
        );
    });
}

#[test]
fn what_a_crash_left_unpinned_is_made_and_what_is_pinned_is_kept() {
    on_a_node(|dir| {
        let pod = dir.join("pod");
        let net_only = NamespaceSpec {
            ipc: false,
            hostname: None,
            ..namespaces(&pod)
        };
        ensure_namespaces(&net_only).unwrap();
        // A crash between making the file and mounting on it.
        fs::write(pod.join("ipc"), "").unwrap();
        let before = fs::metadata(pod.join("net")).unwrap().ino();
        ensure_namespaces(&namespaces(&pod)).unwrap();
        assert_eq!(fs::metadata(pod.join("net")).unwrap().ino(), before);
        assert!(is_pinned(&pod.join("ipc")) && is_pinned(&pod.join("uts")));
        // A removal goes on past what it may not remove.
        fs::write(pod.join("stranger"), "").unwrap();
        remove_namespaces(&pod).unwrap();
        assert!(pod.join("stranger").exists() && !pod.join("net").exists());
    });
}

#[test]
fn a_sysctl_of_a_namespace_that_the_pod_shares_is_refused() {
    on_a_node(|dir| {
        let sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())];
        let pod = dir.join("pod");
        let spec = NamespaceSpec {
            net: false,
            sysctls: &sysctls,
            ..namespaces(&pod)
        };
        assert!(matches!(
            ensure_namespaces(&spec),
            Err(NetworkError::Invalid { .. })
        ));
        let spec = NamespaceSpec {
            hostname: Some("a b"),
            ..namespaces(&pod)
        };
        assert!(matches!(
            ensure_namespaces(&spec),
            Err(NetworkError::Invalid { .. })
        ));
        assert!(
            !pod.exists(),
            "nothing is touched before everything is checked"
        );
    });
}

#[test]
fn a_sysctl_that_the_kernel_refuses_leaves_nothing_pinned() {
    on_a_node(|dir| {
        let sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())];
        let pod = dir.join("pod");
        let spec = NamespaceSpec {
            sysctls: &sysctls,
            ..namespaces(&pod)
        };
        let error = ensure_namespaces(&spec).unwrap_err();
        assert!(matches!(error, NetworkError::Sysctl { .. }), "{error}");
        assert!(!is_pinned(&pod.join("net")));
    });
}

#[test]
fn pins_stay_in_this_mount_namespace_even_below_a_shared_mount() {
    on_a_node(|dir| {
        mount_change(dir, MountPropagationFlags::SHARED).unwrap();
        let pins = dir.join("sandboxes");
        ensure_pin_directory(&pins).unwrap();
        ensure_pin_directory(&pins).unwrap();
        let mounts = crate::sys::mountinfo::read().unwrap();
        let made: Vec<_> = mounts
            .iter()
            .filter(|entry| entry.mount_point == pins)
            .collect();
        assert_eq!(made.len(), 1, "mounted once");
        assert!(!made[0].shared);
        // A peer: another mount namespace that receives what is mounted in shared mounts.
        let (ready, wait) = std::sync::mpsc::channel();
        let (pinned, go_on) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let peer = scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                ready.send(()).unwrap();
                go_on.recv().unwrap();
                crate::sys::mountinfo::read().unwrap()
            });
            wait.recv().unwrap();
            ensure_namespaces(&namespaces(&pins.join("pod"))).unwrap();
            pinned.send(()).unwrap();
            let seen = peer.join().unwrap();
            assert!(
                !seen
                    .iter()
                    .any(|entry| entry.mount_point.starts_with(pins.join("pod")))
            );
        });
        remove_namespaces(&pins.join("pod")).unwrap();
        remove_pin_directory(&pins).unwrap();
        remove_pin_directory(&pins).unwrap();
    });
}

#[test]
fn no_mount_is_made_where_mounts_do_not_spread() {
    on_a_node(|dir| {
        let before = crate::sys::mountinfo::read().unwrap().len();
        ensure_pin_directory(&dir.join("sandboxes")).unwrap();
        assert_eq!(crate::sys::mountinfo::read().unwrap().len(), before);
    });
}

#[test]
fn a_recursive_bind_of_the_state_directory_carries_no_pin() {
    on_a_node(|dir| {
        pin(dir, "pod");
        let copy = dir.join("copy");
        fs::create_dir(&copy).unwrap();
        rustix::mount::mount_bind_recursive(dir, &copy).unwrap();
        assert!(is_pinned(&dir.join("pod/net")));
        assert!(!is_pinned(&copy.join("pod/net")));
    });
}

#[test]
fn namespaces_of_a_pod_with_a_user_namespace_belong_to_it_and_are_made_again_in_it() {
    on_a_node(|dir| {
        let pod = dir.join("pod");
        let sysctls = [
            ("kernel.shmmni".to_owned(), "78".to_owned()),
            ("net.core.somaxconn".to_owned(), "999".to_owned()),
        ];
        let users = UserSpec {
            uids: "0 70000 65536".into(),
            gids: "0 80000 65536".into(),
            root: (70_000, 80_000),
        };
        let spec = NamespaceSpec {
            sysctls: &sysctls,
            users: Some(&users),
            ..namespaces(&pod)
        };
        let inode = |name: &str| fs::metadata(pod.join(name)).unwrap().ino();
        let belong = || {
            for name in ["net", "ipc", "uts"] {
                let pin = fs::File::open(pod.join(name)).unwrap();
                let owner = fs::File::from(crate::sys::nsfd::owner_of(&pin).unwrap());
                assert_eq!(owner.metadata().unwrap().ino(), inode("user"), "{name}");
            }
        };
        assert!(!ensure_namespaces(&spec).unwrap());
        belong();
        let in_pod = |name: &str, kind| {
            let pin = fs::File::open(pod.join(name)).unwrap();
            let read = move || {
                nix::sched::setns(&pin, kind).unwrap();
                let shm = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
                let net = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
                (shm, net)
            };
            std::thread::spawn(read).join().unwrap()
        };
        assert_eq!(in_pod("ipc", CloneFlags::CLONE_NEWIPC).0, "78\n");
        assert_eq!(in_pod("net", CloneFlags::CLONE_NEWNET).1, "999\n");
        // Set again, as for a pod whose set-up a crash has cut short.
        settle_namespaces(&spec).unwrap();

        // One pin is lost, and then the user namespace' own: the others lead to it.
        let before = inode("user");
        for lost in ["net", "user"] {
            rustix::mount::unmount(pod.join(lost), rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(ensure_namespaces(&spec).unwrap());
            assert_eq!(inode("user"), before);
            belong();
        }
        remove_namespaces(&pod).unwrap();
        assert!(!pod.exists());
    });
}
