//! Port-forward.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::SinkExt;
use futures_util::future::join_all;
use nix::sys::socket::{setsockopt, sockopt};
use quilt::proto::cri as v1;
use quilt::streaming::spdy::frame::Frame;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::{TRANSPORTS, noise};
use crate::support::client::request;
use crate::support::host::Host;
use crate::support::streaming::{Spdy, TRANSFER_BOUND, message, websocket};
use crate::support::wait::in_time_within;
use crate::support::{Node, Pod, cri::*, in_time, is_soak};

/// A listener of the test's own in a pod's network.
pub(super) fn listen(node: &Node, pod: &Pod, ip: IpAddr) -> TcpListener {
    let pin = node
        .names
        .state()
        .join(format!("sandboxes/{}/ns/net", pod.id));
    let listener = Host::at(&pin).run(|| StdListener::bind(SocketAddr::new(ip, 0)));
    let listener = listener.expect("a listener");
    listener.set_nonblocking(true).expect("non-blocking");
    TcpListener::from_std(listener).expect("registered")
}

/// Answers on each connection after the client's end: with all that came, backwards.
pub(super) fn echo_backwards(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.expect("received");
                bytes.reverse();
                stream.write_all(&bytes).await.expect("sent");
            });
        }
    });
}

/// crictl, or another client, forwarding one port.
pub(super) struct Forward {
    child: tokio::process::Child,
    port: u16,
}

impl Forward {
    pub(super) async fn by_crictl(node: &Node, pod: &Pod, transport: &str, port: u16) -> Self {
        let mapping = format!(":{port}");
        let arguments = ["port-forward", "-r", transport, &pod.id, &mapping];
        Self::start(node.crictl_command(&arguments).into()).await
    }

    pub(super) async fn start(mut command: tokio::process::Command) -> Self {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        let mut child = child.spawn().expect("the client starts");
        let stdout = child.stdout.take().expect("its output");
        let mut lines = BufReader::new(stdout).lines();
        // "Forwarding from 127.0.0.1:PORT -> REMOTE"
        let local = loop {
            let line = in_time("the client listens", lines.next_line()).await;
            let line = line.expect("text").expect("a line");
            if let Some(rest) = line.split("127.0.0.1:").nth(1) {
                let port = rest.split(' ').next().expect("a port");
                break port.parse().expect("a number");
            }
        };
        // Read on, so that it never waits for us.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, port: local }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        let address = (Ipv4Addr::LOCALHOST, self.port);
        TcpStream::connect(address)
            .await
            .expect("the client listens")
    }

    pub(super) async fn end(mut self) {
        self.child.kill().await.expect("the client is killed");
    }
}

/// Sends `bytes` and their end; returns what comes back until the end.
pub(super) async fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = stream.split();
    let send = async {
        to.write_all(bytes).await.expect("sent");
        to.shutdown().await.expect("half closed");
    };
    let mut back = Vec::new();
    let receive = async { from.read_to_end(&mut back).await.expect("received") };
    let both = async { tokio::join!(send, receive) };
    in_time_within(TRANSFER_BOUND, "both directions end", both).await;
    back
}

pub(super) async fn forward_url(node: &Node, pod: &Pod) -> String {
    forward_ports_url(node, pod, &[]).await
}

pub(super) async fn forward_ports_url(node: &Node, pod: &Pod, ports: &[u16]) -> String {
    let message = v1::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: ports.iter().map(|port| i32::from(*port)).collect(),
    };
    let mut client = v1::runtime_service_client::RuntimeServiceClient::new(node.cri.channel());
    let answer = client.port_forward(request(message)).await;
    answer.expect("PortForward").into_inner().url
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_pass_whole_and_half_closed_over_both_transports() {
    let node = Node::start().await;
    let pod = node.pod("forward").await;
    let listener = listen(&node, &pod, Ipv4Addr::LOCALHOST.into());
    let port = listener.local_addr().expect("an address").port();
    echo_backwards(listener);
    let bytes = noise(if is_soak() { 100 << 20 } else { 4 << 20 });
    for transport in TRANSPORTS {
        let forward = Forward::by_crictl(&node, &pod, transport, port).await;
        let mut back = exchange(forward.connect().await, &bytes).await;
        back.reverse();
        assert!(back == bytes, "{transport}: other bytes");
        join_all((0..20_u8).map(async |n| {
            let back = exchange(forward.connect().await, &[n, n + 1]).await;
            assert_eq!(back, [n + 1, n], "{transport}");
        }))
        .await;
        forward.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_listens_on_ipv6_alone_is_found() {
    let node = Node::start().await;
    let pod = node.pod("six").await;
    let listener = listen(&node, &pod, Ipv6Addr::LOCALHOST.into());
    let port = listener.local_addr().expect("an address").port();
    let forward = Forward::by_crictl(&node, &pod, "websocket", port).await;
    // The pod speaks first, and ends first; the client may still speak.
    for _ in 0..10 {
        let mut client = forward.connect().await;
        let (mut inside, _) = in_time("a connection", listener.accept())
            .await
            .expect("accepted");
        inside.write_all(b"from the pod").await.expect("sent");
        inside.shutdown().await.expect("half closed");
        let mut text = String::new();
        let received = in_time("the pod's end", client.read_to_string(&mut text)).await;
        received.expect("received");
        assert_eq!(text, "from the pod");
    }
    forward.end().await;
}

#[tokio::test]
async fn ports_named_over_a_websocket_end_with_the_pods_side() {
    let node = Node::start().await;
    let pod = node.pod("named").await;
    let listener = listen(&node, &pod, Ipv4Addr::LOCALHOST.into());
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.expect("received");
            bytes.reverse();
            stream.write_all(&bytes).await.expect("sent");
        }
    });
    // Six connections to one port: more channels than there are digits.
    let ports = [port; 6];
    for (offer, base64) in [
        ("v4.channel.k8s.io", false),
        ("v4.base64.channel.k8s.io", true),
    ] {
        let url = forward_ports_url(&node, &pod, &ports).await;
        let mut socket = websocket(&url, offer).await;
        for number in [0, 2, 4, 6, 8, 10] {
            let sent = match base64 {
                false => Message::binary([&[number][..], b"hello"].concat()),
                true => Message::text(format!("{}aGVsbG8=", char::from(b'0' + number))),
            };
            in_time("it is sent", socket.send(sent))
                .await
                .expect("sent");
        }
        let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        while let Some(message) = message(&mut socket).await {
            let payload = message.into_data();
            let (number, bytes) = match base64 {
                false => (payload[0], payload[1..].to_vec()),
                true => (
                    payload[0] - b'0',
                    STANDARD.decode(&payload[1..]).expect("base64"),
                ),
            };
            channels.entry(number).or_default().extend(bytes);
        }
        // Each begins with its port; then what the pod said, and the end of all is the session's.
        let begin = port.to_le_bytes();
        for number in 0..12 {
            let said: &[u8] = if number % 2 == 0 { b"olleh" } else { b"" };
            let wanted = [&begin[..], said].concat();
            assert_eq!(
                channels.remove(&number),
                Some(wanted),
                "{offer}: channel {number}"
            );
        }
    }
    // More than there are characters for.
    let url = forward_ports_url(&node, &pod, &[port; 64]).await;
    let mut socket = websocket(&url, "base64.channel.k8s.io").await;
    assert_eq!(message(&mut socket).await, None);
}

#[tokio::test]
async fn a_closed_port_and_a_udp_port_are_told_over_the_error_stream() {
    let node = Node::start().await;
    let mut config = node.pod_config("closed");
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Udp as i32,
        container_port: 53,
        ..Default::default()
    }];
    let pod = node.pod_from(config).await;
    let url = forward_url(&node, &pod).await;
    let mut client = Spdy::connect(&url, "portforward.k8s.io").await;
    for (id, port, wanted) in [("0", "9", "refused"), ("1", "53", "only TCP")] {
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", id)];
        let error = client.open(&headers("error")).await;
        let data = client.open(&headers("data")).await;
        let (mut told, mut ends) = (Vec::new(), 0);
        while ends < 2 {
            let frame = client.next().await.expect("more");
            if let Frame::Data { stream, bytes, fin } = frame {
                assert!(stream == error || stream == data && bytes.is_empty());
                told.extend_from_slice(&bytes);
                ends += u32::from(fin);
            }
        }
        let text = String::from_utf8_lossy(&told);
        assert!(text.contains(wanted) && text.contains(port), "{text}");
    }
}

#[tokio::test]
async fn streams_that_make_no_connection_are_reset_and_others_go_on() {
    let node = Node::start().await;
    let pod = node.pod("odd").await;
    let listener = listen(&node, &pod, Ipv4Addr::LOCALHOST.into());
    let port = listener
        .local_addr()
        .expect("an address")
        .port()
        .to_string();
    let url = forward_url(&node, &pod).await;
    let mut client = Spdy::connect(&url, "portforward.k8s.io").await;
    let odd: [&[(&str, &str)]; 4] = [
        &[("streamtype", "stdin"), ("port", &port)],
        &[("streamtype", "data")],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "65536")],
    ];
    for headers in odd {
        let opened = client.open(headers).await;
        let reset =
            |frame: &Frame| matches!(frame, Frame::RstStream { stream, .. } if *stream == opened);
        client.until("a reset", reset).await;
    }
    // Without a request id the data stream follows its error stream.
    let plain = |kind| [("streamtype", kind), ("port", port.as_str())];
    client.open(&plain("error")).await;
    let data = client.open(&plain("data")).await;
    client.data(data, b"hello", false).await;
    let accepted = in_time("a connection", listener.accept()).await;
    let (mut inside, _) = accepted.expect("accepted");
    let mut buffer = [0; 5];
    let received = in_time("what was sent", inside.read_exact(&mut buffer)).await;
    received.expect("received");
    assert_eq!(&buffer, b"hello");
    // The client drops the connection: so does the pod's side.
    let (stream, status) = (data, 5);
    client.send(Frame::RstStream { stream, status }).await;
    let end = in_time("the end", inside.read(&mut buffer)).await;
    assert_eq!(end.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_pod_that_is_stopped_has_no_ports() {
    let node = Node::start().await;
    let pod = node.pod("stopped").await;
    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    let message = v1::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![],
    };
    let mut client = v1::runtime_service_client::RuntimeServiceClient::new(node.cri.channel());
    let error = client.port_forward(request(message)).await;
    let error = error.expect_err("refused");
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error}");
}

/// A client that keeps no windows, with two connections to a listener.
struct Two {
    client: Spdy,
    data: [u32; 2],
    inside: [TcpStream; 2],
}

impl Two {
    async fn connect(node: &Node, pod: &Pod, listener: &TcpListener) -> Self {
        let port = listener.local_addr().expect("an address").port();
        let url = forward_url(node, pod).await;
        let mut client = Spdy::connect(&url, "portforward.k8s.io").await;
        let mut connect = async |id: &str| {
            let port = port.to_string();
            let headers = |kind| {
                [
                    ("streamtype", kind),
                    ("port", port.as_str()),
                    ("requestid", id),
                ]
            };
            client.open(&headers("error")).await;
            let data = client.open(&headers("data")).await;
            let accepted = in_time("a connection", listener.accept()).await;
            (data, accepted.expect("accepted").0)
        };
        let (first, second) = (connect("0").await, connect("1").await);
        Self {
            client,
            data: [first.0, second.0],
            inside: [first.1, second.1],
        }
    }

    /// Sends so much on the first connection.
    async fn fill(&mut self, bytes: usize) {
        let piece = vec![0; 32 * 1024];
        for _ in 0..bytes / piece.len() {
            self.client.data(self.data[0], &piece, false).await;
        }
    }

    /// The second connection's word and answer. Returns whether the first was reset meanwhile.
    async fn speaks(&mut self, word: &[u8; 6]) -> bool {
        self.client.data(self.data[1], word, false).await;
        let mut heard = [0; 6];
        let other = &mut self.inside[1];
        let hearing = in_time("the other is heard", other.read_exact(&mut heard));
        hearing.await.expect("six bytes");
        assert_eq!(&heard, word);
        other.write_all(word).await.expect("sent");
        let mut reset = false;
        loop {
            match self.client.next().await.expect("more") {
                Frame::Data { stream, bytes, .. } if stream == self.data[1] => {
                    assert_eq!(bytes, word[..]);
                    return reset;
                }
                Frame::RstStream { stream, .. } => reset |= stream == self.data[0],
                _ => {}
            }
        }
    }
}

/// What a connection to this listener takes that nobody reads.
async fn taken_unread(node: &Node, pod: &Pod, listener: &TcpListener) -> usize {
    let pin = node
        .names
        .state()
        .join(format!("sandboxes/{}/ns/net", pod.id));
    let at = listener.local_addr().expect("an address");
    let stream = Host::at(&pin).run(|| std::net::TcpStream::connect(at));
    let stream = stream.expect("a connection");
    stream.set_nonblocking(true).expect("non-blocking");
    let stream = TcpStream::from_std(stream).expect("registered");
    let accepted = in_time("a connection", listener.accept()).await;
    let (piece, mut taken) = (vec![0; 32 * 1024], 0);
    let silence = std::time::Duration::from_millis(300);
    while tokio::time::timeout(silence, stream.writable())
        .await
        .is_ok()
    {
        taken += stream.try_write(&piece).unwrap_or(0);
    }
    drop(accepted);
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_not_read_holds_up_no_other() {
    let node = Node::start().await;
    let pod = node.pod("unread").await;
    let listener = listen(&node, &pod, Ipv4Addr::LOCALHOST.into());
    setsockopt(&listener, sockopt::RcvBuf, &(64 * 1024)).expect("a socket");
    let sockets = taken_unread(&node, &pod, &listener).await;
    let mut two = Two::connect(&node, &pod, &listener).await;
    // Half a MiB more than its sockets take waits in the daemon, beside the other.
    let filling = two.fill(sockets + 576 * 1024);
    in_time("it is taken", filling).await;
    assert!(!two.speaks(b"beside").await, "there is still room");
    // Without an end it would hold up the other: it is given up.
    let filling = two.fill(8 << 20);
    in_time_within(TRANSFER_BOUND, "it is taken or thrown away", filling).await;
    assert!(two.speaks(b"beyond").await, "the first is given up");
    drop(two);
}
