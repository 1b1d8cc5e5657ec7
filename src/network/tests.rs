//! The driver on a real kernel. Each test is a node of its own: a thread with its own network and
//! mount namespaces, so that nothing is left on the machine whatever happens.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::link::{change, create, find, indexed, named, set_up};
use super::netlink::Socket;
use super::pod::{in_namespace, open_netns};
use super::*;

const ALIAS: &str = "quilt:test:pod";
const BRIDGE_ALIAS: &str = "quilt:test";

/// Runs a test on a node of its own, with a directory for its state on a tmpfs.
fn on_a_node(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )
            .unwrap();
            mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            let mut lo = named("lo");
            set_up(&mut lo);
            Socket::open().unwrap().one(change(lo)).unwrap();
            test(dir.path());
        });
        if let Err(panic) = node.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn namespaces(dir: &Path) -> NamespaceSpec<'_> {
    NamespaceSpec {
        dir,
        net: true,
        ipc: true,
        hostname: Some("pod-a"),
        sysctls: &[],
    }
}

fn bridge() -> BridgeSpec<'static> {
    let gateway = Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 1), 16);
    BridgeSpec {
        name: "qlt-nbr",
        gateway,
        mtu: 1500,
        alias: BRIDGE_ALIAS,
    }
}

fn address(last: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, last), 16)
}

fn pod_link<'a>(netns: &'a Path, host_name: &'a str, last: u8) -> PodLinkSpec<'a> {
    PodLinkSpec {
        netns,
        host_name,
        pod_name: "eth0",
        bridge: "qlt-nbr",
        address: address(last),
        gateway: Ipv4Addr::new(10, 88, 0, 1),
        mtu: 1500,
        alias: ALIAS,
        sysctls: &[],
    }
}

/// Pins a pod's namespaces below `dir` and returns its network namespace.
fn pin(dir: &Path, name: &str) -> PathBuf {
    let dir = dir.join(name);
    ensure_namespaces(&namespaces(&dir)).unwrap();
    dir.join("net")
}

/// Runs `work` in a pinned namespace.
fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    in_namespace(&open_netns(netns).unwrap(), || Ok(work())).unwrap()
}

/// Connects from this thread's network namespace, with a bound that a lost first packet (which is
/// sent again after a second) does not meet.
fn talk(from: &Path, to: &Path, address: IpAddr) -> Duration {
    let listener = inside(to, || {
        TcpListener::bind(SocketAddr::new(address, 0)).unwrap()
    });
    let target = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
    });
    let took = inside(from, || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        start.elapsed()
    });
    server.join().unwrap();
    took
}

fn node_netns() -> PathBuf {
    // The thread's own, by a path that other threads of the process can open.
    let thread = fs::read_link("/proc/thread-self").unwrap();
    Path::new("/proc").join(thread).join("ns/net")
}

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
fn a_bridge_is_made_once_and_removed_only_when_empty() {
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        let mut socket = Socket::open().unwrap();
        let first = find(&mut socket, "qlt-nbr").unwrap().unwrap();
        assert!(first.up && first.is_kind("bridge"));
        assert_eq!(first.address, mac_address(bridge().gateway.addr()));
        ensure_bridge(&bridge()).unwrap();
        assert_eq!(
            find(&mut socket, "qlt-nbr").unwrap().unwrap().index,
            first.index
        );
        ensure_bridge(&BridgeSpec {
            mtu: 1400,
            ..bridge()
        })
        .unwrap();
        assert_eq!(find(&mut socket, "qlt-nbr").unwrap().unwrap().mtu, 1400);

        let netns = pin(dir, "pod");
        ensure_pod_link(&pod_link(&netns, "qlt-n1", 2)).unwrap();
        let error = remove_bridge("qlt-nbr", BRIDGE_ALIAS).unwrap_err();
        assert!(error.to_string().contains("qlt-n1"), "{error}");
        remove_pod_link("qlt-n1", ALIAS).unwrap();
        assert!(remove_bridge("qlt-nbr", "quilt:other").is_err());
        remove_bridge("qlt-nbr", BRIDGE_ALIAS).unwrap();
        remove_bridge("qlt-nbr", BRIDGE_ALIAS).unwrap();
    });
}

#[test]
fn what_belongs_to_somebody_else_is_refused_by_name() {
    on_a_node(|_| {
        let mut socket = Socket::open().unwrap();
        // Another kind, no alias.
        bare_pair("qlt-nbr", "qlt-nbrx", None);
        let index = find(&mut socket, "qlt-nbr").unwrap().unwrap().index;
        let error = ensure_bridge(&bridge()).unwrap_err().to_string();
        assert!(
            error.contains("qlt-nbr") && error.contains("veth"),
            "{error}"
        );
        assert!(matches!(
            remove_bridge("qlt-nbr", BRIDGE_ALIAS),
            Err(NetworkError::NotOurs { .. })
        ));
        // Its subnet, on another interface.
        let taken = super::address::assign(index, "10.88.3.4/24".parse().unwrap());
        socket.one(taken).unwrap();
        let error = ensure_bridge(&BridgeSpec {
            name: "qlt-nbr2",
            ..bridge()
        })
        .unwrap_err();
        assert!(
            matches!(&error, NetworkError::SubnetInUse { interface, .. }
            if interface == "qlt-nbr"),
            "{error}"
        );
        assert!(find(&mut socket, "qlt-nbr2").unwrap().is_none());
        // Ours, with another address.
        let far = BridgeSpec {
            name: "qlt-nbr3",
            gateway: "10.99.0.1/24".parse().unwrap(),
            ..bridge()
        };
        ensure_bridge(&far).unwrap();
        let gateway = "10.99.0.2/24".parse().unwrap();
        let error = ensure_bridge(&BridgeSpec { gateway, ..far }).unwrap_err();
        assert!(
            matches!(error, NetworkError::BridgeAddress { .. }),
            "{error}"
        );
    });
}

#[test]
fn pods_reach_each_other_and_the_node_without_losing_a_packet() {
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        let (a, b) = (pin(dir, "a"), pin(dir, "b"));
        ensure_pod_link(&pod_link(&a, "qlt-na", 2)).unwrap();
        ensure_pod_link(&pod_link(&b, "qlt-nb", 3)).unwrap();
        let pod_b = talk(&a, &b, address(3).addr().into());
        let node = dir.join("node");
        // The node's own namespace, under a name that `inside` takes.
        fs::write(&node, "").unwrap();
        rustix::mount::mount_bind(node_netns(), &node).unwrap();
        let gateway = talk(&b, &node, bridge().gateway.addr().into());
        let back = talk(&node, &a, address(2).addr().into());
        for took in [pod_b, gateway, back] {
            assert!(
                took < Duration::from_millis(900),
                "the first packet was lost: {took:?}"
            );
        }
        for (netns, name, last) in [(&a, "qlt-na", 2), (&b, "qlt-nb", 3)] {
            assert_eq!(check_pod_link(&pod_link(netns, name, last)).unwrap(), []);
        }
    });
}

#[test]
fn ensuring_twice_changes_nothing() {
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        let netns = pin(dir, "pod");
        let sysctls = [("net.ipv4.conf.eth0.rp_filter".to_owned(), "2".to_owned())];
        let spec = PodLinkSpec {
            sysctls: &sysctls,
            ..pod_link(&netns, "qlt-n1", 2)
        };
        ensure_pod_link(&spec).unwrap();
        let index = || {
            find(&mut Socket::open().unwrap(), "qlt-n1")
                .unwrap()
                .unwrap()
                .index
        };
        let before = index();
        ensure_pod_link(&spec).unwrap();
        assert_eq!(index(), before);
        assert_eq!(check_pod_link(&spec).unwrap(), []);
        let value = inside(&netns, || {
            fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/rp_filter").unwrap()
        });
        assert_eq!(value.trim(), "2");
        // Another address, MTU and mark-less state: completed in place.
        let moved = PodLinkSpec {
            address: address(9),
            mtu: 1400,
            ..spec
        };
        ensure_pod_link(&moved).unwrap();
        assert_eq!(index(), before);
        assert_eq!(check_pod_link(&moved).unwrap(), []);
        let assigned = inside(&netns, || {
            super::address::list(&mut Socket::open().unwrap()).unwrap()
        });
        assert!(!assigned.iter().any(|found| found.address == address(2)));
    });
}

/// Makes a pair whose far end is in `netns` (or on the node), and does no more.
fn bare_pair(near: &str, far: &str, netns: Option<&Path>) {
    let netns = netns.map(|path| open_netns(path).unwrap());
    let mut peer = named(far);
    if let Some(netns) = &netns {
        use std::os::fd::AsRawFd as _;
        peer.attributes
            .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    }
    let mut pair = named(near);
    pair.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Socket::open().unwrap().one(create(pair)).unwrap();
}

/// What a crash, or somebody's hand, can leave behind, by name.
fn leave_behind(what: &str, netns: &Path, other: &Path) {
    let spec = pod_link(netns, "qlt-n1", 2);
    let down = |link_name: &str| {
        let mut message = named(link_name);
        message.header.change_mask = netlink_packet_route::link::LinkFlags::Up;
        message
    };
    match what {
        "pair without mark" => bare_pair("qlt-n1", "eth0", Some(netns)),
        "pair on the node" => bare_pair("qlt-n1", "qlt-n1x", None),
        "pair with another pod" => bare_pair("qlt-n1", "eth0", Some(other)),
        "half of a lost pair" => bare_pair("qlt-lost", "eth0", Some(netns)),
        "both halves of two pairs" => {
            bare_pair("qlt-lost", "eth0", Some(netns));
            bare_pair("qlt-n1", "qlt-n1x", None);
        }
        "node's end down" => {
            ensure_pod_link(&spec).unwrap();
            Socket::open().unwrap().one(change(down("qlt-n1"))).unwrap();
        }
        "pod's end down" => {
            ensure_pod_link(&spec).unwrap();
            let request = change(down("eth0"));
            inside(netns, || Socket::open().unwrap().one(request).map(drop)).unwrap();
        }
        "not attached" => {
            ensure_pod_link(&spec).unwrap();
            let mut socket = Socket::open().unwrap();
            let index = find(&mut socket, "qlt-n1").unwrap().unwrap().index;
            let mut message = indexed(index);
            message.attributes.push(LinkAttribute::Controller(0));
            socket.one(change(message)).unwrap();
        }
        other => panic!("not a state: {other}"),
    }
}

#[test]
fn any_half_made_link_is_completed() {
    for what in [
        "pair without mark",
        "pair on the node",
        "pair with another pod",
        "half of a lost pair",
        "both halves of two pairs",
        "node's end down",
        "pod's end down",
        "not attached",
    ] {
        on_a_node(|dir| {
            ensure_bridge(&bridge()).unwrap();
            let (netns, other) = (pin(dir, "pod"), pin(dir, "other"));
            leave_behind(what, &netns, &other);
            let spec = pod_link(&netns, "qlt-n1", 2);
            assert_ne!(check_pod_link(&spec).unwrap(), [], "{what}");
            ensure_pod_link(&spec).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert_eq!(check_pod_link(&spec).unwrap(), [], "{what}");
            let peer = pin(dir, "peer");
            ensure_pod_link(&pod_link(&peer, "qlt-n2", 3)).unwrap();
            talk(&peer, &netns, address(2).addr().into());
        });
    }
}

#[test]
fn a_link_is_removed_once_and_only_with_our_mark() {
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        let netns = pin(dir, "pod");
        let spec = pod_link(&netns, "qlt-n1", 2);
        ensure_pod_link(&spec).unwrap();
        let marked = list_links("quilt:test").unwrap();
        let names: Vec<_> = marked.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.contains(&"qlt-n1") && names.contains(&"qlt-nbr"));
        assert!(list_links("quilt:elsewhere").unwrap().is_empty());
        let error = remove_pod_link("qlt-n1", "quilt:other").unwrap_err();
        assert!(matches!(error, NetworkError::NotOurs { .. }), "{error}");
        assert!(matches!(
            ensure_pod_link(&PodLinkSpec {
                alias: "quilt:other",
                ..spec
            }),
            Err(NetworkError::NotOurs { .. })
        ));
        remove_pod_link("qlt-n1", ALIAS).unwrap();
        remove_pod_link("qlt-n1", ALIAS).unwrap();
        let problems = check_pod_link(&spec).unwrap();
        assert_eq!(
            problems,
            [Problem::HostLinkMissing, Problem::PodLinkMissing]
        );
        remove_namespaces(netns.parent().unwrap()).unwrap();
        let problems = check_pod_link(&spec).unwrap();
        assert_eq!(
            problems,
            [Problem::HostLinkMissing, Problem::NamespaceMissing]
        );
    });
}

#[test]
fn without_a_bridge_or_a_namespace_nothing_is_made() {
    on_a_node(|dir| {
        let netns = pin(dir, "pod");
        let error = ensure_pod_link(&pod_link(&netns, "qlt-n1", 2)).unwrap_err();
        assert!(matches!(error, NetworkError::NoBridge { .. }), "{error}");
        let error = ensure_pod_link(&pod_link(&dir.join("none"), "qlt-n1", 2)).unwrap_err();
        assert!(matches!(error, NetworkError::NotANamespace(_)), "{error}");
        let gateway = Ipv4Addr::new(192, 0, 2, 1);
        let spec = PodLinkSpec {
            gateway,
            ..pod_link(&netns, "qlt-n1", 2)
        };
        assert!(matches!(
            ensure_pod_link(&spec),
            Err(NetworkError::GatewayOutside { .. })
        ));
        assert!(
            find(&mut Socket::open().unwrap(), "qlt-n1")
                .unwrap()
                .is_none()
        );
    });
}

/// Prints the median of each step in microseconds.
#[test]
#[ignore = "a measurement, not a check"]
fn how_long_each_step_takes() {
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        let mut times: [Vec<Duration>; 5] = Default::default();
        for round in 0..60u8 {
            let pod = dir.join(format!("pod{round}"));
            let (name, netns) = (format!("qlt-n{round}"), pod.join("net"));
            let spec = pod_link(&netns, &name, round + 2);
            let mut timed = |slot: usize, work: &dyn Fn()| {
                let start = Instant::now();
                work();
                times[slot].push(start.elapsed());
            };
            timed(0, &|| ensure_namespaces(&namespaces(&pod)).unwrap());
            timed(1, &|| ensure_pod_link(&spec).unwrap());
            timed(2, &|| assert_eq!(check_pod_link(&spec).unwrap(), []));
            timed(3, &|| remove_pod_link(&name, ALIAS).unwrap());
            timed(4, &|| remove_namespaces(&pod).unwrap());
        }
        let names = [
            "ensure_namespaces",
            "ensure_pod_link",
            "check_pod_link",
            "remove_pod_link",
            "remove_namespaces",
        ];
        for (name, times) in names.iter().zip(&mut times) {
            times.sort();
            println!(
                "{name}: p50 {:?}, p95 {:?}",
                times[times.len() / 2],
                times[57]
            );
        }
    });
}
