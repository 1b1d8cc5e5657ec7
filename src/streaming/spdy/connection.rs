//! One SPDY connection: a task that reads and sorts, a task that writes, and the streams between
//! them.
//!
//! ```text
//!            ┌─ reader ── SYN_STREAM ──► NewStream ──► session
//!   socket ──┤            DATA ────────► queue ──► Inlet
//!            └─ writer ◄── 16 frames ◄── StreamWriter, replies, pings
//! ```
//!
//! Streams that are not read hold up the reader, and with it the client, once there is no room left
//! for what they were sent (`backlog.rs`): Kubernetes' clients keep no windows, so there is no
//! gentler way. A client that keeps them never gets that far.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::frame::{Decoder, Frame, PIECE_MAX_BYTES, Reset};
use super::headers::Headers;
use super::window::{INITIAL_BYTES, Window};
use super::writer::{Command, GOODBYE, GOODBYE_PROTOCOL, write};
use super::{Credit, SpdyError};
use crate::streaming::backlog::{Backlog, Feed};
use crate::streaming::channel::{Activity, Gone, Inlet, Line, turned};

/// Frames that may wait to be written.
const QUEUE: usize = 16;
/// The client hears how much of the connection's window was taken when it is this much.
const TAKEN_STEP_BYTES: usize = 16 * 1024;
/// Streams that the session has not looked at yet.
const NEW_STREAMS: usize = 16;
/// How long what a client still sends that broke a rule is taken after the goodbye, so that it
/// reads why before it finds the connection closed.
const LINGER: Duration = Duration::from_secs(5);
/// Between the tasks and the streams.
#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Command>,
    /// Of the connection as a whole.
    window: Window,
    activity: Activity,
    over: watch::Sender<bool>,
    /// The newest stream that the client has opened, for the goodbye.
    last_stream: AtomicU32,
}

/// A connection that is being served.
#[derive(Debug)]
pub struct Connection {
    streams: mpsc::Receiver<NewStream>,
    shared: Arc<Shared>,
    line: Line,
    tasks: [AbortHandle; 2],
}

/// A stream that the client has opened.
#[derive(Debug)]
pub struct NewStream {
    /// What the client says it is for.
    pub headers: Headers,
    inlet: Inlet,
    writer: StreamWriter,
}

impl NewStream {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.writer.stream
    }

    /// Whether either side has given it up.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        *self.writer.state.reset.borrow()
    }

    /// Accepts it, which the client waits for.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn accept(&self) -> Result<(), Gone> {
        let (stream, fin, headers) = (self.number(), false, Headers::default());
        let reply = Frame::SynReply {
            stream,
            fin,
            headers,
        };
        self.writer.send(reply).await
    }

    /// Its two directions.
    #[must_use]
    pub fn into_parts(self) -> (Inlet, StreamWriter) {
        (self.inlet, self.writer)
    }

    /// Refuses it.
    pub async fn refuse(self, why: Reset) {
        self.writer.reset(why).await;
    }
}

/// Writes a stream.
#[derive(Debug)]
pub struct StreamWriter {
    stream: u32,
    shared: Arc<Shared>,
    state: Arc<State>,
}

/// What reader and writer of a stream know of each other.
#[derive(Debug)]
struct State {
    window: Window,
    /// Nothing more goes out.
    finished: AtomicBool,
    /// Turns true when the client resets it.
    reset: watch::Sender<bool>,
}

impl StreamWriter {
    /// Writes as far as the windows allow, and waits for the rest.
    ///
    /// # Errors
    /// [`Gone`]: the client has gone, or has reset the stream.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut reset = self.state.reset.subscribe();
            let mut over = self.shared.over.subscribe();
            let length = tokio::select! {
                biased;
                () = turned(&mut reset) => return Err(Gone),
                () = turned(&mut over) => return Err(Gone),
                length = self.room(rest.len().min(PIECE_MAX_BYTES)) => length,
            };
            let (piece, later) = rest.split_at(length);
            rest = later;
            let frame = Frame::Data {
                stream: self.stream,
                bytes: Bytes::copy_from_slice(piece),
                fin: false,
            };
            self.send(frame).await?;
            self.shared.activity.note_sent(length);
        }
        Ok(())
    }

    async fn room(&self, wanted: usize) -> usize {
        let of_stream = self.state.window.take(wanted).await;
        let both = self.shared.window.take(of_stream).await;
        self.state.window.give_back(of_stream - both);
        both
    }

    /// Ends this direction.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) async fn finish(&mut self) -> Result<(), Gone> {
        if self.state.finished.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.send(Frame::Data {
            stream: self.stream,
            bytes: Bytes::new(),
            fin: true,
        })
        .await
    }

    /// Ends both directions at once.
    pub(crate) async fn reset(&self, why: Reset) {
        self.state.finished.store(true, Ordering::Release);
        self.state.reset.send_replace(true);
        let (stream, status) = (self.stream, why as u32);
        // A client that is gone needs no telling.
        let _ = self.send(Frame::RstStream { stream, status }).await;
    }

    /// Turns true when the client resets the stream.
    pub(crate) fn resets(&self) -> watch::Receiver<bool> {
        self.state.reset.subscribe()
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.shared.send(frame).await
    }
}

impl Shared {
    async fn goodbye(&self, status: u32) -> Result<(), Gone> {
        let last_stream = self.last_stream.load(Ordering::Acquire);
        let close = Command::Close {
            last_stream,
            status,
        };
        self.queue.send(close).await.map_err(|_| Gone)
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        let sent = self.queue.send(Command::Frame(frame)).await;
        sent.map_err(|_| Gone)
    }
}

impl Connection {
    /// The next stream that the client opens; `None` once it is gone.
    pub async fn next(&mut self) -> Option<NewStream> {
        self.streams.recv().await
    }

    /// Whether the client is there.
    #[must_use]
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Says goodbye after everything that was written before, and ends when the client has closed
    /// the connection. It must be the first to close it: Kubernetes' library throws away what its
    /// user has yet to read when it finds the connection closed.
    pub async fn close(self) {
        if self.shared.goodbye(GOODBYE).await.is_ok() {
            self.shared.over.send_replace(true);
            self.line.gone().await;
        }
    }
}

/// Without a goodbye, or after it: there is no connection any more.
impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What a client may have of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Streams that are open at once.
    pub streams: usize,
    /// Bytes that wait to be read, beside the 64 KiB that each stream has for itself.
    pub waiting: usize,
}

/// Serves a connection on `io`. `hangup` resolves when the client is gone, even while nobody reads.
pub fn serve<I, H>(io: I, bounds: Bounds, activity: Activity, hangup: H) -> Connection
where
    I: AsyncRead + AsyncWrite + Send + 'static,
    H: Future<Output = ()> + Send + 'static,
{
    let (from, to) = tokio::io::split(io);
    let (queue, commands) = mpsc::channel(QUEUE);
    let (new, streams) = mpsc::channel(NEW_STREAMS);
    let shared = Arc::new(Shared {
        queue,
        window: Window::new(INITIAL_BYTES, false),
        activity,
        over: watch::Sender::new(false),
        last_stream: AtomicU32::new(0),
    });
    let (gone, line) = watch::channel(false);
    let (written, flushed) = watch::channel(false);
    let writer = tokio::spawn(write(to, commands, written)).abort_handle();
    let its_writer = writer.clone();
    let reader = Reader {
        shared: Arc::clone(&shared),
        streams: HashMap::new(),
        streams_max: bounds.streams,
        backlog: Backlog::new(bounds.waiting),
        taken: 0,
        last_stream: 0,
        initial_window: INITIAL_BYTES,
        keeps_windows: false,
        new,
    };
    let reader = tokio::spawn(async move {
        reader.run(from, hangup, flushed).await;
        gone.send_replace(true);
        its_writer.abort();
    });
    Connection {
        streams,
        shared,
        line: Line::new(line),
        tasks: [reader.abort_handle(), writer],
    }
}

/// One direction of a stream, as the reader has it.
#[derive(Debug)]
struct Stream {
    feed: Feed,
    /// The client has ended it.
    ended: bool,
    state: Arc<State>,
}

struct Reader {
    shared: Arc<Shared>,
    streams: HashMap<u32, Stream>,
    streams_max: usize,
    backlog: Backlog,
    /// What has come since the client was last told so.
    taken: usize,
    last_stream: u32,
    initial_window: u32,
    keeps_windows: bool,
    new: mpsc::Sender<NewStream>,
}

impl Reader {
    async fn run(
        mut self,
        mut from: impl AsyncRead + Unpin + Send,
        hangup: impl Future<Output = ()> + Send,
        mut flushed: watch::Receiver<bool>,
    ) {
        let mut over = self.shared.over.subscribe();
        let broken = tokio::select! {
            () = hangup => return,
            () = turned(&mut over) => false,
            served = self.serve(&mut from) => match served {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "a SPDY connection ends");
                    if self.shared.goodbye(GOODBYE_PROTOCOL).await.is_err() {
                        return;
                    }
                    true
                }
            },
        };
        // Readers of streams find their end; what the client still sends is thrown away. Whoever
        // waits for new streams waits until all is written, for with him the connection goes.
        drop(self.streams);
        let mut rest = vec![0; 4096];
        let drained = async { while let Ok(1..) = from.read(&mut rest).await {} };
        let had_its_time = async {
            turned(&mut flushed).await;
            if broken {
                tokio::time::sleep(LINGER).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = drained => {}
            () = had_its_time => {}
        }
    }

    async fn serve(&mut self, from: &mut (impl AsyncRead + Unpin + Send)) -> Result<(), SpdyError> {
        let mut decoder = Decoder::default();
        let mut input = BytesMut::with_capacity(2 * PIECE_MAX_BYTES);
        loop {
            while let Some(frame) = decoder.next(&mut input)? {
                if self.take(frame).await?.is_err() {
                    return Ok(());
                }
            }
            input.reserve(PIECE_MAX_BYTES);
            match from.read_buf(&mut input).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Ok(()),
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<Result<(), Gone>, SpdyError> {
        let done = match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => self.open(stream, fin, headers).await?,
            Frame::Data { stream, bytes, fin } => self.data(stream, &bytes, fin).await,
            Frame::RstStream { stream, .. } => {
                if let Some(stream) = self.streams.remove(&stream) {
                    stream.state.finished.store(true, Ordering::Release);
                    stream.state.reset.send_replace(true);
                }
                Ok(())
            }
            Frame::Headers { stream, fin, .. } => {
                if fin {
                    self.end(stream);
                }
                Ok(())
            }
            Frame::Ping(number) if number % 2 == 1 => self.shared.send(Frame::Ping(number)).await,
            Frame::Settings {
                initial_window: Some(bytes),
            } => {
                self.resize_windows(bytes)?;
                Ok(())
            }
            Frame::WindowUpdate { stream, delta } => self.enlarge(stream, delta).await?,
            // We open no streams and send no pings: there is nothing to answer.
            Frame::SynReply { .. }
            | Frame::Ping(_)
            | Frame::Settings { .. }
            | Frame::GoAway { .. } => Ok(()),
        };
        Ok(done)
    }

    async fn open(
        &mut self,
        stream: u32,
        fin: bool,
        headers: Headers,
    ) -> Result<Result<(), Gone>, SpdyError> {
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            return Err(SpdyError::Rule("a stream number that does not go on"));
        }
        self.last_stream = stream;
        self.shared.last_stream.store(stream, Ordering::Release);
        // Of one that was refused the client sends no end.
        let done = |stream: &Stream| {
            let state = &stream.state;
            *state.reset.borrow() || stream.ended && state.finished.load(Ordering::Acquire)
        };
        self.streams.retain(|_, stream| !done(stream));
        if self.streams.len() >= self.streams_max {
            let status = Reset::Refused as u32;
            return Ok(self.shared.send(Frame::RstStream { stream, status }).await);
        }
        let state = Arc::new(State {
            window: Window::new(self.initial_window, self.keeps_windows),
            finished: AtomicBool::new(false),
            reset: watch::Sender::new(false),
        });
        let (feed, unread) = self.backlog.channel();
        if fin {
            feed.end();
        }
        let credit = Credit::new(stream, self.shared.queue.clone());
        let new = NewStream {
            headers,
            inlet: Inlet::new(unread, Some(credit), self.shared.activity.clone()),
            writer: StreamWriter {
                stream,
                shared: Arc::clone(&self.shared),
                state: Arc::clone(&state),
            },
        };
        let ended = fin;
        self.streams.insert(stream, Stream { feed, ended, state });
        Ok(self.new.send(new).await.map_err(|_| Gone))
    }

    async fn data(&mut self, number: u32, bytes: &[u8], fin: bool) -> Result<(), Gone> {
        self.has_come(bytes.len()).await?;
        let Some(stream) = self.streams.get(&number) else {
            if number > self.last_stream {
                let (stream, status) = (number, Reset::Invalid as u32);
                self.shared
                    .send(Frame::RstStream { stream, status })
                    .await?;
            }
            // One that has been reset may still have had data under way.
            return Ok(());
        };
        // What comes behind the end is nobody's.
        let read = !stream.ended && stream.feed.push(bytes);
        let unread = if read || *stream.state.reset.borrow() {
            0
        } else {
            bytes.len()
        };
        if let Ok(delta @ 1..) = u32::try_from(unread) {
            // Taken all the same, and thrown away.
            let stream = number;
            self.shared
                .send(Frame::WindowUpdate { stream, delta })
                .await?;
        }
        if fin {
            self.end(number);
        }
        self.backlog.has_room().await;
        Ok(())
    }

    /// The connection's window is not what holds a client back: that is each stream's, or that
    /// nothing more is read.
    async fn has_come(&mut self, bytes: usize) -> Result<(), Gone> {
        self.taken += bytes;
        match u32::try_from(self.taken) {
            Ok(delta) if self.taken >= TAKEN_STEP_BYTES => {
                self.taken = 0;
                let stream = 0;
                self.shared
                    .send(Frame::WindowUpdate { stream, delta })
                    .await
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, number: u32) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.ended = true;
            stream.feed.end();
        }
    }

    fn resize_windows(&mut self, bytes: u32) -> Result<(), SpdyError> {
        let delta = i64::from(bytes) - i64::from(self.initial_window);
        let fits = bytes <= 0x7fff_ffff
            && self
                .streams
                .values()
                .all(|stream| stream.state.window.change(delta));
        self.initial_window = bytes;
        self.keeps_windows = true;
        if fits {
            Ok(())
        } else {
            Err(SpdyError::Rule("a window is too large"))
        }
    }

    async fn enlarge(&mut self, number: u32, delta: u32) -> Result<Result<(), Gone>, SpdyError> {
        if number == 0 {
            return if self.shared.window.change(delta.into()) {
                Ok(Ok(()))
            } else {
                Err(SpdyError::Rule("the connection's window is too large"))
            };
        }
        self.keeps_windows = true;
        let Some(stream) = self.streams.get(&number) else {
            return Ok(Ok(()));
        };
        if stream.state.window.change(delta.into()) {
            return Ok(Ok(()));
        }
        stream.state.finished.store(true, Ordering::Release);
        stream.state.reset.send_replace(true);
        self.streams.remove(&number);
        let (stream, status) = (number, Reset::FlowControl as u32);
        Ok(self.shared.send(Frame::RstStream { stream, status }).await)
    }
}
