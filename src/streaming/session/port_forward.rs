//! Port-forward: connections to ports of a pod, each half-closed as the client and the pod do it.
//!
//! Over SPDY each connection is a pair of streams with one request id, `error` and `data`; over a
//! WebSocket each named port is one connection on a pair of channels. A connection that cannot be
//! made says why on its error stream; one that the pod breaks just ends, for clients give up all
//! their connections after an error.
//!
//! A connection that the pod does not read holds up no other: what the client sends for it waits
//! beside them, up to a bound. Beyond that nothing more is read from the client, who has no windows
//! by which it could be told to hold back one alone; so the connection that takes nothing then is
//! given up, unless it is the only one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinSet;

use super::{Node, PodNetwork, PortForwardAsk, dial};
use crate::streaming::channel::{Activity, Gone, Inlet, Outlet, turned};
use crate::streaming::handshake::Transport;
use crate::streaming::hangup::Hangup;
use crate::streaming::spdy::frame::Reset;
use crate::streaming::spdy::{self, NewStream};
use crate::streaming::websocket::{self, channels::Subprotocol};

/// Connections of one session at once.
const CONNECTIONS_MAX: usize = 256;
/// Moved at once.
const PIECE_BYTES: usize = 32 * 1024;
/// What may wait for pods that do not read, of all connections of a session, beside what each may
/// have waiting for itself.
const WAITING_BYTES: usize = 1024 * 1024;
/// How long a connection may hold up all others of its session.
const HOLD_UP: Duration = Duration::from_secs(10);

/// What a client may have of a connection that carries streams.
const BOUNDS: spdy::Bounds = spdy::Bounds {
    streams: 2 * CONNECTIONS_MAX,
    waiting: WAITING_BYTES,
};

/// Serves connections until the client is gone.
pub(super) async fn run<I>(
    node: &Node,
    ask: PortForwardAsk,
    transport: Transport,
    io: I,
    hangup: Hangup,
    activity: &Activity,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let hangup = hangup.wait();
    match transport {
        Transport::Spdy(_) => {
            let connection = spdy::serve(io, BOUNDS, activity.clone(), hangup);
            streams_of(node, ask, connection, activity).await;
        }
        Transport::Tunnel => {
            let io = websocket::tunnel(io).await;
            let connection = spdy::serve(io, BOUNDS, activity.clone(), hangup);
            streams_of(node, ask, connection, activity).await;
        }
        Transport::WebSocket(protocol) => {
            named_ports(node, ask, protocol, io, hangup, activity).await;
        }
    }
}

async fn streams_of(
    node: &Node,
    ask: PortForwardAsk,
    mut connection: spdy::Connection,
    activity: &Activity,
) {
    let pod = Arc::new(Pod::new(ask.network, ask.udp_ports));
    let line = connection.line();
    let mut forwards = JoinSet::new();
    let mut halves: HashMap<String, Half> = HashMap::new();
    let cut = node.cut(&line, activity);
    tokio::pin!(cut);
    loop {
        let stream = tokio::select! {
            stream = connection.next() => stream,
            Some(_) = forwards.join_next() => continue,
            // Its connections end with it, whatever they are at.
            _ = &mut cut => return,
        };
        let Some(stream) = stream else { break };
        // Clients open the second stream of a pair when the first has been answered.
        if stream.accept().await.is_err() {
            break;
        }
        let id = request_id(&stream);
        match pair(&mut halves, id, stream) {
            Ok(None) => {}
            Ok(Some((pair, port))) => {
                let pod = Arc::clone(&pod);
                forwards.spawn(async move { forward_pair(&pod, port, pair).await });
            }
            Err(stream) => stream.refuse(Reset::Protocol).await,
        }
    }
}

/// Where connections go.
struct Pod {
    network: PodNetwork,
    udp_ports: Vec<u16>,
    /// Connections of the session.
    connections: AtomicUsize,
}

/// Counts a connection as long as it is there.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pod {
    fn new(network: PodNetwork, udp_ports: Vec<u16>) -> Self {
        Self {
            network,
            udp_ports,
            connections: AtomicUsize::new(0),
        }
    }

    fn counted(&self) -> Counted<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(&self.connections)
    }

    /// Returns when a connection has held up others for too long.
    async fn is_held_up(&self, by: &Inlet) {
        loop {
            tokio::time::sleep(HOLD_UP).await;
            if by.holds_up_others() && self.connections.load(Ordering::Relaxed) > 1 {
                return;
            }
        }
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        if self.udp_ports.contains(&port) {
            return Err(format!(
                "port {port} of the pod is declared as UDP: only TCP can be forwarded"
            ));
        }
        dial::connect(&self.network, port).await
    }
}

/// The first stream of a pair, and the port that it names.
#[derive(Debug)]
struct Half {
    stream: NewStream,
    is_data: bool,
    port: u16,
}

/// The two streams of a connection.
struct Pair {
    error: NewStream,
    data: NewStream,
}

/// What makes a pair of two streams. Clients that name no request open the error stream first, and
/// the data stream right after it.
fn request_id(stream: &NewStream) -> String {
    if let Some(id) = stream.headers.get("requestid") {
        return format!("named {id}");
    }
    let is_data = stream.headers.get("streamtype") == Some("data");
    let number = stream.number();
    format!(
        "stream {}",
        if is_data {
            number.saturating_sub(2)
        } else {
            number
        }
    )
}

/// Puts a stream to its other half; `Err`: it is none.
fn pair(
    halves: &mut HashMap<String, Half>,
    id: String,
    stream: NewStream,
) -> Result<Option<(Pair, u16)>, NewStream> {
    let is_data = match stream.headers.get("streamtype") {
        Some("data") => true,
        Some("error") => false,
        _ => return Err(stream),
    };
    let port = stream
        .headers
        .get("port")
        .and_then(|port| port.parse().ok());
    let Some(port) = port.filter(|port| *port != 0) else {
        return Err(stream);
    };
    match halves.remove(&id) {
        Some(half) if half.is_data != is_data && half.port == port => {
            let (error, data) = if is_data {
                (half.stream, stream)
            } else {
                (stream, half.stream)
            };
            Ok(Some((Pair { error, data }, port)))
        }
        Some(half) => {
            halves.insert(id, half);
            Err(stream)
        }
        None => {
            // What is left counts among the session's streams, which are bounded.
            halves.retain(|_, half| !half.stream.is_reset());
            let half = Half {
                stream,
                is_data,
                port,
            };
            halves.insert(id, half);
            Ok(None)
        }
    }
}

async fn forward_pair(pod: &Pod, port: u16, pair: Pair) -> Result<(), Gone> {
    let Pair { error, data } = pair;
    let (_, error) = error.into_parts();
    let (inlet, data) = data.into_parts();
    let mut resets = data.resets();
    let (mut error, data) = (Outlet::Spdy(error), Outlet::Spdy(data));
    let done = tokio::select! {
        done = forward(pod, port, inlet, data, &mut error) => done,
        () = turned(&mut resets) => Err(Gone),
    };
    // A client that has had the pod's end resets the data, and then waits for this one.
    error.finish().await?;
    done
}

/// One connection, from its making to the end of both directions.
async fn forward(
    pod: &Pod,
    port: u16,
    inlet: Inlet,
    mut data: Outlet,
    error: &mut Outlet,
) -> Result<(), Gone> {
    let stream = match pod.connect(port).await {
        Ok(stream) => stream,
        Err(why) => {
            error.write(why.as_bytes()).await?;
            error.finish().await?;
            return data.finish().await;
        }
    };
    let _counted = pod.counted();
    let _ = stream.set_nodelay(true);
    let half_closes = matches!(data, Outlet::Spdy(_));
    let (mut from, to) = stream.into_split();
    let inwards = inwards(pod, inlet, to);
    let outwards = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            data.write(&buffer[..length]).await?;
        }
        Ok(data.finish().await?)
    };
    let moved = if half_closes {
        tokio::try_join!(inwards, outwards).map(drop)
    } else {
        // Only its client can end one direction alone: the pod's end is that of the connection.
        tokio::select! {
            sent = outwards => sent,
            Err(ended) = inwards => Err(ended),
        }
    };
    match moved {
        Ok(()) => Ok(()),
        Err(Ended::Gone) => Err(Gone),
        Err(Ended::HeldUpOthers) => {
            tracing::debug!(port, "a connection that its pod does not read is given up");
            data.reset().await;
            Ok(())
        }
    }
}

/// Why a connection ended before both its directions had.
enum Ended {
    Gone,
    HeldUpOthers,
}

impl From<Gone> for Ended {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Moves what the client sends into the pod, until the end of either.
async fn inwards(pod: &Pod, mut inlet: Inlet, mut to: OwnedWriteHalf) -> Result<(), Ended> {
    let mut buffer = vec![0; PIECE_BYTES];
    while let length @ 1.. = inlet.read(&mut buffer).await {
        let written = tokio::select! {
            written = to.write_all(&buffer[..length]) => written,
            () = pod.is_held_up(&inlet) => return Err(Ended::HeldUpOthers),
        };
        if written.is_err() {
            return Ok(());
        }
    }
    // The pod reads the end, and may go on writing.
    let _ = to.shutdown().await;
    Ok(())
}

async fn named_ports<I, H>(
    node: &Node,
    ask: PortForwardAsk,
    protocol: Subprotocol,
    io: I,
    hangup: H,
    activity: &Activity,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Future<Output = ()> + Send + 'static,
{
    if 2 * ask.ports.len() > protocol.channels() {
        tracing::debug!(
            ports = ask.ports.len(),
            "more ports than the subprotocol has channels"
        );
        return;
    }
    let numbers = || (0_u8..=u8::MAX).step_by(2);
    let read: Vec<u8> = numbers().take(ask.ports.len()).collect();
    let serving = websocket::serve(
        io,
        protocol,
        (&read, WAITING_BYTES),
        activity.clone(),
        hangup,
    );
    let mut connection = serving.await;
    let pod = Arc::new(Pod::new(ask.network, ask.udp_ports));
    let mut forwards = JoinSet::new();
    for (port, number) in ask.ports.into_iter().zip(numbers()) {
        let Some(inlet) = connection.inlet(number) else {
            continue;
        };
        let mut data = Outlet::WebSocket(connection.writer(number));
        let mut error = Outlet::WebSocket(connection.writer(number + 1));
        let pod = Arc::clone(&pod);
        forwards.spawn(async move {
            // Each channel begins with its port.
            data.write(&port.to_le_bytes()).await?;
            error.write(&port.to_le_bytes()).await?;
            forward(&pod, port, inlet, data, &mut error).await
        });
    }
    let line = connection.line();
    let all = async { while forwards.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        _ = node.cut(&line, activity) => return,
    }
    tokio::select! {
        () = connection.close() => {}
        _ = node.cut(&line, activity) => {}
    }
}
