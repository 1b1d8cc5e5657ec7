//! Measurements. Each prints its figures, and none runs unless asked for.

use std::time::Instant;

use super::*;

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
            timed(0, &|| {
                assert!(!ensure_namespaces(&namespaces(&pod)).unwrap())
            });
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

const PODS: u8 = 40;

fn connect_many(dir: &Path) {
    for number in 0..PODS {
        let netns = pin(dir, &format!("pod{number}"));
        ensure_pod_link(&pod_link(&netns, &format!("qlt-n{number}"), number + 2)).unwrap();
    }
}

/// Connects one more pod and says how long it took.
fn connect_one_more(dir: &Path, number: u8) -> Duration {
    let start = Instant::now();
    let netns = pin(dir, &format!("more{number}"));
    ensure_pod_link(&pod_link(&netns, &format!("qlt-m{number}"), 100 + number)).unwrap();
    start.elapsed()
}

/// Prints how long the links of many pods take to go, one by one and with their namespaces, and
/// what a pod that is connected meanwhile notices.
#[test]
#[ignore = "a measurement, not a check"]
fn how_long_many_links_take_to_go() {
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        connect_many(dir);
        let start = Instant::now();
        let (more, took) = std::thread::scope(|scope| {
            let more = scope.spawn(|| (0..10).map(|n| connect_one_more(dir, n)).max());
            for number in 0..PODS {
                remove_pod_link(&format!("qlt-n{number}"), ALIAS).unwrap();
            }
            (more.join().unwrap(), start.elapsed())
        });
        println!("{PODS} links one by one: {took:?}; slowest pod meanwhile {more:?}");
    });
    on_a_node(|dir| {
        ensure_bridge(&bridge()).unwrap();
        connect_many(dir);
        let start = Instant::now();
        for number in 0..PODS {
            remove_namespaces(&dir.join(format!("pod{number}"))).unwrap();
        }
        let mut slowest = Duration::ZERO;
        let mut number = 0;
        while list_links(ALIAS)
            .unwrap()
            .iter()
            .any(|found| found.name.starts_with("qlt-n"))
        {
            slowest = slowest.max(connect_one_more(dir, number));
            number += 1;
        }
        let took = start.elapsed();
        println!("{PODS} links with namespaces: {took:?}; slowest pod meanwhile {slowest:?}");
    });
}

/// Prints what pins cost whoever clones the mount namespace they are in.
#[test]
#[ignore = "a measurement, not a check"]
fn how_long_a_mount_namespace_takes_beside_many_pins() {
    on_a_node(|dir| {
        for pods in [0, 100, 400] {
            for number in 0..pods {
                ensure_namespaces(&namespaces(&dir.join(format!("pod{number}")))).unwrap();
            }
            let mut times: Vec<Duration> = (0..50)
                .map(|_| {
                    let clone = || {
                        let start = Instant::now();
                        unshare(CloneFlags::CLONE_NEWNS).unwrap();
                        start.elapsed()
                    };
                    std::thread::scope(|scope| scope.spawn(clone).join().unwrap())
                })
                .collect();
            times.sort();
            println!("mount namespace beside {pods} pods: p50 {:?}", times[25]);
        }
    });
}

/// Prints what opening and closing a port of the node takes beside others, with sockets that stay
/// open and with a new one each time.
#[test]
#[ignore = "a measurement, not a check"]
fn how_long_a_port_takes() {
    on_a_node(|_| {
        ensure_bridge(&bridge()).unwrap();
        let kept = Netfilter::default();
        for (held, protocol) in [(0, 6), (250, 6), (250, 17)] {
            let forward = |port| PortForward {
                protocol,
                address: None,
                port,
                pod: "10.88.0.9:80".parse().unwrap(),
            };
            let rules = RuleSpec {
                bridge: "qlt-nbr".into(),
                alias: BRIDGE_ALIAS.into(),
                subnets: vec!["10.88.0.0/16".parse().unwrap()],
                direct: Vec::new(),
                masquerade: true,
                host_ports: true,
                forwards: (1..=held).map(forward).collect(),
                policies: Vec::new(),
            };
            ensure_rules(&kept, &rules).unwrap();
            for (sockets, keep) in [("kept", true), ("new", false)] {
                let mut times: [Vec<Duration>; 2] = Default::default();
                for round in 0..50 {
                    let port = [forward(1000 + round)];
                    let mut timed = |slot: usize, work: &dyn Fn(&Netfilter)| {
                        let start = Instant::now();
                        match keep {
                            true => work(&kept),
                            false => work(&Netfilter::default()),
                        }
                        times[slot].push(start.elapsed());
                    };
                    timed(0, &|netfilter| {
                        assert!(open_ports(netfilter, "qlt-nbr", &port).unwrap());
                        forget_before(netfilter, &port).unwrap();
                    });
                    timed(1, &|netfilter| {
                        close_ports(netfilter, "qlt-nbr", &port).unwrap();
                        forget_closed(netfilter, &port).unwrap();
                    });
                }
                for (what, mut times) in ["opened", "closed"].into_iter().zip(times) {
                    times.sort();
                    println!(
                        "protocol {protocol}, beside {held}, {sockets} socket: {what} in p50 {:?}, \
                         p95 {:?}",
                        times[25], times[47]
                    );
                }
            }
        }
    });
}
