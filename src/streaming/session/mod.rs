//! One session, from the end of its handshake to the end of its connection.

mod attach;
mod channels;
mod dial;
mod exec;
mod port_forward;
mod pump;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use self::channels::Channels;
use super::channel::{Activity, turned};
use super::handshake::{Kind, Transport};
use super::hangup::Hangup;
use super::status::Ending;
use crate::id::ContainerId;
use crate::metrics::Metrics;
use crate::shim::client::ShimClient;

/// How long a command has to end by itself once nobody listens any more.
const GRACE: Duration = Duration::from_secs(5);
/// The same when the daemon ends.
const GRACE_AT_END: Duration = Duration::from_secs(1);
/// How long a client has to take the last words of a session that is ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a client may ask for.
#[derive(Debug)]
pub enum Ask {
    /// A command in a container.
    Exec(ExecAsk),
    /// The streams of a container's own process.
    Attach(AttachAsk),
    /// Connections to ports of a pod.
    PortForward(PortForwardAsk),
}

/// A command in a container.
#[derive(Debug)]
pub struct ExecAsk {
    /// It runs.
    pub container: ContainerId,
    /// Path and arguments, not empty.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether the client writes its input.
    pub stdin: bool,
    /// Whether the client reads its output.
    pub stdout: bool,
    /// Whether the client reads its errors; not with a terminal.
    pub stderr: bool,
}

/// The streams of a container's own process.
#[derive(Debug)]
pub struct AttachAsk {
    /// It runs.
    pub container: ContainerId,
    /// Whether the client has a window, whose size it sends.
    pub tty: bool,
    /// Whether the container has a terminal.
    pub has_tty: bool,
    /// Whether the client writes.
    pub stdin: bool,
    /// Whether the container reads what a client writes.
    pub has_stdin: bool,
    /// Whether the client reads its output.
    pub stdout: bool,
    /// Whether the client reads its errors.
    pub stderr: bool,
}

/// Connections to ports of a pod.
#[derive(Debug)]
pub struct PortForwardAsk {
    /// Where they are.
    pub network: PodNetwork,
    /// Ports that the pod declares for UDP and not for TCP.
    pub udp_ports: Vec<u16>,
    /// Ports that were named; a client may ask for others as well.
    pub ports: Vec<u16>,
}

/// The network of a pod.
#[derive(Debug, Clone)]
pub enum PodNetwork {
    /// A namespace, by the file that pins it.
    Own(PathBuf),
    /// The node's.
    Node,
}

impl Ask {
    /// The first part of its URL's path.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Exec(_) | Self::Attach(_) => Kind::Process,
            Self::PortForward(_) => Kind::PortForward,
        }
    }
}

/// What sessions know of the node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The shim that is connected now.
    pub(super) shim: watch::Receiver<Option<ShimClient>>,
    /// Where the files of sandboxes and containers are.
    pub(super) state_dir: PathBuf,
    /// Turns true when the daemon ends.
    pub(super) stopped: watch::Receiver<bool>,
    /// How long nothing may move.
    pub(super) idle_timeout: Duration,
    /// Where sessions are counted.
    pub(super) metrics: Arc<Metrics>,
}

impl Node {
    fn shim(&self) -> Result<ShimClient, String> {
        let shim = self.shim.borrow().clone();
        shim.ok_or_else(|| "the shim is not connected; it is being started, try again".into())
    }
}

/// A session that is about to begin.
pub(super) struct Session {
    node: Node,
    ask: Ask,
    transport: Transport,
}

/// Why a session ends before what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The client has gone.
    Gone,
    /// Nothing has moved for long.
    Idle,
    /// The daemon ends.
    Stopped,
}

impl Cut {
    fn text(self) -> &'static str {
        match self {
            Self::Gone => "the client has gone",
            Self::Idle => "nothing has moved for too long",
            Self::Stopped => "the node's runtime is being restarted; try again",
        }
    }

    fn grace(self) -> Duration {
        match self {
            Self::Gone | Self::Idle => GRACE,
            Self::Stopped => GRACE_AT_END,
        }
    }
}

impl Session {
    pub(super) fn new(node: Node, ask: Ask, transport: Transport) -> Self {
        Self {
            node,
            ask,
            transport,
        }
    }

    /// Runs it to its end.
    pub(super) async fn run<I>(self, io: I, hangup: Hangup)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self {
            node,
            ask,
            transport,
        } = self;
        let kind = ask.path();
        let count = |direction| node.metrics.session_bytes.get([kind, direction]);
        let activity = Activity::counted_by(count("received"), count("sent"));
        match ask {
            Ask::Exec(ask) => {
                let wanted = channels::Wanted::of_exec(&ask);
                let open = Channels::open(io, hangup, transport, &wanted, activity.clone());
                match open.await {
                    Ok(channels) => exec::run(&node, ask, channels, &activity).await,
                    Err(error) => tracing::debug!(error, "a session did not begin"),
                }
            }
            Ask::PortForward(ask) => {
                port_forward::run(&node, ask, transport, io, hangup, &activity).await;
            }
            Ask::Attach(ask) => {
                let wanted = channels::Wanted::of_attach(&ask);
                let open = Channels::open(io, hangup, transport, &wanted, activity.clone());
                match open.await {
                    Ok(channels) => attach::run(&node, ask, channels, &activity).await,
                    Err(error) => tracing::debug!(error, "a session did not begin"),
                }
            }
        }
    }
}

impl Node {
    /// Resolves when a session has to end although what it is about goes on.
    async fn cut(&self, line: &super::channel::Line, activity: &Activity) -> Cut {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            () = line.gone() => Cut::Gone,
            () = turned(&mut stopped) => Cut::Stopped,
            () = activity.ends(self.idle_timeout) => Cut::Idle,
        }
    }
}

/// Says how it ended over the error channel, and goodbye. The client is waited for as long as it
/// reads, or is not idle for too long.
async fn conclude(node: &Node, channels: Channels, ending: &Ending, activity: &Activity) {
    let line = channels.line();
    tokio::select! {
        () = farewell(channels, ending) => {}
        _ = node.cut(&line, activity) => {}
    }
}

/// The same for a session that is ended before its time.
async fn cut_off(channels: Channels, cut: Cut) {
    let ending = Ending::Failed(cut.text().into());
    let _ = tokio::time::timeout(LAST_WORDS, farewell(channels, &ending)).await;
}

async fn farewell(mut channels: Channels, ending: &Ending) {
    channels.end(ending).await;
    channels.close().await;
}
