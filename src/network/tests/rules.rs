//! The packet rules against the kernel, in a network namespace of the test's own.

use super::*;

fn spec(forwards: &[PortForward]) -> RuleSpec {
    RuleSpec {
        bridge: "qlt-nbr".into(),
        alias: BRIDGE_ALIAS.into(),
        subnets: vec![
            "10.88.0.0/16".parse().unwrap(),
            "fd00:88::/64".parse().unwrap(),
        ],
        direct: vec!["192.168.0.0/16".parse().unwrap()],
        masquerade: true,
        host_ports: true,
        forwards: forwards.to_vec(),
        policies: Vec::new(),
    }
}

fn forward(port: u16, pod: &str) -> PortForward {
    PortForward {
        protocol: 6,
        address: None,
        port,
        pod: pod.parse().unwrap(),
    }
}

fn look(nf: &Netfilter, spec: &RuleSpec) -> RulesSeen {
    look_at_rules(nf, spec).unwrap()
}

#[test]
fn the_table_is_put_in_place_compared_and_removed() {
    on_a_node(|_| {
        let nf = &Netfilter::default();
        ensure_bridge(&bridge()).unwrap();
        let mut all: Vec<_> = (1..=600)
            .map(|port| forward(port, "10.88.0.9:80"))
            .collect();
        all.push(PortForward {
            address: Some("10.88.0.1".parse().unwrap()),
            ..forward(700, "10.88.0.9:80")
        });
        all.push(forward(700, "[fd00:88::9]:80"));
        all.push(PortForward {
            address: Some("fd00:88::1".parse().unwrap()),
            protocol: 17,
            ..forward(700, "[fd00:88::9]:80")
        });
        all.sort();
        let wanted = spec(&all);
        assert_eq!(
            look(nf, &wanted).problems.len(),
            1,
            "{:?}",
            look(nf, &wanted)
        );
        for _ in 0..2 {
            ensure_rules(nf, &wanted).unwrap();
            let seen = look(nf, &wanted);
            assert_eq!(seen.problems, Vec::<String>::new());
            assert_eq!(seen.forwards, all.iter().copied().collect());
        }
        // Another wish replaces the whole.
        let less = RuleSpec {
            masquerade: false,
            ..spec(&[])
        };
        assert!(!look(nf, &less).problems.is_empty());
        ensure_rules(nf, &less).unwrap();
        assert_eq!(look(nf, &less), RulesSeen::default());
        remove_rules(nf, "qlt-nbr", "quilt:other").unwrap();
        assert_eq!(look(nf, &less), RulesSeen::default());
        remove_rules(nf, "qlt-nbr", BRIDGE_ALIAS).unwrap();
        remove_rules(nf, "qlt-nbr", BRIDGE_ALIAS).unwrap();
        assert_eq!(look(nf, &less).problems.len(), 1);
    });
}

#[test]
fn a_port_is_opened_led_elsewhere_and_closed() {
    on_a_node(|_| {
        let nf = &Netfilter::default();
        ensure_bridge(&bridge()).unwrap();
        let first = forward(80, "10.88.0.2:8080");
        assert!(
            !open_ports(nf, "qlt-nbr", &[first]).unwrap(),
            "no table yet"
        );
        ensure_rules(nf, &spec(&[])).unwrap();
        assert!(open_ports(nf, "qlt-nbr", &[first]).unwrap());
        assert!(open_ports(nf, "qlt-nbr", &[first]).unwrap());
        assert_eq!(look(nf, &spec(&[])).forwards, [first].into());
        let other = forward(80, "10.88.0.3:8080");
        let second = forward(81, "10.88.0.3:8081");
        assert!(open_ports(nf, "qlt-nbr", &[other, second]).unwrap());
        assert_eq!(look(nf, &spec(&[])).forwards, [other, second].into());
        close_ports(nf, "qlt-nbr", &[second]).unwrap();
        close_ports(nf, "qlt-nbr", &[second, other]).unwrap();
        assert_eq!(look(nf, &spec(&[])), RulesSeen::default());
        close_ports(nf, "qlt-nbr", &[second]).unwrap();
    });
}

#[test]
fn a_table_of_somebody_else_is_refused_by_name() {
    on_a_node(|_| {
        let nf = &Netfilter::default();
        ensure_bridge(&bridge()).unwrap();
        let others = RuleSpec {
            alias: "quilt:other".into(),
            ..spec(&[])
        };
        ensure_rules(nf, &others).unwrap();
        let error = ensure_rules(nf, &spec(&[])).unwrap_err();
        assert!(matches!(error, NetworkError::NotOurs { .. }), "{error}");
        assert_eq!(look(nf, &others), RulesSeen::default());
    });
}

#[test]
fn what_is_taken_out_is_heard_of() {
    on_a_node(|_| {
        let nf = &Netfilter::default();
        ensure_bridge(&bridge()).unwrap();
        let mut watch = RuleWatch::begin("qlt-nbr").unwrap();
        ensure_rules(nf, &spec(&[])).unwrap();
        assert!(!watch.something_went().unwrap());
        assert!(open_ports(nf, "qlt-nbr", &[forward(80, "10.88.0.2:8080")]).unwrap());
        assert!(!watch.something_went().unwrap());
        remove_rules(nf, "qlt-nbr", BRIDGE_ALIAS).unwrap();
        assert!(watch.something_went().unwrap());
    });
}

fn policy(link: &str, ports: &[u16]) -> EgressPolicy {
    let rule = |port: &u16| EgressRule {
        net: "192.0.2.0/24".parse().unwrap(),
        protocol: Some(6),
        ports: Some((*port, *port)),
    };
    EgressPolicy {
        link: link.into(),
        rules: ports.iter().map(rule).collect(),
    }
}

#[test]
fn a_policy_is_put_in_place_looked_at_put_right_and_taken_away() {
    on_a_node(|_| {
        let nf = &Netfilter::default();
        ensure_bridge(&bridge()).unwrap();
        // The node's loopback stands for a pod's link that is there.
        let (one, other) = (policy("lo", &[80, 443]), policy("qlt-gone", &[]));
        let mut wanted = spec(&[]);
        wanted.policies = vec![one.clone()];
        assert_eq!(
            look(nf, &wanted).problems.len(),
            2,
            "{:?}",
            look(nf, &wanted)
        );
        ensure_rules(nf, &wanted).unwrap();
        let whole = |links: &[&str]| {
            links
                .iter()
                .map(|link| ((*link).to_owned(), true))
                .collect()
        };
        assert_eq!(look(nf, &wanted).problems, Vec::<String>::new());
        assert_eq!(look(nf, &wanted).policies, whole(&["lo"]));
        open_policy(nf, "qlt-nbr", BRIDGE_ALIAS, &other).unwrap();
        open_policy(nf, "qlt-nbr", BRIDGE_ALIAS, &other).unwrap();
        wanted.policies.push(other.clone());
        assert_eq!(look(nf, &wanted).policies, whole(&["lo", "qlt-gone"]));
        // Another wish is not what is there, and is put in its place.
        wanted.policies[0].rules.pop();
        assert_eq!(look(nf, &wanted).policies.get("lo"), Some(&false));
        ensure_rules(nf, &wanted).unwrap();
        assert_eq!(look(nf, &wanted).policies, whole(&["lo", "qlt-gone"]));
        // One that nobody wants goes with its link, and not before.
        wanted.policies.clear();
        assert_eq!(look(nf, &wanted).policies.len(), 2);
        ensure_rules(nf, &wanted).unwrap();
        assert_eq!(
            look(nf, &wanted).policies.len(),
            0,
            "one was wrong: all are put right"
        );
        open_policy(nf, "qlt-nbr", BRIDGE_ALIAS, &one).unwrap();
        ensure_rules(nf, &wanted).unwrap();
        assert_eq!(look(nf, &wanted).policies.len(), 1, "its pod may be new");
        close_policy(nf, "qlt-nbr", &one).unwrap();
        close_policy(nf, "qlt-nbr", &one).unwrap();
        assert_eq!(look(nf, &wanted), RulesSeen::default());
        remove_rules(nf, "qlt-nbr", BRIDGE_ALIAS).unwrap();
        close_policy(nf, "qlt-nbr", &one).unwrap();
        open_policy(nf, "qlt-nbr", BRIDGE_ALIAS, &one).unwrap();
        assert_eq!(
            look(nf, &wanted).policies.len(),
            1,
            "with a table of its own"
        );
    });
}
