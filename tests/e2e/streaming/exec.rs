//! Exec as a session.

use std::io::Write;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use quilt::streaming::spdy::frame::Frame;

use super::{TRANSPORTS, noise};
use crate::support::pod::{security, shell};
use crate::support::streaming::{Spdy, ends, read_until, run};
use crate::support::{Node, cri::*, eventually, is_soak, process};

#[tokio::test]
async fn streams_and_exit_code_come_through_crictl_over_both_transports() {
    let node = Node::start().await;
    let pod = node.pod("streams").await;
    let id = pod.idle("main").await;
    for transport in TRANSPORTS {
        let script = "cat; echo to stderr >&2; exit 3";
        let arguments = ["exec", "-r", transport, "-i", &id, "sh", "-c", script];
        let output = node.crictl_with(&arguments, b"to stdin\n".to_vec()).await;
        assert_eq!(output.stdout, b"to stdin\n", "{transport}: {output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("to stderr"), "{transport}: {errors}");
        assert!(errors.contains("exit code 3"), "{transport}: {errors}");
        assert!(!output.status.success(), "{transport}: {errors}");
        let arguments = ["exec", "-r", transport, &id, "hostname"];
        let output = node.crictl_with(&arguments, vec![]).await;
        assert!(output.status.success(), "{transport}: {output:?}");
        assert_eq!(output.stdout, b"streams\n");
    }
}

#[tokio::test]
async fn a_terminal_has_the_clients_size_and_follows_it() {
    let node = Node::start().await;
    let pod = node.pod("terminal").await;
    let id = pod.idle("main").await;
    for transport in TRANSPORTS {
        let arguments = ["exec", "-r", transport, "-it", &id, "sh"];
        let (mut child, mut terminal) = node.crictl_on_terminal(&arguments);
        let shown = tokio::task::spawn_blocking(move || {
            read_until(&mut terminal, "# ");
            let size = rustix::termios::Winsize {
                ws_row: 40,
                ws_col: 120,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(&terminal, size).expect("a new size");
            process::signal(child.id() as i32, Signal::SIGWINCH);
            // The size is on its way beside the input: asked until it is there.
            let script = "until [ \"$(stty size)\" = '40 120' ]; do :; done; echo fol''lows\n";
            terminal.write_all(script.as_bytes()).expect("written");
            let shown = read_until(&mut terminal, "follows");
            terminal.write_all(b"tty; exit 5\n").expect("written");
            let shown = shown + &read_until(&mut terminal, "exit code 5");
            ends(&mut child);
            shown
        });
        let shown = shown.await.expect("the terminal was read");
        assert!(shown.contains("/dev/pts/"), "{transport}: {shown}");
    }
}

#[tokio::test]
async fn a_command_has_what_its_container_has() {
    let node = Node::start().await;
    let pod = node.pod("same").await;
    let mut config = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    config.working_dir = "/tmp".into();
    config.envs = vec![KeyValue {
        key: "GIVEN".into(),
        value: "by request".into(),
    }];
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let id = pod.run(&config).await;
    let script = "pwd; echo $GIVEN; id -u; cat /proc/1/comm; \
                  [ $(readlink /proc/self/ns/net) = $(readlink /proc/1/ns/net) ]; echo $?; \
                  grep -E '^Cap|^Seccomp:|^NoNewPrivs' /proc/self/status >&2; \
                  grep -E '^Cap|^Seccomp:|^NoNewPrivs' /proc/1/status >&2";
    let url = node.exec_url(&id, &["sh", "-c", script], false).await;
    let ran = run(&url, b"").await;
    let text = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(text, "/tmp\nby request\n1000\nsh\n0\n");
    let rights = String::from_utf8_lossy(&ran.stderr);
    let lines: Vec<&str> = rights.lines().collect();
    let (own, of_main) = lines.split_at(lines.len() / 2);
    assert_eq!(own, of_main, "the rights of the container");
    assert_eq!(ran.status["status"], "Success");
}

#[tokio::test]
async fn binary_files_pass_whole_in_both_directions() {
    let node = Node::start().await;
    let pod = node.pod("binary").await;
    let id = pod.idle("main").await;
    let bytes = noise(if is_soak() { 100 << 20 } else { 6 << 20 });
    for transport in TRANSPORTS {
        let arguments = ["exec", "-r", transport, "-i", &id, "cat"];
        let output = node.crictl_with(&arguments, bytes.clone()).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{transport}: {errors}");
        assert!(output.stdout == bytes, "{transport}: other bytes");
    }
}

#[tokio::test]
async fn a_command_ends_with_its_client() {
    let node = Node::start().await;
    let pod = node.pod("gone").await;
    let id = pod.idle("main").await;
    // The first ends by the signal of a hang-up, the second ignores it and is killed with its
    // child; the third hangs on a client that is gone although it would read nothing.
    let scripts = [
        "sleep 86401",
        "trap '' HUP; sleep 86402 & sleep 86402",
        "sleep 86403",
    ];
    let cases = scripts.into_iter().zip([false, false, true]);
    join_all(cases.map(async |(script, tty)| {
        let url = node.exec_url(&id, &["sh", "-c", script], tty).await;
        let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
        let last = if tty { "resize" } else { "stderr" };
        let streams = client.open_all(&["error", "stdin", "stdout", last]).await;
        let argument = script.split(' ').next_back().expect("an argument");
        let ours = || process::of_containers(&node.names, argument).len();
        eventually("the command runs", || async { (ours() > 0).then_some(()) }).await;
        client.data(streams[1], &vec![0; 1 << 18], false).await;
        drop(client);
        eventually("the command is gone", || async {
            (ours() == 0).then_some(())
        })
        .await;
    }))
    .await;
    assert_eq!(node.cri.output(&id, "echo still here").await, "still here");
}

#[tokio::test]
async fn a_command_ends_with_its_children_when_its_daemon_was_killed() {
    let mut node = Node::start().await;
    let pod = node.pod("killed").await;
    let id = pod.idle("main").await;
    let scripts = ["sleep 86404", "trap '' HUP; sleep 86405 & sleep 86405"];
    for script in scripts {
        let url = node.exec_url(&id, &["sh", "-c", script], false).await;
        let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
        client
            .open_all(&["error", "stdin", "stdout", "stderr"])
            .await;
        let argument = script.split(' ').next_back().expect("an argument");
        let ours = || process::of_containers(&node.names, argument).len();
        eventually("the command runs", || async { (ours() > 0).then_some(()) }).await;
        node.kill();
        // Nobody has started another daemon: the shim alone sees to it.
        eventually("the command is gone", || async {
            (process::of_containers(&node.names, argument).is_empty()).then_some(())
        })
        .await;
        node.restart().await;
    }
    assert_eq!(node.cri.output(&id, "echo still here").await, "still here");
}

#[tokio::test]
async fn a_session_that_is_not_read_holds_back_its_own_command_alone() {
    let node = Node::start().await;
    let pod = node.pod("unread").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["cat", "/dev/zero"], false).await;
    let mut unread = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let types = ["error", "stdin", "stdout", "stderr"];
    unread.open_all(&types).await;
    // It writes, and then waits for ever.
    unread
        .until("output", |frame| matches!(frame, Frame::Data { .. }))
        .await;
    for _ in 0..5 {
        let url = node.exec_url(&id, &["echo", "beside"], false).await;
        assert_eq!(run(&url, b"").await.stdout, b"beside\n");
    }
    assert_eq!(node.cri.output(&id, "echo beside").await, "beside");
    drop(unread);
    eventually("the command is gone", || async {
        let ps = node.cri.output(&id, "ps").await;
        (!ps.contains("cat /dev/zero")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn windows_are_kept_once_a_client_shows_that_it_has_some() {
    let node = Node::start().await;
    let pod = node.pod("windows").await;
    let id = pod.idle("main").await;
    let script = "head -c 1000 /dev/zero; cat";
    let url = node.exec_url(&id, &["sh", "-c", script], false).await;
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let initial_window = Some(300);
    client.send(Frame::Settings { initial_window }).await;
    let types = ["error", "stdin", "stdout", "stderr"];
    let streams = client.open_all(&types).await;
    let mut got = 0;
    // Nothing but the window comes, and then the answer to a ping that was sent after it.
    while got < 300 {
        let frame = client.next().await.expect("more");
        if let Frame::Data { stream, bytes, .. } = frame {
            assert!(stream == streams[2] || bytes.is_empty());
            got += bytes.len();
        }
    }
    client.send(Frame::Ping(1)).await;
    let frame = client.next().await;
    assert_eq!((got, frame), (300, Some(Frame::Ping(1))));
    let (stream, delta) = (streams[2], 700);
    client.send(Frame::WindowUpdate { stream, delta }).await;
    while got < 1000 {
        let frame = client.next().await.expect("more");
        if let Frame::Data { bytes, .. } = frame {
            got += bytes.len();
        }
    }
    assert_eq!(got, 1000);
    client.data(streams[1], b"", true).await;
    client.finish().await;
}

#[tokio::test]
async fn a_child_that_keeps_the_streams_open_does_not_keep_the_session() {
    let node = Node::start().await;
    let pod = node.pod("held").await;
    let id = pod.idle("main").await;
    let url = node
        .exec_url(&id, &["sh", "-c", "sleep 60 & echo done"], false)
        .await;
    let ran = run(&url, b"").await;
    assert_eq!(ran.stdout, b"done\n");
    assert_eq!(ran.status["status"], "Success");
}

#[tokio::test]
async fn what_cannot_be_executed_is_told_over_the_error_stream() {
    let node = Node::start().await;
    let pod = node.pod("nothing").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["/no/such/command"], false).await;
    let ran = run(&url, b"").await;
    assert_eq!(ran.status["status"], "Failure", "{}", ran.status);
    let message = ran.status["message"].as_str().expect("a message");
    assert!(message.contains("/no/such/command"), "{message}");
    // The container ends between the call and the session.
    let url = node.exec_url(&id, &["true"], false).await;
    node.cri.stop(&id, 0).await.expect("StopContainer");
    let ran = run(&url, b"").await;
    assert_eq!(ran.status["status"], "Failure", "{}", ran.status);
}

#[tokio::test]
async fn a_daemon_that_ends_says_so_and_leaves_the_container() {
    let mut node = Node::start().await;
    let pod = node.pod("restart").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["cat"], false).await;
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let types = ["error", "stdin", "stdout", "stderr"];
    let streams = client.open_all(&types).await;
    client.data(streams[1], b"echoed", false).await;
    client
        .until("an echo", |frame| matches!(frame, Frame::Data { .. }))
        .await;
    let told = tokio::spawn(client.finish());
    node.terminate();
    let content = told.await.expect("the session ends");
    let status = String::from_utf8_lossy(&content[&streams[0]]).into_owned();
    assert!(status.contains("restarted"), "{status}");
    node.spawn();
    node.answers().await;
    assert_eq!(node.cri.output(&id, "echo still here").await, "still here");
}

#[tokio::test]
async fn many_sessions_end_exactly_while_pods_come_and_go() {
    let node = Node::start().await;
    let pod = node.pod("many").await;
    let id = pod.idle("main").await;
    let (sessions, pods) = if is_soak() { (200, 40) } else { (24, 3) };
    let churn = async {
        for n in 0..pods {
            let pod = node.pod(&format!("churn-{n}")).await;
            pod.idle("main").await;
            node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
            node.cri
                .remove_pod(&pod.id)
                .await
                .expect("RemovePodSandbox");
        }
    };
    let all = join_all((0..sessions).map(async |n| {
        let script = format!("cat; echo {n} >&2; exit {}", n % 100);
        let url = node.exec_url(&id, &["sh", "-c", &script], false).await;
        let input = vec![n as u8; 100_000];
        let ran = run(&url, &input).await;
        assert!(ran.stdout == input, "session {n}: other bytes");
        assert_eq!(ran.stderr, format!("{n}\n").as_bytes());
        let code = &ran.status["details"]["causes"][0]["message"];
        match n % 100 {
            0 => assert_eq!(ran.status["status"], "Success"),
            wanted => assert_eq!(code, &wanted.to_string(), "{}", ran.status),
        }
    }));
    tokio::join!(churn, all);
}
