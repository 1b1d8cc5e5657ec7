//! Starting processes and hearing of their ends.

use super::*;

#[tokio::test]
async fn exits_arrive_with_codes_and_signals_after_their_last_line() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    for (id, script, code, killed) in [
        ("a0", "echo out; echo err >&2; exit 0", 0, None),
        ("a7", "exit 7", 7, None),
        ("a9", "exec /bin/busybox sleep 100", 137, Some(9)),
    ] {
        let launched = node.run(&shim, id, script).await;
        if killed.is_some() {
            signal(&launched, Signal::KILL);
        }
        let exit = next_exit(&mut events).await;
        assert_eq!((exit.id.as_str(), exit.kind), (id, ProcessKind::Container));
        assert_eq!((exit.code, exit.signal, exit.lost), (code, killed, false));
        if id == "a0" {
            let content = node.content(id);
            assert!(
                content == "out\nerr\n" || content == "err\nout\n",
                "{content}"
            );
        }
        shim.acknowledge(exit.sequence).await.unwrap();
        shim.forget(id).await.unwrap();
    }
    assert!(shim.list().await.unwrap().is_empty());
    let pid = shim.shim_pid();
    drop((shim, events));
    node.shim_ends(pid).await;
}

#[tokio::test]
async fn a_launch_asked_twice_is_one_launch_and_a_finished_one_is_not_repeated() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let first = node
        .run(&shim, "twice", "exec /bin/busybox sleep 100")
        .await;
    let again = shim
        .launch("twice", &node.plan("twice", "true"))
        .await
        .unwrap();
    assert_eq!(shim.handles("twice").await.unwrap().outputs.len(), 2);
    assert_eq!((first.pid, first.start_time), (again.pid, again.start_time));
    assert!(matches!(
        shim.forget("twice").await,
        Err(ShimClientError::Refused(Refusal::Running(_)))
    ));
    signal(&again, Signal::KILL);
    let exit = next_exit(&mut events).await;
    let refused = shim.launch("twice", &node.plan("twice", "true")).await;
    assert!(matches!(
        refused,
        Err(ShimClientError::Refused(Refusal::Exited(_)))
    ));
    let held = shim.list().await.unwrap();
    assert_eq!(held[0].exit.as_ref(), Some(&exit));
    shim.forget("twice").await.unwrap();
    shim.forget("twice").await.unwrap();
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_a_launch_error_and_leaves_nothing() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let plan = node.plan_with("none", &["/bin/no-such-command"], |_| ());
    match shim.launch("none", &plan).await {
        Err(ShimClientError::Launch(error)) => {
            assert!(error.message.contains("no-such-command"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    let missing = shim.launch("none", Path::new("/no/plan.json")).await;
    assert!(matches!(
        missing,
        Err(ShimClientError::Refused(Refusal::Prepare(_)))
    ));
    assert!(shim.list().await.unwrap().is_empty());
    let held = fs::read_dir(format!("/proc/{}/fd", shim.shim_pid()))
        .unwrap()
        .count();
    assert!(held <= 12, "{held} descriptors");
    let pid = shim.shim_pid();
    drop((shim, events));
    node.shim_ends(pid).await;
}

#[tokio::test]
async fn an_exec_has_the_daemons_pipes_and_its_own_exit() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let container = node.run(&shim, "host", "exec /bin/busybox sleep 100").await;
    // Too long to go inside a message.
    let padding = "x".repeat(100_000);
    for (id, script) in [
        ("e1", "/bin/busybox cat; exit 3".to_owned()),
        ("e2", format!(": {padding}; /bin/busybox cat; exit 3")),
    ] {
        let (input_reader, input) = pipe();
        let (output, output_writer) = pipe();
        let streams = [
            input_reader,
            output_writer.try_clone().unwrap(),
            output_writer,
        ];
        shim.exec(id, "host", &exec_plan(&script), Some(streams))
            .await
            .unwrap();
        rustix::io::write(&input, b"through").unwrap();
        drop(input);
        let exit = next_exit(&mut events).await;
        assert_eq!(
            (exit.id.as_str(), exit.kind, exit.code),
            (id, ProcessKind::Exec, 3)
        );
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&output, &mut buffer).unwrap(), 7);
        assert_eq!(shim.list().await.unwrap().len(), 2);
        shim.acknowledge(exit.sequence).await.unwrap();
        assert_eq!(
            shim.list().await.unwrap().len(),
            1,
            "an exec goes with its acknowledgement"
        );
    }
    let nobody = shim.exec("e3", "nobody", &exec_plan("true"), None).await;
    assert!(matches!(
        nobody,
        Err(ShimClientError::Refused(Refusal::NotFound(_)))
    ));
    signal(&container, Signal::KILL);
    let exit = next_exit(&mut events).await;
    let dead = shim.exec("e4", "host", &exec_plan("true"), None).await;
    assert!(matches!(
        dead,
        Err(ShimClientError::Refused(Refusal::Exited(_)))
    ));
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn more_exits_than_the_window_all_arrive() {
    use crate::shim::protocol::EVENT_WINDOW;
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let count = EVENT_WINDOW + 40;
    for number in 0..count {
        let discard = |plan: &mut LaunchPlan| plan.stdio.log_path = None;
        let id = format!("many-{number}");
        let plan = node.plan_with(&id, &["/bin/busybox", "true"], discard);
        shim.launch(&id, &plan).await.unwrap();
    }
    assert_eq!(shim.list().await.unwrap().len(), count);
    for _ in 0..count {
        let exit = next_exit(&mut events).await;
        shim.acknowledge(exit.sequence).await.unwrap();
    }
}
