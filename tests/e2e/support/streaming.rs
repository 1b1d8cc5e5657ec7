//! Clients of sessions: crictl with an input and a terminal of its own, and a SPDY client that can
//! be made to misbehave. The latter puts frames together with the daemon's own code, whose bytes
//! crictl vouches for.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use quilt::proto::cri as v1;
use quilt::streaming::spdy::frame::{Decoder, Encoder, Frame};
use quilt::streaming::spdy::headers::Headers;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::client::request;
use super::wait::{BOUND, in_time_within, poll};
use super::{Node, in_time};

/// Longest life of a crictl that moves files: in the long form, some of 100 MB.
pub(crate) const TRANSFER_BOUND: Duration = Duration::from_secs(240);

impl Node {
    /// Runs crictl with `input`, apart from what else the test does.
    pub(crate) async fn crictl_with(&self, arguments: &[&str], input: Vec<u8>) -> Output {
        let mut command = tokio::process::Command::from(self.crictl_command(arguments));
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = child.spawn().expect("crictl starts");
        let mut stdin = child.stdin.take().expect("its input");
        let writer = tokio::spawn(async move {
            // One that has ended reads no more.
            let _ = stdin.write_all(&input).await;
        });
        let ended = child.wait_with_output();
        let output = in_time_within(TRANSFER_BOUND, "crictl ends", ended).await;
        writer.await.expect("the writer ends");
        output.expect("crictl has run")
    }

    /// Starts crictl on a terminal; the master side comes with it.
    pub(crate) fn crictl_on_terminal(&self, arguments: &[&str]) -> (Child, std::fs::File) {
        let size = nix::pty::Winsize {
            ws_row: 30,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = nix::pty::openpty(&size, None).expect("a terminal");
        let slave = || Stdio::from(pty.slave.try_clone().expect("a second handle"));
        let mut command = self.crictl_command(arguments);
        let child = command.stdin(slave()).stdout(slave()).stderr(slave());
        let child = child.spawn().expect("crictl starts");
        (child, pty.master.into())
    }

    /// The URL of a command's session.
    pub(crate) async fn exec_url(&self, id: &str, command: &[&str], tty: bool) -> String {
        let message = v1::ExecRequest {
            container_id: id.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let mut client = v1::runtime_service_client::RuntimeServiceClient::new(self.cri.channel());
        client
            .exec(request(message))
            .await
            .expect("Exec")
            .into_inner()
            .url
    }
}

/// Waits from a thread that may block until a child has ended.
pub(crate) fn ends(child: &mut Child) {
    let ended = poll(BOUND, || child.try_wait().expect("a child of this process"));
    if ended.is_none() {
        let _ended = child.kill();
        panic!("not within {BOUND:?}: the end of {}", child.id());
    }
}

/// A WebSocket on the URL of a session, with the subprotocol that is offered, if any is.
pub(crate) async fn websocket(url: &str, offer: &'static str) -> WebSocketStream<TcpStream> {
    let (address, _) = place(url);
    let socket = in_time("a connection", TcpStream::connect(address)).await;
    websocket_on(socket.expect("it listens"), url, offer).await
}

/// The same on a connection that is there.
pub(crate) async fn websocket_on<S>(socket: S, url: &str, offer: &'static str) -> WebSocketStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ask = url
        .replace("http:", "ws:")
        .into_client_request()
        .expect("a URL");
    if !offer.is_empty() {
        let value = HeaderValue::from_static(offer);
        ask.headers_mut().insert("Sec-WebSocket-Protocol", value);
    }
    let handshake = client_async(ask, socket);
    let answered = in_time("an answer", handshake).await;
    answered.unwrap_or_else(|e| panic!("{offer}: {e}")).0
}

/// The next message that is not the end; `None` when there is none any more.
pub(crate) async fn message<S>(socket: &mut WebSocketStream<S>) -> Option<Message>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match in_time("a message", socket.next()).await {
            Some(Ok(Message::Close(_))) => {}
            Some(Ok(message)) => return Some(message),
            Some(Err(_)) | None => return None,
        }
    }
}

/// Reads a terminal until `wanted` appears; what was read.
pub(crate) fn read_until(terminal: &mut std::fs::File, wanted: &str) -> String {
    let end = std::time::Instant::now() + BOUND;
    let mut text = Vec::new();
    loop {
        let shown = String::from_utf8_lossy(&text).into_owned();
        if shown.contains(wanted) {
            return shown;
        }
        let mut poll = [rustix::event::PollFd::new(
            terminal,
            rustix::event::PollFlags::IN,
        )];
        let left = end.saturating_duration_since(std::time::Instant::now());
        let left = rustix::event::Timespec::try_from(left).expect("a short time");
        let ready = rustix::event::poll(&mut poll, Some(&left)).expect("poll");
        assert!(ready > 0, "no {wanted:?} in {shown:?}");
        let mut buffer = [0; 4096];
        let length = terminal
            .read(&mut buffer)
            .unwrap_or_else(|e| panic!("{e} before {wanted:?} in {shown:?}"));
        text.extend_from_slice(&buffer[..length]);
    }
}

/// Where a URL of ours leads: address and path.
pub(crate) fn place(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("an absolute URL");
    let slash = rest.find('/').expect("a path");
    rest.split_at(slash)
}

/// Sends a request as it is and reads the answer's head.
pub(crate) async fn http(address: &str, request: &str) -> (TcpStream, String) {
    let connecting = TcpStream::connect(address);
    let mut socket = in_time("a connection", connecting)
        .await
        .expect("it listens");
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match in_time("an answer", socket.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    (socket, String::from_utf8(head).expect("text"))
}

/// A SPDY client.
pub(crate) struct Spdy {
    socket: TcpStream,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    next_stream: u32,
}

impl Spdy {
    /// Asks for `protocol` under the URL, which must be granted.
    pub(crate) async fn connect(url: &str, protocol: &str) -> Self {
        let (address, path) = place(url);
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let (socket, head) = http(address, &request).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_lowercase().contains(protocol), "{head}");
        Self {
            socket,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            input: BytesMut::new(),
            next_stream: 1,
        }
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.put(&frame, &mut bytes).expect("a frame");
        self.raw(&bytes).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("written");
    }

    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.send(Frame::Data { stream, bytes, fin }).await;
    }

    /// Opens a stream and does not wait for the answer.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let (fin, headers) = (false, Headers::new(headers.iter().map(own).collect()));
        self.send(Frame::SynStream {
            stream,
            fin,
            headers,
        })
        .await;
        stream
    }

    /// Opens streams of these types.
    pub(crate) async fn open_all(&mut self, types: &[&str]) -> Vec<u32> {
        let mut streams = Vec::new();
        for name in types {
            streams.push(self.open(&[("streamtype", name)]).await);
        }
        streams
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.input).expect("frames") {
                return Some(frame);
            }
            let read = self.socket.read_buf(&mut self.input);
            match in_time("a frame", read).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// Reads until `wanted` comes.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await;
            let frame = frame.unwrap_or_else(|| panic!("the end before {what}"));
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// Reads to the goodbye, and closes: what came on each stream.
    pub(crate) async fn finish(mut self) -> BTreeMap<u32, Vec<u8>> {
        let mut content: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        while let Some(frame) = self.next().await {
            match frame {
                Frame::Data { stream, bytes, .. } => {
                    content.entry(stream).or_default().extend_from_slice(&bytes);
                }
                Frame::GoAway { .. } => break,
                _ => {}
            }
        }
        content
    }
}

/// What came of a command's session.
pub(crate) struct Ran {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: Value,
}

/// Runs a command with `input` as kubelet's client does.
pub(crate) async fn run(url: &str, input: &[u8]) -> Ran {
    let mut client = Spdy::connect(url, "v4.channel.k8s.io").await;
    let types = ["error", "stdin", "stdout", "stderr"];
    let streams = client.open_all(&types).await;
    client.data(streams[1], input, true).await;
    let mut content = client.finish().await;
    let status = content.remove(&streams[0]).expect("a status");
    Ran {
        stdout: content.remove(&streams[2]).unwrap_or_default(),
        stderr: content.remove(&streams[3]).unwrap_or_default(),
        status: serde_json::from_slice(&status).expect("a status in JSON"),
    }
}
