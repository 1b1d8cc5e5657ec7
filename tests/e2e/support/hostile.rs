//! A registry in this process that serves one image and does to each request what a test says: the
//! answers that an honest registry never gives.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::image::Image;
use super::layer::digest;

/// What happens to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// The right answer.
    Serve,
    /// The right answer as far as the budget of the registry goes; then silence, with the
    /// connection held.
    Spend,
    /// So many bytes of the right answer, then silence.
    StallAfter(usize),
    /// So many bytes of the right answer, then the end of the connection.
    CutAfter(usize),
    /// The right answer in six parts, with so long between them.
    Slowly(Duration),
    /// All of it, whatever range was asked for.
    Whole,
    /// Everything from the range's beginning on, and bytes that nobody has announced.
    Longer,
    /// One byte is another.
    Flipped,
    /// A status with further header lines.
    Status(u16, &'static str),
    /// The right answer, and another digest claimed for it.
    Misnamed,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// As the header has it.
    pub(crate) range: Option<String>,
}

impl Asked {
    /// Whether it is for the blob with this digest.
    pub(crate) fn is_for(&self, blob: &[u8]) -> bool {
        self.path.contains("/blobs/") && self.path.contains(&digest(blob))
    }

    fn bounds(&self, length: usize) -> Option<(usize, usize)> {
        let (from, to) = self
            .range
            .as_ref()?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        let to = to.parse().map_or(length, |last: usize| last + 1);
        Some((from.parse().ok()?, to.min(length)))
    }
}

/// What a test has decided.
type Decide = dyn Fn(&Asked, usize) -> Act + Send + Sync;

/// Listens until the process ends: a listener has no other way to be told.
pub(crate) struct Hostile {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    sent: Arc<AtomicUsize>,
    budget: Arc<AtomicUsize>,
}

impl Hostile {
    /// `decide` gets each request, and how many like it (same path) came before.
    pub(crate) fn start(
        image: &'static Image,
        decide: impl Fn(&Asked, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = Self {
            address: listener.local_addr().expect("a bound socket").to_string(),
            asked: Arc::default(),
            sent: Arc::default(),
            budget: Arc::default(),
        };
        let decide: Arc<Decide> = Arc::new(decide);
        let (asked, sent) = (Arc::clone(&server.asked), Arc::clone(&server.sent));
        let budget = Arc::clone(&server.budget);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (decide, asked) = (Arc::clone(&decide), Arc::clone(&asked));
                let (sent, budget) = (Arc::clone(&sent), Arc::clone(&budget));
                thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let before = {
                        let mut all = asked.lock().unwrap_or_else(PoisonError::into_inner);
                        let like = all.iter().filter(|each| each.path == request.path).count();
                        all.push(request.clone());
                        like
                    };
                    let answer = Answer {
                        stream: &stream,
                        sent: &sent,
                        budget: &budget,
                    };
                    answer.give(image, &request, decide(&request, before));
                });
            }
        });
        server
    }

    /// A reference to its image.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }

    /// The ranges that were asked for of a blob.
    pub(crate) fn ranges(&self, blob: &[u8]) -> Vec<String> {
        let asked = self.asked();
        let of_blob = asked.iter().filter(|each| each.is_for(blob));
        of_blob.filter_map(|each| each.range.clone()).collect()
    }

    /// Bytes sent in answers to which the budget applies.
    pub(crate) fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// Lets `Act::Spend` send so many bytes more.
    pub(crate) fn allow(&self, bytes: usize) {
        self.budget.fetch_add(bytes, Ordering::SeqCst);
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut range = None;
    for line in lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
    {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.trim().to_owned());
        }
    }
    Some(Asked {
        method,
        path,
        range,
    })
}

/// One connection with its one answer.
struct Answer<'a> {
    stream: &'a TcpStream,
    sent: &'a AtomicUsize,
    budget: &'a AtomicUsize,
}

impl Answer<'_> {
    fn give(&self, image: &Image, request: &Asked, act: Act) {
        if let Act::Status(status, headers) = &act {
            return self.head(&format!("{status} said"), headers, 0);
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let is_manifest = path.contains("/manifests/");
        let found = match is_manifest {
            true => Some(&image.manifest),
            false => image
                .layers
                .iter()
                .map(|layer| &layer.blob)
                .chain([&image.config])
                .find(|blob| path.ends_with(&digest(blob))),
        };
        let Some(body) = found else {
            return self.head("404 Not Found", "", 0);
        };
        let mut headers = String::new();
        if is_manifest {
            let named = match act {
                Act::Misnamed => digest(b"another"),
                _ => digest(body),
            };
            headers = format!(
                "Content-Type: {}\r\nDocker-Content-Digest: {named}\r\n",
                image.dialect.manifest()
            );
        }
        let (mut status, mut part) = ("200 OK", body.clone());
        if let Some((from, to)) = request.bounds(body.len()).filter(|_| act != Act::Whole) {
            status = "206 Partial Content";
            headers += &format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, body.len());
            part = body[from..to].to_vec();
        }
        match act {
            Act::Longer => part.extend_from_slice(&[0; 1000]),
            Act::Flipped => {
                let middle = part.len() / 2;
                part[middle] ^= 0xff;
            }
            _ => {}
        }
        self.head(status, &headers, part.len());
        if request.method != "HEAD" {
            self.body(&part, &act);
        }
    }

    fn head(&self, status: &str, headers: &str, length: usize) {
        let text = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        // A client that has gone is the test's own doing.
        let _ = (&mut &*self.stream).write_all(text.as_bytes());
    }

    fn body(&self, part: &[u8], act: &Act) {
        let mut stream = self.stream;
        match act {
            Act::CutAfter(bytes) => drop(stream.write_all(&part[..part.len().min(*bytes)])),
            Act::StallAfter(bytes) => {
                let _ = stream.write_all(&part[..part.len().min(*bytes)]);
                self.hold();
            }
            Act::Slowly(pause) => {
                for piece in part.chunks(part.len().div_ceil(6).max(1)) {
                    thread::sleep(*pause);
                    let _ = stream.write_all(piece);
                }
            }
            Act::Spend => self.spend(part),
            _ => drop(stream.write_all(part)),
        }
    }

    fn spend(&self, part: &[u8]) {
        let mut stream = self.stream;
        for piece in part.chunks(10_000) {
            let take = |budget: usize| budget.checked_sub(piece.len());
            let order = Ordering::SeqCst;
            if self.budget.fetch_update(order, order, take).is_err() {
                return self.hold();
            }
            if stream.write_all(piece).is_err() {
                return;
            }
            self.sent.fetch_add(piece.len(), order);
        }
    }

    /// Until the client closes.
    fn hold(&self) {
        let _ = std::io::copy(&mut &*self.stream, &mut std::io::sink());
    }
}
