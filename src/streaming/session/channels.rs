//! The channels of exec and attach, over whichever transport.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{AttachAsk, ExecAsk};
use crate::streaming::channel::{Activity, Inlet, Line, Outlet};
use crate::streaming::handshake::Transport;
use crate::streaming::hangup::Hangup;
use crate::streaming::spdy::frame::Reset;
use crate::streaming::status::Ending;
use crate::streaming::{spdy, websocket};

/// How long a SPDY client may take to open its streams, as kubelet has it.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);

/// Numbers of channels in WebSocket messages.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Which channels a session has, beside the one for errors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    resize: bool,
}

impl Wanted {
    pub(super) fn of_exec(ask: &ExecAsk) -> Self {
        Self {
            stdin: ask.stdin,
            stdout: ask.stdout,
            stderr: ask.stderr && !ask.tty,
            resize: ask.tty,
        }
    }

    pub(super) fn of_attach(ask: &AttachAsk) -> Self {
        Self {
            stdin: ask.stdin,
            stdout: ask.stdout,
            stderr: ask.stderr && !ask.tty,
            resize: ask.tty,
        }
    }
}

/// The channels of a session. Inputs and outputs are taken out by whoever pumps them.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) stdin: Option<Inlet>,
    pub(super) stdout: Option<Outlet>,
    pub(super) stderr: Option<Outlet>,
    pub(super) resize: Option<Inlet>,
    error: Outlet,
    /// Streams on which nothing goes to the client. It takes their end for that of the session, and
    /// writes no more.
    silent: Vec<spdy::StreamWriter>,
    json_status: bool,
    connection: Connection,
}

#[derive(Debug)]
enum Connection {
    Spdy(spdy::Connection),
    WebSocket(websocket::Connection),
}

impl Channels {
    /// Opens them: a SPDY client opens streams itself, within half a minute; a WebSocket client has
    /// them at once.
    pub(super) async fn open<I>(
        io: I,
        hangup: Hangup,
        transport: Transport,
        wanted: &Wanted,
        activity: Activity,
    ) -> Result<Self, String>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match transport {
            Transport::WebSocket(protocol) => {
                let read = match (wanted.stdin, wanted.resize) {
                    (true, true) => &[STDIN, RESIZE][..],
                    (true, false) => &[STDIN],
                    (false, true) => &[RESIZE],
                    (false, false) => &[],
                };
                let serving = websocket::serve(io, protocol, (read, 0), activity, hangup.wait());
                let mut connection = serving.await;
                let outlet = |wanted: bool, number| {
                    wanted.then(|| Outlet::WebSocket(connection.writer(number)))
                };
                let (stdout, stderr) =
                    (outlet(wanted.stdout, STDOUT), outlet(wanted.stderr, STDERR));
                let error = Outlet::WebSocket(connection.writer(ERROR));
                let (stdin, resize) = (connection.inlet(STDIN), connection.inlet(RESIZE));
                let connection = Connection::WebSocket(connection);
                let mut channels = Self {
                    stdin,
                    stdout,
                    stderr,
                    resize,
                    error,
                    silent: Vec::new(),
                    json_status: protocol.has_json_status(),
                    connection,
                };
                channels.greet().await;
                Ok(channels)
            }
            Transport::Spdy(version) => {
                let expected = Expected::new(wanted, version);
                let count = expected.count();
                let bounds = spdy::Bounds {
                    streams: count,
                    waiting: 0,
                };
                let connection = spdy::serve(io, bounds, activity, hangup.wait());
                let accepting = accept(connection, expected, version);
                let opened = tokio::time::timeout(OPEN_PATIENCE, accepting).await;
                opened.map_err(|_| "the client did not open its streams in time".to_owned())?
            }
            Transport::Tunnel => Err("a tunnel carries no streams of a process".into()),
        }
    }

    /// An empty message tells the client that the session is there, as Kubernetes' servers do.
    async fn greet(&mut self) {
        let first = self.stdout.as_mut().or(self.stderr.as_mut());
        // A client that is gone is noticed by whoever pumps.
        let _ = first.unwrap_or(&mut self.error).write(&[]).await;
    }

    /// Whether the client is there.
    pub(super) fn line(&self) -> Line {
        match &self.connection {
            Connection::Spdy(connection) => connection.line(),
            Connection::WebSocket(connection) => connection.line(),
        }
    }

    /// Says how the session ended.
    pub(super) async fn end(&mut self, ending: &Ending) {
        if let Some(bytes) = ending.bytes(self.json_status)
            && self.error.write(&bytes).await.is_err()
        {
            return;
        }
        // The client waits for the end of each; one that is gone needs none.
        for outlet in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            let _ = outlet.finish().await;
        }
        for stream in &mut self.silent {
            let _ = stream.finish().await;
        }
        let _ = self.error.finish().await;
    }

    /// Ends the connection after everything that was written.
    pub(super) async fn close(self) {
        match self.connection {
            Connection::Spdy(connection) => connection.close().await,
            Connection::WebSocket(connection) => connection.close().await,
        }
    }
}

/// Streams that a SPDY client has yet to open.
#[derive(Debug)]
struct Expected(Vec<&'static str>);

impl Expected {
    fn new(wanted: &Wanted, version: u8) -> Self {
        let all = [
            ("error", true),
            ("stdin", wanted.stdin),
            ("stdout", wanted.stdout),
            ("stderr", wanted.stderr),
            // Older protocols cannot resize.
            ("resize", wanted.resize && version >= 3),
        ];
        let wanted = all.into_iter().filter(|(_, wanted)| *wanted);
        Self(wanted.map(|(name, _)| name).collect())
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    /// Which of them this is; once.
    fn take(&mut self, name: &str) -> Option<&'static str> {
        let place = self.0.iter().position(|expected| *expected == name)?;
        Some(self.0.swap_remove(place))
    }
}

async fn accept(
    mut connection: spdy::Connection,
    mut expected: Expected,
    version: u8,
) -> Result<Channels, String> {
    let gone = || "the client has gone before it opened its streams".to_owned();
    let (mut stdin, mut stdout, mut stderr, mut resize, mut error) = (None, None, None, None, None);
    let mut silent = Vec::new();
    while expected.count() > 0 {
        let stream = connection.next().await.ok_or_else(gone)?;
        let name = stream.headers.get("streamtype").unwrap_or_default();
        let Some(name) = expected.take(name) else {
            stream.refuse(Reset::Protocol).await;
            continue;
        };
        stream.accept().await.map_err(|_| gone())?;
        let (inlet, writer) = stream.into_parts();
        match name {
            "stdin" => {
                stdin = Some(inlet);
                silent.push(writer);
            }
            "resize" => {
                resize = Some(inlet);
                silent.push(writer);
            }
            "stdout" => stdout = Some(Outlet::Spdy(writer)),
            "stderr" => stderr = Some(Outlet::Spdy(writer)),
            _ => error = Some(Outlet::Spdy(writer)),
        }
    }
    Ok(Channels {
        stdin,
        stdout,
        stderr,
        resize,
        error: error.ok_or_else(gone)?,
        silent,
        json_status: version >= 4,
        connection: Connection::Spdy(connection),
    })
}
