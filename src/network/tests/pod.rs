//! Pods' links: made, completed, checked, removed.

use super::*;

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
        assert_eq!([pod_b, gateway, back], [0; 3], "packets were lost");
        for (netns, name, last) in [(&a, "qlt-na", 2), (&b, "qlt-nb", 3)] {
            assert_eq!(check_pod_link(&pod_link(netns, name, last)).unwrap(), []);
        }
    });
}

#[test]
fn no_pod_can_make_itself_a_router_for_others_or_the_node() {
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        let netns = pin(dir, "pod");
        ensure_pod_link(&pod_link(&netns, "qlt-n1", 2)).unwrap();
        let heeds =
            |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"));
        if super::super::link::ipv6_exists() {
            assert_eq!(inside(&netns, || heeds("eth0").unwrap()), "0\n");
            assert_eq!(heeds("qlt-nbr").unwrap(), "0\n");
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
        assert!(
            !assigned
                .iter()
                .any(|found| found.address == address(2).into())
        );
    });
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
