//! The bridge, and what is not ours.

use super::*;

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
        // Ours, with another address: it gets the new one, and keeps the old one for who needs it.
        let far = BridgeSpec {
            name: "qlt-nbr3",
            gateway: "10.99.0.1/24".parse().unwrap(),
            ..bridge()
        };
        ensure_bridge(&far).unwrap();
        let gateway = "10.97.0.1/24".parse().unwrap();
        let both = BridgeSpec {
            gateway,
            others: &[
                "10.99.0.1/24".parse().unwrap(),
                "fd00:97::1/64".parse().unwrap(),
            ],
            ..far
        };
        ensure_bridge(&both).unwrap();
        assert_eq!(check_bridge(&both).unwrap(), []);
        let one = BridgeSpec {
            others: &[],
            ..both
        };
        ensure_bridge(&one).unwrap();
        assert_eq!(check_bridge(&one).unwrap(), []);
        let missing = check_bridge(&both).unwrap();
        assert_eq!(missing.len(), 2, "{missing:?}");
    });
}
