//! What is left when the daemon, the shim or a container dies.

use super::*;

#[tokio::test]
async fn an_exit_that_nobody_heard_is_told_to_the_next_daemon_until_acknowledged() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let launched = node
        .run(&shim, "orphan", "exec /bin/busybox sleep 100")
        .await;
    let shim_pid = shim.shim_pid();
    drop((shim, events));
    signal(&launched, Signal::KILL);
    let journal = node.state().join("shim/exits");
    until("the exit is written down", || {
        fs::read_to_string(&journal).is_ok_and(|text| text.contains("orphan"))
    })
    .await;
    for _ in 0..2 {
        let (shim, mut events) = node.connect().await;
        assert_eq!(
            shim.shim_pid(),
            shim_pid,
            "it holds an exit and must not end"
        );
        assert_eq!(next_exit(&mut events).await.code, 137);
    }
    let (shim, mut events) = node.connect().await;
    let sequence = next_exit(&mut events).await.sequence;
    shim.acknowledge(sequence).await.unwrap();
    drop((shim, events));
    node.shim_ends(shim_pid).await;
    assert!(!fs::read_to_string(&journal).unwrap().contains("orphan"));
}

#[tokio::test]
async fn a_container_outlives_its_shim_and_the_next_one_logs_on_and_learns_its_code() {
    for lines in [1000, 100_000] {
        outlive(lines).await;
    }
}

async fn outlive(lines: usize) {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let script = format!("echo before; read gate; echo alone; /bin/busybox seq {lines}; exit 9");
    let args = ["/bin/busybox", "sh", "-c", &script];
    let plan = node.plan_with("c", &args, |plan| plan.stdio.stdin = true);
    let launched = shim.launch("c", &plan).await.unwrap();
    until("the first line is logged", || {
        node.content("c") == "before\n"
    })
    .await;
    let dead = shim.shim_pid();
    kill_process(pid(dead), Signal::KILL).unwrap();
    drop((shim, events));
    // It writes with nobody to read, and may be done before anybody does: nothing of it is lost.
    let stdin = plan.with_file_name("stdin");
    fs::OpenOptions::new()
        .write(true)
        .open(stdin)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();

    let (shim, mut events) = node.connect().await;
    assert_ne!(shim.shim_pid(), dead);
    assert!(shim.list().await.unwrap().is_empty());
    let orphan = || orphan("c", &plan, &launched);
    assert!(shim.adopt(orphan()).await.unwrap());
    assert!(
        shim.adopt(orphan()).await.is_ok(),
        "asked again, it is the same"
    );
    let exit = next_exit(&mut events).await;
    if exit.lost {
        assert_eq!(exit.code, LOST_EXIT_CODE, "a kernel before 6.15");
    } else {
        assert_eq!((exit.code, exit.signal), (9, None));
    }
    let numbers: String = (1..=lines).map(|number| format!("{number}\n")).collect();
    let content = node.content("c");
    assert!(
        content == format!("before\nalone\n{numbers}"),
        "{} bytes",
        content.len()
    );
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_container_that_ended_while_no_shim_lived_is_told_by_its_pidfd_or_lost() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let known = node
        .run(&shim, "known", "exec /bin/busybox sleep 100")
        .await;
    let unknown = node
        .run(&shim, "unknown", "exec /bin/busybox sleep 100")
        .await;
    let imposter = node
        .run(&shim, "imposter", "exec /bin/busybox sleep 100")
        .await;
    kill_process(pid(shim.shim_pid()), Signal::KILL).unwrap();
    drop((shim, events));
    signal(&known, Signal::TERM);
    signal(&known, Signal::KILL);
    signal(&unknown, Signal::KILL);
    until("both are reaped by init", || {
        !is_alive(known.pid) && !is_alive(unknown.pid)
    })
    .await;

    let (shim, mut events) = node.connect().await;
    let orphan = |id, launched: &Launched, pidfd: bool, start_time| Orphan {
        id,
        kind: ProcessKind::Container,
        plan_path: None,
        pid: launched.pid,
        start_time,
        pidfd: pidfd.then(|| launched.pidfd.try_clone().unwrap()),
        terminal: None,
        lost_log: (0, 0),
    };
    shim.adopt(orphan("known", &known, true, known.start_time))
        .await
        .unwrap();
    let exit = next_exit(&mut events).await;
    assert!(exit.lost || exit.signal.is_some(), "{exit:?}");
    shim.acknowledge(exit.sequence).await.unwrap();

    let there = shim
        .adopt(orphan("unknown", &unknown, false, unknown.start_time))
        .await
        .unwrap();
    assert!(!there);
    let exit = next_exit(&mut events).await;
    assert_eq!((exit.code, exit.lost), (LOST_EXIT_CODE, true));
    shim.acknowledge(exit.sequence).await.unwrap();

    // Another process has the number by now: its start time says so, and it is not touched.
    let wrong = orphan("imposter", &imposter, false, imposter.start_time + 1);
    assert!(!shim.adopt(wrong).await.unwrap());
    assert!(next_exit(&mut events).await.lost);
    assert!(pidfd_open(pid(imposter.pid), PidfdFlags::empty()).is_ok());
    signal(&imposter, Signal::KILL);
}

#[tokio::test]
async fn sequence_numbers_go_on_after_the_shim_has_died() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    node.run(&shim, "one", "exit 1").await;
    let first = next_exit(&mut events).await;
    kill_process(pid(shim.shim_pid()), Signal::KILL).unwrap();
    drop((shim, events));
    let (shim, mut events) = node.connect().await;
    assert_eq!(
        next_exit(&mut events).await,
        first,
        "written down before it was told"
    );
    shim.acknowledge(first.sequence).await.unwrap();
    node.run(&shim, "two", "exit 2").await;
    let second = next_exit(&mut events).await;
    assert_eq!(second.sequence, first.sequence + 1);
    shim.acknowledge(second.sequence).await.unwrap();
}

#[tokio::test]
async fn asked_to_end_it_does_so_only_when_nothing_runs() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let launched = node
        .run(&shim, "alive", "exec /bin/busybox sleep 100")
        .await;
    let shim_pid = shim.shim_pid();
    for refused in [
        Signal::TERM,
        Signal::INT,
        Signal::HUP,
        Signal::PIPE,
        Signal::USR1,
    ] {
        kill_process(pid(shim_pid), refused).unwrap();
        shim.ping().await.unwrap();
    }
    signal(&launched, Signal::KILL);
    next_exit(&mut events).await;
    kill_process(pid(shim_pid), Signal::TERM).unwrap();
    node.shim_ends(shim_pid).await;
    // The exit was not acknowledged: it is in the journal, for the next.
    let (shim, mut events) = node.connect().await;
    let exit = next_exit(&mut events).await;
    assert_eq!(exit.signal, Some(9));
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_command_ends_when_its_daemon_is_gone_and_its_container_does_not() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let container = node.run(&shim, "c", "exec /bin/busybox sleep 1000").await;
    let start = async |id: &str, script: &str| {
        let (its_stdin, _no_input) = pipe();
        let (stdout, its_stdout) = pipe();
        let streams = [its_stdin, its_stdout.try_clone().unwrap(), its_stdout];
        let started = shim.exec(id, "c", &exec_plan(script), Some(streams)).await;
        // It runs, and has its trap.
        let mut said = [0; 1];
        assert_eq!(rustix::io::read(&stdout, &mut said).unwrap(), 1);
        started.unwrap().0
    };
    let obeys = start("obeys", "echo; exec /bin/busybox sleep 1000").await;
    let ignores = start(
        "ignores",
        "trap '' HUP; echo; while :; do /bin/busybox sleep 1; done",
    );
    let ignores = ignores.await;
    drop((shim, events));
    for command in [&obeys, &ignores] {
        until("the command is gone", || !is_alive(command.pid)).await;
    }
    let (shim, mut events) = node.connect().await;
    let mut ends: Vec<ExitRecord> = Vec::new();
    for _ in 0..2 {
        let exit = next_exit(&mut events).await;
        shim.acknowledge(exit.sequence).await.unwrap();
        ends.push(exit);
    }
    ends.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(ends[0].signal, Some(9), "{ends:?}");
    assert!(is_alive(container.pid));
    signal(&container, Signal::KILL);
    assert_eq!(next_exit(&mut events).await.id.as_str(), "c");
}
