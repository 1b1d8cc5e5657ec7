//! A connection to the system bus for as long as one piece of work takes (D-Bus specification,
//! "Authentication Protocol", "Message Bus").
//!
//! Blocks, and at most until its deadline. It holds no state that could grow old: whatever restarts
//! meanwhile, bus or systemd, is met anew by the next piece of work.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::message::{self, Body, ERROR, Message, Method, RETURN, SIGNAL};

/// Longest line of the bus before there are messages.
const LINE_MAX: usize = 512;
/// News kept that came before the answer to a call.
const NEWS_MAX: usize = 64;

/// The bus itself.
const HELLO: Method = of_bus("Hello");
const ADD_MATCH: Method = of_bus("AddMatch");

const fn of_bus(name: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        name,
    }
}

/// Why a piece of work over the bus failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The socket failed, or nobody listens.
    #[error("the system bus at {path} fails")]
    Io {
        /// The socket.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nothing was answered in time.
    #[error("the system bus or systemd did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// What came is no message of the protocol.
    #[error("a message of the system bus {0}")]
    Malformed(&'static str),
    /// The bus does not take us for root.
    #[error("the system bus refuses this process: {0:?}")]
    NotLetIn(String),
    /// The bus, or systemd, refused a call.
    #[error("{name}: {text}")]
    Refused {
        /// The name of the error.
        name: String,
        /// What it says.
        text: String,
    },
    /// The version of systemd is too old, or none; what it says of it.
    #[error("systemd is of version {0:?}, and 244 is the oldest that will do")]
    TooOld(String),
    /// systemd took a job on and did not do it; the word it has for that.
    #[error("systemd says that the job is {0:?}")]
    NotDone(String),
}

impl BusError {
    /// Whether the same may go better later: what failed is the way to systemd.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        const AWAY: [&str; 5] = [
            "ServiceUnknown",
            "NameHasNoOwner",
            "NoReply",
            "Disconnected",
            "LimitsExceeded",
        ];
        match self {
            Self::Io { .. } | Self::TimedOut(_) => true,
            Self::Refused { name, .. } => {
                let word = name.strip_prefix("org.freedesktop.DBus.Error.");
                word.is_some_and(|word| AWAY.contains(&word))
            }
            // A job that another one took the place of: a unit was to start and to stop at once.
            Self::NotDone(how) => how == "canceled",
            Self::Malformed(_) | Self::NotLetIn(_) | Self::TooOld(_) => false,
        }
    }

    /// Whether it is this refusal, by the last part of its name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        matches!(self, Self::Refused { name: whole, .. }
            if whole.rsplit('.').next() == Some(name))
    }
}

/// An open connection that the bus has given a name.
#[derive(Debug)]
pub(super) struct Bus<'p> {
    stream: UnixStream,
    path: &'p Path,
    deadline: Instant,
    within: Duration,
    serial: u32,
    news: Vec<Message>,
}

impl<'p> Bus<'p> {
    /// Connects; all that follows has to be through `within` this time.
    pub(super) fn connect(path: &'p Path, within: Duration) -> Result<Self, BusError> {
        let failed = |source: io::Error| BusError::Io {
            path: path.display().to_string(),
            source,
        };
        let open = || {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Also for the connection itself: a bus that takes none keeps callers waiting.
            set_socket_timeout(&socket, Timeout::Send, Some(within))?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(UnixStream::from(socket))
        };
        let stream = open().map_err(|errno: rustix::io::Errno| failed(errno.into()))?;
        let mut bus = Self {
            stream,
            path,
            deadline: Instant::now() + within,
            within,
            serial: 0,
            news: Vec::new(),
        };
        bus.log_in()?;
        bus.call(HELLO, "", &Body::default())?;
        Ok(bus)
    }

    /// By the credentials that the kernel tells: `EXTERNAL` with our uid.
    fn log_in(&mut self) -> Result<(), BusError> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() >= LINE_MAX {
                return Err(BusError::Malformed("is a line without an end"));
            }
            // The bus says nothing more before it has been told to begin, so this takes no message.
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK ") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(BusError::NotLetIn(said));
        }
        self.send(b"BEGIN\r\n")
    }

    /// Calls, and waits for the answer.
    pub(super) fn call(
        &mut self,
        method: Method,
        signature: &str,
        body: &Body,
    ) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&message::call(serial, method, signature, body))?;
        loop {
            let message = self.next()?;
            if message.reply_to == Some(serial) {
                return answer(message);
            }
            self.keep(message)?;
        }
    }

    /// Asks for the news that a rule describes.
    pub(super) fn listen(&mut self, rule: &str) -> Result<(), BusError> {
        let mut body = Body::default();
        body.text(rule);
        self.call(ADD_MATCH, "s", &body).map(drop)
    }

    /// The next news of this name.
    pub(super) fn news(&mut self, member: &str) -> Result<Message, BusError> {
        let wanted = |message: &Message| message.kind == SIGNAL && message.member == member;
        if let Some(at) = self.news.iter().position(wanted) {
            return Ok(self.news.remove(at));
        }
        loop {
            let message = self.next()?;
            if wanted(&message) {
                return Ok(message);
            }
            self.keep(message)?;
        }
    }

    fn keep(&mut self, message: Message) -> Result<(), BusError> {
        if message.kind != SIGNAL {
            return Ok(());
        }
        if self.news.len() >= NEWS_MAX {
            return Err(BusError::Malformed("is one of too many"));
        }
        self.news.push(message);
        Ok(())
    }

    fn next(&mut self) -> Result<Message, BusError> {
        let mut fixed = [0; message::FIXED];
        self.receive(&mut fixed)?;
        let mut rest = vec![0; message::rest(&fixed).map_err(BusError::Malformed)?];
        self.receive(&mut rest)?;
        Message::parse(&fixed, &rest).map_err(BusError::Malformed)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        let left = self.left()?;
        let sent = self.stream.set_write_timeout(Some(left));
        let sent = sent.and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|error| self.failed(error))
    }

    fn receive(&mut self, mut into: &mut [u8]) -> Result<(), BusError> {
        while !into.is_empty() {
            let left = self.left()?;
            let read = self.stream.set_read_timeout(Some(left));
            match read.and_then(|()| self.stream.read(into)) {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => into = &mut into[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    fn left(&self) -> Result<Duration, BusError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(BusError::TimedOut(self.within)),
            false => Ok(left),
        }
    }

    fn failed(&self, source: io::Error) -> BusError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => BusError::TimedOut(self.within),
            _ => BusError::Io {
                path: self.path.display().to_string(),
                source,
            },
        }
    }
}

fn answer(message: Message) -> Result<Message, BusError> {
    match message.kind {
        RETURN => return Ok(message),
        ERROR => {}
        _ => return Err(BusError::Malformed("answers a call and is no answer")),
    }
    let mut text = String::new();
    if message.signature.starts_with('s') {
        text = message.values().text().map_err(BusError::Malformed)?;
    }
    Err(BusError::Refused {
        name: message.error.clone(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    /// A bus that says these things, whatever it is told, and hangs up when it is hung up on.
    fn bus(said: Vec<u8>) -> (tempfile::TempDir, JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("bus")).unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(&said);
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
        });
        (dir, serving)
    }

    fn answers(kind: u8, reply_to: u32, error: &str) -> Vec<u8> {
        let mut message = vec![b'l', kind, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0];
        message.extend([5, 1, b'u', 0]);
        message.extend(reply_to.to_le_bytes());
        if !error.is_empty() {
            message.extend([4, 1, b's', 0]);
            message.extend(u32::try_from(error.len()).unwrap().to_le_bytes());
            message.extend(error.as_bytes());
            message.push(0);
            let fields = u32::try_from(message.len() - message::FIXED).unwrap();
            message[12..16].copy_from_slice(&fields.to_le_bytes());
            message.resize(message.len().next_multiple_of(8), 0);
        }
        message
    }

    fn connect_to(said: &[&[u8]]) -> Result<(), BusError> {
        let (dir, serving) = bus(said.concat());
        let path = dir.path().join("bus");
        let connected = Bus::connect(&path, SOON).map(drop);
        serving.join().unwrap();
        connected
    }

    const OK: &[u8] = b"OK 0123456789abcdef\r\n";

    #[test]
    fn an_answer_is_found_behind_what_is_none() {
        let other = answers(RETURN, 7, "");
        connect_to(&[OK, &other, &answers(RETURN, 1, "")]).unwrap();
    }

    #[test]
    fn a_refusal_has_its_name_and_a_stranger_is_not_let_in() {
        let refusal = answers(ERROR, 1, "org.freedesktop.systemd1.UnitExists");
        let error = connect_to(&[OK, &refusal]).unwrap_err();
        assert!(error.is("UnitExists") && !error.is_passing(), "{error}");
        let away = answers(ERROR, 1, "org.freedesktop.DBus.Error.NoReply");
        assert!(connect_to(&[OK, &away]).unwrap_err().is_passing());
        let error = connect_to(&[b"REJECTED EXTERNAL\r\n"]).unwrap_err();
        assert!(matches!(error, BusError::NotLetIn(_)), "{error}");
    }

    #[test]
    fn a_bus_that_is_silent_or_mad_holds_nobody_up() {
        let error = connect_to(&[b"OK"]).unwrap_err();
        assert!(matches!(error, BusError::TimedOut(_)), "{error}");
        let error = connect_to(&[OK, &answers(RETURN, 1, "")[..20]]).unwrap_err();
        assert!(matches!(error, BusError::TimedOut(_)), "{error}");
        let mut long = answers(RETURN, 1, "");
        long[4..8].fill(0x7f);
        for said in [&[b'x'; 4096][..], &long] {
            let said = if said.len() == 4096 {
                vec![said]
            } else {
                vec![OK, said]
            };
            let error = connect_to(&said).unwrap_err();
            assert!(matches!(error, BusError::Malformed(_)), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let nobody = Bus::connect(&dir.path().join("bus"), SOON).unwrap_err();
        assert!(matches!(nobody, BusError::Io { .. }) && nobody.is_passing());
    }

    #[test]
    fn news_are_kept_while_an_answer_is_awaited_and_not_without_end() {
        let mut news = answers(SIGNAL, 0, "");
        // In the place of the field "reply to" the name of the news, of three letters.
        news.splice(16..24, [3, 1, b's', 0, 3, 0, 0, 0, b'A', b'b', b'c', 0]);
        news[12] = 12;
        news.resize(32, 0);
        let (dir, serving) = bus([OK, &news, &answers(RETURN, 1, "")].concat());
        let path = dir.path().join("bus");
        let mut bus = Bus::connect(&path, SOON).unwrap();
        assert_eq!(bus.news("Abc").unwrap().member, "Abc");
        drop(bus);
        serving.join().unwrap();
        let flood = news.repeat(NEWS_MAX + 1);
        let error = connect_to(&[OK, &flood]).unwrap_err();
        assert!(matches!(error, BusError::Malformed(_)), "{error}");
    }
}
