//! An HTTP server on loopback that does what a test says, also wrong things.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request: method, path with query, headers with lowercase names.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The path without its query.
    pub(crate) fn resource(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }
}

/// An answer.
pub(crate) struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut_after: Option<usize>,
    stall: bool,
}

impl Response {
    pub(crate) fn ok(body: &[u8]) -> Self {
        Self {
            body: body.to_vec(),
            ..Self::status(200)
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut_after: None,
            stall: false,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    /// Sends nothing after what `cut_after` lets through, but stays connected.
    pub(crate) fn stall(mut self) -> Self {
        self.stall = true;
        self
    }

    /// The part of the body that a `Range` header asks for, as 206.
    pub(crate) fn ranged(mut self, request: &Request) -> Self {
        let Some(range) = request.header("range") else {
            return self;
        };
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let total = self.body.len();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(total, |last: usize| last + 1);
        self.body.truncate(to);
        self.body.drain(..from);
        self.status = 206;
        let range = format!("bytes {from}-{}/{total}", to - 1);
        self.header("content-range", &range)
    }
}

/// Serves until the test process ends.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` gets each request and how many came before it.
    pub(crate) fn start(
        answer: impl Fn(&Request, usize) -> Response + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let before = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(request.clone());
                        seen.len() - 1
                    };
                    let mut response = answer(&request, before);
                    if request.method == "HEAD" {
                        response.cut_after = Some(0);
                    }
                    send(&stream, &response);
                });
            }
        });
        Self { address, log }
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    for line in lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
    {
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some(Request {
        method,
        path,
        headers,
    })
}

fn send(mut stream: &TcpStream, response: &Response) {
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", response.status);
    for (name, value) in &response.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", response.body.len());
    let end = response
        .cut_after
        .unwrap_or(response.body.len())
        .min(response.body.len());
    // The client may have gone; that is its business.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&response.body[..end]);
    if response.stall {
        // Until the client gives up and closes.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
}
