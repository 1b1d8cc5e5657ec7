//! Attach.

use std::io::Write;
use std::process::Stdio;

use quilt::proto::cri as v1;
use quilt::streaming::spdy::frame::Frame;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::TRANSPORTS;
use crate::support::client::request;
use crate::support::pod::{exited, shell};
use crate::support::streaming::{Spdy, ends, read_until};
use crate::support::{Node, cri::*, eventually, in_time, log};

/// A container that answers each line it reads.
pub(super) fn parrot(name: &str) -> ContainerConfig {
    let mut config = shell(
        name,
        "while read line; do echo \"heard $line\"; echo \"of $line\" >&2; done; echo end",
    );
    config.stdin = true;
    config
}

/// crictl, attached, with what it prints on its standard output.
pub(super) struct Attached {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Attached {
    pub(super) fn start(node: &Node, transport: &str, id: &str) -> Self {
        let arguments = ["attach", "-r", transport, "-i", id];
        let mut command = Command::from(node.crictl_command(&arguments));
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = child.spawn().expect("crictl starts");
        let stdout = child.stdout.take().expect("its output");
        let lines = BufReader::new(stdout).lines();
        Self { child, lines }
    }

    pub(super) async fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("its input");
        let line = format!("{line}\n");
        stdin.write_all(line.as_bytes()).await.expect("written");
    }

    pub(super) async fn line(&mut self) -> String {
        let line = in_time("a line", self.lines.next_line()).await;
        line.expect("text").expect("a line")
    }

    pub(super) async fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.kill().await.expect("crictl is killed");
    }
}

pub(crate) async fn attach_url(node: &Node, id: &str, stdin: bool, tty: bool) -> String {
    let message = v1::AttachRequest {
        container_id: id.into(),
        stdin,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let mut client = v1::runtime_service_client::RuntimeServiceClient::new(node.cri.channel());
    let answer = client.attach(request(message)).await.expect("Attach");
    answer.into_inner().url
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sessions_see_the_same_output_and_the_log_has_it_all() {
    let node = Node::start().await;
    let pod = node.pod("several").await;
    let config = parrot("main");
    let id = pod.run(&config).await;
    let mut sessions: Vec<_> = TRANSPORTS
        .iter()
        .map(|transport| Attached::start(&node, transport, &id))
        .collect();
    // Both are attached once each has seen a line of its own.
    for (n, session) in sessions.iter_mut().enumerate() {
        session.say(&format!("hello {n}")).await;
        loop {
            if session.line().await == format!("heard hello {n}") {
                break;
            }
        }
    }
    sessions[0].say("both").await;
    for session in &mut sessions {
        loop {
            if session.line().await == "heard both" {
                break;
            }
        }
    }
    // One goes, the other does not notice, and the input stays open.
    sessions.remove(0).end().await;
    sessions[0].say("alone").await;
    assert_eq!(sessions[0].line().await, "heard alone");
    sessions.remove(0).end().await;
    let log_path = pod.log_path(&config);
    let stdout = eventually("the log has every line", || async {
        let lines = log::contents(&log::read(&log_path), "stdout");
        (lines.len() == 4).then_some(lines)
    })
    .await;
    let wanted = [
        "heard hello 0",
        "heard hello 1",
        "heard both",
        "heard alone",
    ];
    assert_eq!(stdout, wanted);
    let status = node.cri.status(&id).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_for_one_session_ends_with_it_and_the_session_sees_the_end() {
    let node = Node::start().await;
    let pod = node.pod("once").await;
    for transport in TRANSPORTS {
        let mut config = parrot(transport);
        config.stdin_once = true;
        let id = pod.run(&config).await;
        let arguments = ["attach", "-r", transport, "-i", &id];
        let output = node.crictl_with(&arguments, b"one\ntwo\n".to_vec()).await;
        assert!(output.status.success(), "{transport}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, "heard one\nheard two\nend\n", "{transport}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "of one\nof two\n");
        assert_eq!(exited(&node.cri, &id).await.exit_code, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_attached_to_with_its_size() {
    let node = Node::start().await;
    let pod = node.pod("screen").await;
    for transport in TRANSPORTS {
        let mut config = crate::support::container(transport, &["sh"]);
        (config.tty, config.stdin) = (true, true);
        let id = pod.run(&config).await;
        let arguments = ["attach", "-r", transport, "-it", &id];
        let (mut child, mut terminal) = node.crictl_on_terminal(&arguments);
        let shown = tokio::task::spawn_blocking(move || {
            let script = "until [ \"$(stty size)\" = '30 100' ]; do :; done; echo re''ady\n";
            terminal.write_all(script.as_bytes()).expect("written");
            read_until(&mut terminal, "ready");
            terminal.write_all(b"echo go''ne; exit\n").expect("written");
            let shown = read_until(&mut terminal, "gone");
            ends(&mut child);
            shown
        });
        shown.await.expect("the terminal was read");
        exited(&node.cri, &id).await;
        let shown = log::contents(&pod.log(&config), "stdout").concat();
        assert!(shown.contains("ready"), "{transport}: {shown}");
    }
}

#[tokio::test]
async fn a_session_that_is_not_read_is_let_go_and_the_container_goes_on() {
    let node = Node::start().await;
    let pod = node.pod("unread").await;
    let config = shell(
        "main",
        "while [ ! -e /tmp/go ]; do echo; sleep 0.01; done; head -c 30000000 /dev/zero; echo",
    );
    let id = pod.run(&config).await;
    let url = attach_url(&node, &id, false, false).await;
    let mut unread = Spdy::connect(&url, "v4.channel.k8s.io").await;
    unread.open_all(&["error", "stdout", "stderr"]).await;
    // It is attached, and reads no more.
    unread
        .until("output", |frame| matches!(frame, Frame::Data { .. }))
        .await;
    node.cri.output(&id, "touch /tmp/go").await;
    let status = exited(&node.cri, &id).await;
    assert_eq!(status.exit_code, 0);
    assert!(pod.log_len(&config) > 30_000_000, "the log has it all");
    drop(unread);
}

#[tokio::test]
async fn a_container_that_does_not_run_is_not_attached_to() {
    let node = Node::start().await;
    let pod = node.pod("created").await;
    let id = pod.create(&shell("main", "true")).await;
    let message = v1::AttachRequest {
        container_id: id,
        stdin: false,
        tty: false,
        stdout: true,
        stderr: true,
    };
    let mut client = v1::runtime_service_client::RuntimeServiceClient::new(node.cri.channel());
    let error = client.attach(request(message)).await.expect_err("refused");
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error}");
}
