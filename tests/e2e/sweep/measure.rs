//! What a sweep costs, for SPECIFICATION.md: `cargo test --release --features fault-points --test
//! e2e sweep::measure -- --ignored --nocapture`.

use serde_json::Value;

use crate::support::Node;

#[tokio::test]
#[ignore = "prints a time, and shows nothing else"]
async fn the_time_of_a_check_of_100_pods() {
    let mut node = Node::prepare("[cleanup]\ninterval_s = 0\n");
    node.spawn();
    node.answers().await;
    let mut pods = vec![];
    for number in 0..100 {
        pods.push(node.pod(&format!("pod-{number}")).await);
    }
    let mut times: Vec<f64> = (0..10)
        .map(|_| {
            let output = node.operate(&["check", "-o", "json"]);
            assert!(output.status.success(), "{output:?}");
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            answer["duration_ns"].as_f64().expect("a number") / 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "a check of {} pods: {:.1} ms median, {:.1} ms at most",
        pods.len(),
        times[5],
        times[9]
    );
}
