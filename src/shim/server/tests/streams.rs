//! What containers write and read.

use super::*;

#[tokio::test]
async fn an_unterminated_last_line_is_in_the_log_when_the_exit_arrives() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    node.run(&shim, "tail", "printf 'one\\ntwo'; printf three >&2")
        .await;
    let exit = next_exit(&mut events).await;
    let log = fs::read_to_string(node.log("tail")).unwrap();
    assert!(log.contains(" stdout F one\n"), "{log}");
    assert!(
        log.contains(" stdout P two\n") && log.contains(" stderr P three\n"),
        "{log}"
    );
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn rotation_under_load_loses_and_repeats_no_line() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    const LINES: usize = 200_000;
    let plan = node.plan_with(
        "busy",
        &["/bin/busybox", "seq", "1", &LINES.to_string()],
        |_| (),
    );
    shim.launch("busy", &plan).await.unwrap();
    let log = node.log("busy");
    let mut rotated = Vec::new();
    let exit = loop {
        if let Ok(event) = events.try_recv() {
            match event {
                ShimEvent::Exited(exit) => break exit,
                ShimEvent::LogLoss => panic!("a line was lost"),
                ShimEvent::Disconnected => panic!("disconnected"),
            }
        }
        let name = log.with_extension(format!("{}", rotated.len()));
        fs::rename(&log, &name).unwrap();
        rotated.push(name);
        shim.reopen_log("busy").await.unwrap();
    };
    rotated.push(log);
    let all: String = rotated.iter().map(|path| content(path)).collect();
    let expected: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
    assert!(rotated.len() > 3, "{} files", rotated.len());
    // It has exited and may still be reopened; what is not there cannot.
    shim.reopen_log("busy").await.unwrap();
    let missing = shim.reopen_log("nobody").await;
    assert!(matches!(
        missing,
        Err(ShimClientError::Refused(Refusal::NotFound(_)))
    ));
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_noisy_container_delays_neither_requests_nor_exits() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let discard = |plan: &mut LaunchPlan| plan.stdio.log_path = None;
    let noisy = node.plan_with("noisy", &["/bin/busybox", "yes"], discard);
    let noisy = shim.launch("noisy", &noisy).await.unwrap();
    for number in 0..20 {
        let id = format!("quiet-{number}");
        let start = Instant::now();
        node.run(&shim, &id, "exit 5").await;
        let exit = next_exit(&mut events).await;
        assert_eq!((exit.id.as_str(), exit.code), (id.as_str(), 5));
        assert!(start.elapsed() < Duration::from_secs(5));
        shim.acknowledge(exit.sequence).await.unwrap();
    }
    signal(&noisy, Signal::KILL);
    let exit = next_exit(&mut events).await;
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn an_input_once_ends_when_it_is_closed() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let once = |plan: &mut LaunchPlan| (plan.stdio.stdin, plan.stdio.stdin_once) = (true, true);
    let plan = node.plan_with("cat", &["/bin/busybox", "cat"], once);
    shim.launch("cat", &plan).await.unwrap();
    let input = fs::OpenOptions::new()
        .write(true)
        .open(plan.with_file_name("stdin"))
        .unwrap();
    rustix::io::write(&input, b"said\n").unwrap();
    until("the line is logged", || node.content("cat") == "said\n").await;
    drop(input);
    shim.close_stdin("cat").await.unwrap();
    let exit = next_exit(&mut events).await;
    assert_eq!(exit.code, 0);
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_everybody_has_closed_is_closed_here_too() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let script = "printf unfinished; exec >&- 2>&-; exec /bin/busybox sleep 100";
    let launched = node.run(&shim, "closed", script).await;
    until("the rest is logged", || {
        node.content("closed") == "unfinished"
    })
    .await;
    let end = Instant::now() + BOUND;
    while !shim.handles("closed").await.unwrap().outputs.is_empty() {
        assert!(Instant::now() < end, "a FIFO without writers is still open");
    }
    signal(&launched, Signal::KILL);
    let exit = next_exit(&mut events).await;
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_grandchild_that_goes_on_holds_back_no_exit_and_is_still_logged() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let script = "exec 3<&0; (read gate <&3; echo late) & printf early; exit 4";
    let args = ["/bin/busybox", "sh", "-c", script];
    // In the host's PID namespace nothing ends it with its parent.
    let plan = node.plan_with("family", &args, |plan| {
        plan.stdio.stdin = true;
        let linux = serde_json::from_value(serde_json::json!({
            "namespaces": [{ "type": "mount" }]
        }));
        plan.spec.set_linux(Some(linux.unwrap()));
    });
    shim.launch("family", &plan).await.unwrap();
    let exit = next_exit(&mut events).await;
    assert_eq!(exit.code, 4);
    assert_eq!(node.content("family"), "early");
    let stdin = plan.with_file_name("stdin");
    fs::OpenOptions::new()
        .write(true)
        .open(stdin)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    until("the grandchild is logged", || {
        node.content("family") == "earlylate\n"
    })
    .await;
    shim.acknowledge(exit.sequence).await.unwrap();
}
