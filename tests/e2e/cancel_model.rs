//! Any sequence of calls about one pod, each lost some times before it is answered, ends where the
//! same sequence without a loss ends: with the same answers and the same objects.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tonic::Code;

use crate::support::pod::shell;
use crate::support::{Node, Pod};

/// A call about the pod or one of its two containers.
#[derive(Debug, Clone, Copy)]
enum Call {
    Create(usize),
    Start(usize),
    Stop(usize),
    Remove(usize),
    StopPod,
}

/// A call, and after how many hundreds of microseconds each lost attempt before it is given up.
type Step = (Call, Vec<u64>);

fn any_step() -> impl Strategy<Value = Step> {
    let container = 0..2_usize;
    let call = prop_oneof![
        4 => container.clone().prop_map(Call::Create),
        4 => container.clone().prop_map(Call::Start),
        2 => container.clone().prop_map(Call::Stop),
        2 => container.prop_map(Call::Remove),
        1 => Just(Call::StopPod),
    ];
    (call, prop::collection::vec(0..60_u64, 0..4))
}

/// One run of a sequence.
struct Run<'n> {
    node: &'n Node,
    pod: Pod,
    ids: [String; 2],
}

impl Run<'_> {
    async fn call(&self, call: Call) -> Result<Option<String>, Code> {
        let cri = &self.node.cri;
        let config = |n: usize| {
            let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
            shell(&format!("c{n}"), script)
        };
        let done = match call {
            Call::Create(n) => {
                let made = cri.create(&self.pod.id, &config(n), &self.pod.config).await;
                return made.map(Some).map_err(|error| error.code());
            }
            Call::Start(n) => cri.start(&self.ids[n]).await,
            // One that has not come to its trap yet is killed soon.
            Call::Stop(n) => cri.stop(&self.ids[n], 1).await,
            Call::Remove(n) => cri.remove(&self.ids[n]).await,
            Call::StopPod => cri.stop_pod(&self.pod.id).await,
        };
        done.map(|()| None).map_err(|error| error.code())
    }

    /// Makes the calls; returns how each was answered.
    async fn all(&mut self, steps: &[Step], lose: bool) -> Vec<Result<(), Code>> {
        let mut answers = Vec::new();
        for (call, losses) in steps {
            for tenths_ms in losses.iter().filter(|_| lose) {
                let patience = Duration::from_micros(tenths_ms * 100);
                // Lost or answered: the next attempt is the same either way.
                let _lost = tokio::time::timeout(patience, self.call(*call)).await;
            }
            let answer = self.call(*call).await;
            if let (Call::Create(n), Ok(Some(id))) = (call, &answer) {
                self.ids[*n].clone_from(id);
            }
            answers.push(answer.map(drop));
        }
        answers
    }

    /// What there is in the end: the pod's state, and name and state of each container.
    async fn state(&self) -> (i32, Vec<(String, i32)>) {
        let cri = &self.node.cri;
        let pod = cri.pod_status(&self.pod.id).await;
        let all = cri.list(None).await.expect("ListContainers");
        let mut containers: Vec<_> = all
            .into_iter()
            .filter(|container| container.pod_sandbox_id == self.pod.id)
            .map(|container| {
                let name = container.metadata.map(|metadata| metadata.name);
                (name.unwrap_or_default(), container.state)
            })
            .collect();
        containers.sort();
        (pod.expect("PodSandboxStatus").state, containers)
    }
}

/// Runs a sequence on a pod of its own.
async fn outcome(
    node: &Node,
    steps: &[Step],
    lose: bool,
) -> (Vec<Result<(), Code>>, (i32, Vec<(String, i32)>)) {
    let config = node.pod_config("model");
    if lose {
        for _ in 0..3 {
            let patience = Duration::from_millis(2);
            let _lost = tokio::time::timeout(patience, node.cri.run_pod(&config)).await;
        }
    }
    let pod = node.pod_from(config).await;
    let nobody = || "0".repeat(64);
    let mut run = Run {
        node,
        pod,
        ids: [nobody(), nobody()],
    };
    let answers = run.all(steps, lose).await;
    let state = run.state().await;
    node.cri
        .remove_pod(&run.pod.id)
        .await
        .expect("RemovePodSandbox");
    let left = node.cri.list_pods(None).await.expect("ListPodSandbox");
    assert!(
        left.is_empty(),
        "a lost call has made another pod: {left:?}"
    );
    (answers, state)
}

#[test]
fn lost_calls_change_neither_answers_nor_the_end() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let node = runtime.block_on(Node::start());
    let soak = std::env::var_os("QUILT_SOAK").is_some();
    let mut runner = TestRunner::new(Config {
        cases: if soak { 200 } else { 6 },
        max_shrink_iters: 20,
        failure_persistence: None,
        ..Config::default()
    });
    let steps = prop::collection::vec(any_step(), 3..12);
    let held = runner.run(&steps, |steps| {
        let lossless = runtime.block_on(outcome(&node, &steps, false));
        let lossy = runtime.block_on(outcome(&node, &steps, true));
        prop_assert_eq!(lossy, lossless);
        Ok(())
    });
    held.unwrap_or_else(|error| panic!("{error}"));
}
