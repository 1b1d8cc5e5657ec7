//! A command in a running container: what it printed, how it ended, and that it ends.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::support::pod::{security, shell};
use crate::support::{Node, cri::*, eventually, process};

/// What ExecSync keeps of each stream.
const CAP_BYTES: usize = 16 << 20;

#[tokio::test]
async fn output_and_exit_code_come_back_apart() {
    let node = Node::start().await;
    let pod = node.pod("apart").await;
    let id = pod.idle("main").await;
    let script = "echo out; echo err >&2; exit 4";
    let answer = node
        .cri
        .exec(&id, &["sh", "-c", script], 10)
        .await
        .expect("ExecSync");
    assert_eq!(answer.stdout, b"out\n");
    assert_eq!(answer.stderr, b"err\n");
    assert_eq!(answer.exit_code, 4);
    let answer = node
        .cri
        .exec(&id, &["true"], 0)
        .await
        .expect("without a timeout");
    assert_eq!((answer.exit_code, answer.stdout.len()), (0, 0));
    let killed = node
        .cri
        .exec(&id, &["sh", "-c", "kill -KILL $$"], 10)
        .await
        .expect("ExecSync");
    assert_eq!(killed.exit_code, 137);
}

#[tokio::test]
async fn the_command_runs_in_the_containers_place() {
    let node = Node::start().await;
    let pod = node.pod("place").await;
    let mut config = shell(
        "main",
        "export SECRET=no; touch /tmp/here; while :; do sleep 0.05; done",
    );
    config.working_dir = "/tmp".into();
    config.envs = vec![KeyValue {
        key: "GIVEN".into(),
        value: "by request".into(),
    }];
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let id = pod.run(&config).await;
    eventually("the script has begun", || async {
        let answer = node
            .cri
            .exec(&id, &["ls", "/tmp/here"], 5)
            .await
            .expect("ExecSync");
        (answer.exit_code == 0).then_some(())
    })
    .await;
    let script = "pwd; echo $GIVEN; id -u; hostname; echo $SECRET; cat /proc/1/comm";
    let text = node.cri.output(&id, script).await;
    assert_eq!(text, "/tmp\nby request\n1000\nplace\n\nsh");
    let status = node
        .cri
        .output(&id, "grep -E '^Cap(Eff|Bnd)' /proc/self/status")
        .await;
    let of_main = node
        .cri
        .output(&id, "grep -E '^Cap(Eff|Bnd)' /proc/1/status")
        .await;
    assert_eq!(status, of_main, "no more rights than the container");
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_an_error_or_127() {
    let node = Node::start().await;
    let pod = node.pod("nothing").await;
    let id = pod.idle("main").await;
    match node.cri.exec(&id, &["/no/such/command"], 10).await {
        Err(error) => assert!(error.message().contains("/no/such/command"), "{error}"),
        Ok(answer) => assert_eq!(answer.exit_code, 127, "{answer:?}"),
    }
    assert_eq!(node.cri.output(&id, "echo still here").await, "still here");
}

#[tokio::test]
async fn a_command_over_its_time_is_killed_with_its_children() {
    let node = Node::start().await;
    let pod = node.pod("slow").await;
    let id = pod.idle("main").await;
    let begun = Instant::now();
    let script = "trap '' TERM; sleep 98765 & sleep 98765";
    let error = node
        .cri
        .exec(&id, &["sh", "-c", script], 1)
        .await
        .expect_err("over its time");
    let waited = begun.elapsed();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(
        waited >= Duration::from_secs(1) && waited < Duration::from_secs(10),
        "{waited:?}"
    );
    eventually("the command and its child are gone", || async {
        let left = process::of_containers(&node.names, "98765");
        left.is_empty().then_some(())
    })
    .await;
    let [shim] = node.shims()[..] else {
        panic!("one shim");
    };
    eventually("nothing is left to be reaped", || async {
        process::zombies_of(shim).is_empty().then_some(())
    })
    .await;
    assert_eq!(node.cri.output(&id, "echo still here").await, "still here");
}

#[tokio::test]
async fn a_child_that_keeps_the_streams_open_does_not_keep_the_answer() {
    let node = Node::start().await;
    let pod = node.pod("held").await;
    let id = pod.idle("main").await;
    let begun = Instant::now();
    let answer = node
        .cri
        .exec(&id, &["sh", "-c", "sleep 60 & echo done"], 30)
        .await;
    let answer = answer.expect("ExecSync");
    assert_eq!(
        (answer.exit_code, answer.stdout.as_slice()),
        (0, b"done\n".as_slice())
    );
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn output_over_the_cap_is_dropped_without_an_error() {
    let node = Node::start().await;
    let pod = node.pod("flood").await;
    let id = pod.idle("main").await;
    let script = "head -c 20000000 /dev/zero; head -c 17000000 /dev/zero >&2; exit 5";
    let answer = node
        .cri
        .exec(&id, &["sh", "-c", script], 60)
        .await
        .expect("ExecSync");
    assert_eq!(answer.exit_code, 5, "the command ran to its end");
    assert_eq!(answer.stdout.len(), CAP_BYTES);
    assert_eq!(answer.stderr.len(), CAP_BYTES);
}

#[tokio::test]
async fn many_commands_at_once_each_get_their_own_output() {
    let node = Node::start().await;
    let pod = node.pod("crowd").await;
    let id = pod.idle("main").await;
    let scripts: Vec<_> = (0..40).map(|n| format!("echo {n}; exit {n}")).collect();
    let calls = scripts.iter().map(async |script| {
        node.cri
            .exec(&id, &["sh", "-c", script], 30)
            .await
            .expect("ExecSync")
    });
    let answers = futures_util::future::join_all(calls).await;
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.exit_code as usize, n);
        assert_eq!(answer.stdout, format!("{n}\n").as_bytes());
    }
}

#[tokio::test]
async fn a_container_that_does_not_run_takes_no_commands() {
    let node = Node::start().await;
    let pod = node.pod("idle").await;
    let created = pod.create(&shell("created", "true")).await;
    let error = node
        .cri
        .exec(&created, &["true"], 5)
        .await
        .expect_err("it was not started");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let ended = pod.run_to_end(&shell("ended", "true")).await.id;
    let error = node
        .cri
        .exec(&ended, &["true"], 5)
        .await
        .expect_err("it has ended");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}
