//! Requests and frames that are not as they should be.

use futures_util::SinkExt;
use quilt::proto::cri as v1;
use quilt::streaming::spdy::frame::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;

use crate::support::client::request;
use crate::support::streaming::{Spdy, http, message, place, run, websocket};
use crate::support::{Node, eventually, in_time, is_soak, process};

#[tokio::test]
async fn a_url_is_good_once_and_for_its_own_kind() {
    let node = Node::start().await;
    let pod = node.pod("once").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["echo", "once"], false).await;
    assert_eq!(run(&url, b"").await.stdout, b"once\n");
    let (address, used) = place(&url);
    let address = address.to_owned();
    let other = node.exec_url(&id, &["true"], false).await;
    let other = place(&other).1.replace("/exec/", "/attach/");
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    for (path, method, headers, wanted) in [
        (used, "POST", upgrade, "404"),
        (other.as_str(), "POST", upgrade, "404"),
        (
            "/exec/00000000000000000000000000000000",
            "GET",
            upgrade,
            "404",
        ),
        ("/exec", "GET", "", "404"),
        ("/", "GET", "", "404"),
        (used, "DELETE", upgrade, "405"),
    ] {
        let text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
        let (_, head) = http(&address, &text).await;
        let status = head.split(' ').nth(1);
        assert_eq!(status, Some(wanted), "{method} {path}: {head}");
    }
    let fresh = node.exec_url(&id, &["true"], false).await;
    let path = place(&fresh).1;
    let plain = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    assert!(http(&address, &plain).await.1.starts_with("HTTP/1.1 400 "));
    let fresh = node.exec_url(&id, &["true"], false).await;
    let path = place(&fresh).1;
    let unknown = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\n{upgrade}X-Stream-Protocol-Version: v9\r\n\r\n"
    );
    let (_, head) = http(&address, &unknown).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(head.contains("v4.channel.k8s.io"), "what is spoken: {head}");
}

#[tokio::test]
async fn what_can_be_no_session_is_refused_by_the_call() {
    let node = Node::start().await;
    let pod = node.pod("refused").await;
    let id = pod.idle("main").await;
    let mut client = v1::runtime_service_client::RuntimeServiceClient::new(node.cri.channel());
    let whole = v1::ExecRequest {
        container_id: id,
        cmd: vec!["true".into()],
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    type Change = fn(&mut v1::ExecRequest);
    let cases: [(Change, Code, &str); 5] = [
        (|r| r.tty = true, Code::InvalidArgument, "stderr"),
        (|r| r.cmd.clear(), Code::InvalidArgument, "cmd"),
        (
            |r| r.container_id.clear(),
            Code::InvalidArgument,
            "container_id",
        ),
        (
            |r| r.container_id = "0".repeat(64),
            Code::NotFound,
            "container",
        ),
        (
            |r| (r.stdin, r.stdout, r.stderr) = (false, false, false),
            Code::InvalidArgument,
            "stdin",
        ),
    ];
    for (change, code, word) in cases {
        let mut message = whole.clone();
        change(&mut message);
        let error = client.exec(request(message)).await.expect_err(word);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(word), "{error}");
    }
    // As many as may wait; the rest hears so, and those that wait are still good.
    let mut url = String::new();
    for _ in 0..1000 {
        url = client
            .exec(request(whole.clone()))
            .await
            .expect("Exec")
            .into_inner()
            .url;
    }
    let error = client.exec(request(whole)).await.expect_err("too many");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert_eq!(run(&url, b"").await.status["status"], "Success");
}

#[tokio::test]
async fn sessions_are_bounded_and_whoever_comes_too_many_hears_when_to_try_again() {
    let mut node = Node::prepare("[streaming]\nmax_sessions = 1\n");
    node.spawn();
    node.answers().await;
    let pod = node.pod("bounded").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["cat"], false).await;
    let mut only = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let next = node.exec_url(&id, &["echo", "next"], false).await;
    let (address, path) = place(&next);
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1";
    let text = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\n{upgrade}\r\n\r\n");
    let (_, head) = http(address, &text).await;
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    assert!(head.to_lowercase().contains("retry-after: 60"), "{head}");
    let types = ["error", "stdin", "stdout", "stderr"];
    let streams = only.open_all(&types).await;
    only.data(streams[1], b"", true).await;
    only.finish().await;
    // The URL has not been used up by the refusal. The place is free a moment after the end.
    let ran = crate::support::eventually("the place is free", || async {
        let (_, head) = http(address, "GET /exec/none HTTP/1.1\r\nHost: x\r\n\r\n").await;
        head.starts_with("HTTP/1.1 404 ").then_some(())
    });
    ran.await;
    assert_eq!(run(&next, b"").await.stdout, b"next\n");
}

#[tokio::test]
async fn broken_frames_end_their_own_connection_with_a_goodbye() {
    let node = Node::start().await;
    let pod = node.pod("broken").await;
    let id = pod.idle("main").await;
    let cases: [(&str, &[u8]); 5] = [
        ("another version", &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        (
            "a frame that is too long",
            &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        ),
        (
            "a header block that is none",
            &[
                0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2,
            ],
        ),
        (
            "an enormous window",
            &[
                0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff,
            ],
        ),
        ("a short frame", &[0x80, 3, 0, 3, 0, 0, 0, 2, 0, 0]),
    ];
    for (what, bytes) in cases {
        let url = node.exec_url(&id, &["cat"], false).await;
        let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
        client.raw(bytes).await;
        let goodbye = client.until(what, |frame| matches!(frame, Frame::GoAway { .. }));
        let Frame::GoAway { status, .. } = goodbye.await else {
            unreachable!("it is a goodbye");
        };
        assert_eq!(status, 1, "{what}");
        while client.next().await.is_some() {}
    }
    let url = node.exec_url(&id, &["echo", "fine"], false).await;
    assert_eq!(run(&url, b"").await.stdout, b"fine\n");
}

#[tokio::test]
async fn streams_that_nobody_asked_for_are_refused_one_by_one() {
    let node = Node::start().await;
    let pod = node.pod("streams").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["cat"], false).await;
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let streams = client
        .open_all(&["error", "stdin", "stdout", "stderr", "resize", "error"])
        .await;
    for refused in &streams[4..] {
        let reset =
            |frame: &Frame| matches!(frame, Frame::RstStream { stream, .. } if stream == refused);
        client.until("a refusal", reset).await;
    }
    // Data on a stream that never was is told so, and pings are answered.
    client.data(4001, b"lost", false).await;
    let reset = |frame: &Frame| matches!(frame, Frame::RstStream { stream: 4001, .. });
    client.until("a reset", reset).await;
    client.send(Frame::Ping(7)).await;
    client
        .until("a ping", |frame| *frame == Frame::Ping(7))
        .await;
    client.data(streams[1], b"all the same", true).await;
    let content = client.finish().await;
    assert_eq!(content[&streams[2]], b"all the same");
}

#[tokio::test]
async fn every_subprotocol_of_websockets_carries_a_command() {
    let node = Node::start().await;
    let pod = node.pod("websocket").await;
    let id = pod.idle("main").await;
    for (offer, base64, json) in [
        ("v5.channel.k8s.io", false, true),
        ("v4.channel.k8s.io", false, true),
        ("channel.k8s.io", false, false),
        ("", false, false),
        ("base64.channel.k8s.io", true, false),
        ("v4.base64.channel.k8s.io", true, true),
    ] {
        let script = "read line; echo \"$line\"; exit 4";
        let url = node.exec_url(&id, &["sh", "-c", script], false).await;
        let mut socket = websocket(&url, offer).await;
        let line = if base64 {
            Message::text("0aGVsbG8K")
        } else {
            Message::binary(b"\0hello\n".to_vec())
        };
        socket.send(line).await.expect("sent");
        let (mut stdout, mut error) = (Vec::new(), Vec::new());
        while let Some(message) = message(&mut socket).await {
            assert_eq!(message.is_text(), base64, "{offer}");
            let payload = message.into_data();
            let channel = payload[0] & 0x0f;
            let bytes = if base64 {
                use base64::Engine;
                base64::engine::general_purpose::STANDARD
                    .decode(&payload[1..])
                    .expect("base64")
            } else {
                payload[1..].to_vec()
            };
            match channel {
                1 => stdout.extend(bytes),
                3 => error.extend(bytes),
                other => assert!(bytes.is_empty(), "channel {other}"),
            }
        }
        assert_eq!(stdout, b"hello\n", "{offer}");
        let error = String::from_utf8(error).expect("text");
        assert!(error.contains("exit code: 4"), "{offer}: {error}");
        assert_eq!(error.starts_with('{'), json, "{offer}: {error}");
    }
}

/// The head of a client's frame (RFC 6455, section 5.2), masked with zeros.
fn masked(first: u8, length: u8) -> Vec<u8> {
    vec![first, 0x80 | length, 0, 0, 0, 0]
}

/// A WebSocket whose frames are the test's own: the rest of its connection.
async fn raw_websocket(url: &str, offer: &str) -> TcpStream {
    let (address, path) = place(url);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {offer}\r\n\r\n"
    );
    let (socket, head) = http(address, &request).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    socket
}

#[tokio::test]
async fn broken_messages_end_their_own_connection_and_its_command() {
    let node = Node::start().await;
    let pod = node.pod("messages").await;
    let id = pod.idle("main").await;
    let huge = [&[0x82, 0xff][..], &(1_u64 << 62).to_be_bytes(), &[0; 4]].concat();
    let long = [&[0x82, 0xff][..], &(5_u64 << 20).to_be_bytes(), &[0; 4]].concat();
    let (v5, base64) = ("v5.channel.k8s.io", "v4.base64.channel.k8s.io");
    let cases = [
        ("no mask", v5, vec![0x82, 1, 0]),
        ("an opcode that is none", v5, masked(0x83, 0)),
        ("bits that are reserved", v5, masked(0xf2, 0)),
        ("a length beyond all", v5, huge),
        ("a message that is too long", v5, long),
        ("a ping in pieces", v5, masked(0x09, 0)),
        (
            "a ping that is too long",
            v5,
            [vec![0x89, 0xfe, 0, 126], vec![0; 130]].concat(),
        ),
        ("a continuation of nothing", v5, masked(0x80, 0)),
        (
            "an end of no channel",
            v5,
            [masked(0x82, 1), vec![255]].concat(),
        ),
        (
            "text that is none",
            base64,
            [masked(0x81, 1), vec![0xff]].concat(),
        ),
        (
            "no base64",
            base64,
            [masked(0x81, 2), b"0?".to_vec()].concat(),
        ),
        (
            "no channel",
            base64,
            [masked(0x81, 2), b"\"A".to_vec()].concat(),
        ),
    ];
    for (what, offer, bytes) in cases {
        let url = node.exec_url(&id, &["sleep", "86407"], false).await;
        let mut socket = raw_websocket(&url, offer).await;
        socket.write_all(&bytes).await.expect("written");
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ended = in_time(what, socket.read_to_end(&mut rest)).await;
        drop(socket);
        eventually(&format!("{what}: the command is gone"), || async {
            let left = process::of_containers(&node.names, "86407");
            left.is_empty().then_some(())
        })
        .await;
    }
    let url = node.exec_url(&id, &["echo", "fine"], false).await;
    assert_eq!(run(&url, b"").await.stdout, b"fine\n");
}

/// Inside a tunnel, what is no message of bytes ends it, and so does what is no frame.
#[tokio::test]
async fn a_broken_tunnel_ends() {
    let node = Node::start().await;
    let pod = node.pod("tunnel").await;
    for bytes in [
        [masked(0x81, 1), b"a".to_vec()].concat(),
        [masked(0x82, 8), vec![0x80, 2, 0, 6, 0, 0, 0, 0]].concat(),
    ] {
        let message = v1::PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: vec![],
        };
        let mut client = v1::runtime_service_client::RuntimeServiceClient::new(node.cri.channel());
        let answer = client.port_forward(request(message)).await;
        let url = answer.expect("PortForward").into_inner().url;
        let mut socket = raw_websocket(&url, "SPDY/3.1+portforward.k8s.io").await;
        socket.write_all(&bytes).await.expect("written");
        let mut rest = Vec::new();
        let _ended = in_time("the tunnel ends", socket.read_to_end(&mut rest)).await;
    }
}

/// As many sessions as may be, all at once: whoever comes too many is told so and disturbs none,
/// and each of the others gets what is its own (2000 of them with `QUILT_SOAK=1`).
#[tokio::test(flavor = "multi_thread")]
async fn as_many_sessions_as_may_be_end_exactly_beside_those_that_are_refused() {
    let most = if is_soak() { 2000 } else { 40 };
    let mut node = Node::prepare(&format!("[streaming]\nmax_sessions = {most}\n"));
    node.restart().await;
    let pod = node.pod("crowd").await;
    let id = pod.idle("main").await;
    let types = ["error", "stdin", "stdout", "stderr"];
    let mut sessions = Vec::new();
    for _ in 0..most {
        let url = node.exec_url(&id, &["cat"], false).await;
        let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
        let streams = client.open_all(&types).await;
        sessions.push((client, streams));
    }
    let mut late = String::new();
    for _ in 0..most / 10 {
        late = node.exec_url(&id, &["echo", "late"], false).await;
        let (address, path) = place(&late);
        let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1";
        let text = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\n{upgrade}\r\n\r\n");
        let (_, head) = http(address, &text).await;
        assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    }
    for (number, (client, streams)) in sessions.iter_mut().enumerate() {
        let word = format!("session {number}");
        client.data(streams[1], word.as_bytes(), true).await;
    }
    for (number, (client, streams)) in sessions.into_iter().enumerate() {
        let content = client.finish().await;
        let word = format!("session {number}");
        assert_eq!(content[&streams[2]], word.as_bytes());
        let status = String::from_utf8_lossy(&content[&streams[0]]).into_owned();
        assert!(status.contains("Success"), "{number}: {status}");
    }
    assert_eq!(run(&late, b"").await.stdout, b"late\n");
}
