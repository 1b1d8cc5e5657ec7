//! What a pod's network costs its caller, for SPECIFICATION.md: `cargo test --release --features
//! fault-points --test e2e node_network::measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::*;

async fn quiet(lan: &Lan, count: usize) -> Node {
    let mut node = Node::prepare_on(&lan.hosts[0], "");
    node.prepare_networks(count);
    let path = node.path("config.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let text = text.replacen("level = \"debug\"", "level = \"warn\"", 1);
    std::fs::write(path, text).expect("a configuration");
    node.restart().await;
    node
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

async fn timed<T>(times: &mut Vec<Duration>, call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = call.await;
    times.push(begun.elapsed());
    done
}

/// In turn on a node with prepared networks and on one without.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints times, and shows nothing else"]
async fn the_time_of_a_pod_with_and_without_a_prepared_network() {
    let lans = [Lan::new(1), Lan::new(1)];
    let nodes = [quiet(&lans[0], 0).await, quiet(&lans[1], 8).await];
    nodes[1].waiting(8).await;
    let mut times: [[Vec<Duration>; 3]; 2] = Default::default();
    for number in 0..60 {
        for (node, [run, stop, remove]) in nodes.iter().zip(&mut times) {
            let config = node.pod_config(&format!("pod-{number}"));
            let id = timed(run, node.cri.run_pod(&config)).await;
            let id = id.expect("RunPodSandbox");
            let stopped = timed(stop, node.cri.stop_pod(&id)).await;
            stopped.expect("StopPodSandbox");
            let removed = timed(remove, node.cri.remove_pod(&id)).await;
            removed.expect("RemovePodSandbox");
        }
        // As long as a client takes for containers, and others are made meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, [run, stop, remove]) in ["made", "prepared"].iter().zip(times) {
        let (run, stop, remove) = (median(run), median(stop), median(remove));
        println!("{name}: run {run:?}, stop {stop:?}, remove {remove:?} (p50 of 60)");
    }
    for node in nodes {
        let mut node = node;
        assert!(node.terminate().success());
    }
}

/// 200 pods, twenty at a time, each with a port of the node.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints times, and shows nothing else"]
async fn the_time_of_200_pods_at_once() {
    let lan = Lan::new(1);
    let node = Arc::new(quiet(&lan, 8).await);
    node.waiting(8).await;
    for (what, up) in [("up", true), ("down", false)] {
        let ids = node.cri.list_pods(None).await.expect("ListPodSandbox");
        let ids = Arc::new(std::sync::Mutex::new(ids));
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..20 {
            let (node, ids) = (Arc::clone(&node), Arc::clone(&ids));
            tasks.spawn(async move {
                for number in 0..10 {
                    let next = ids.lock().expect("no panic").pop();
                    match next {
                        Some(pod) => {
                            node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
                            node.cri
                                .remove_pod(&pod.id)
                                .await
                                .expect("RemovePodSandbox");
                        }
                        None if up => {
                            let mut config = node.pod_config(&format!("pod-{worker}-{number}"));
                            let port_of_node = 20_000 + worker * 10 + number;
                            config.port_mappings = vec![port(Protocol::Tcp, "", port_of_node, 80)];
                            node.cri.run_pod(&config).await.expect("RunPodSandbox");
                        }
                        None => {}
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a pod");
        }
        println!("200 pods {what}: {:?}", begun.elapsed());
    }
    let mut node = Arc::into_inner(node).expect("nobody else has it");
    assert!(node.terminate().success());
}
