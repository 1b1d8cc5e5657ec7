//! A proxy in front of the registry that misbehaves in the middle of an answer: it stops there
//! until it is told to go on, or changes a byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::wait::{BOUND, poll};

/// What happens to a connection that has carried `AFTER` bytes of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It stands still until [`Proxy::release`].
    Hold,
    /// One byte is another.
    Flip,
}

/// Past every manifest and configuration of ours, and well inside a layer.
const AFTER: usize = 100_000;

/// Connections that stand still, and whether they may go on.
#[derive(Default)]
struct Gate {
    held: Mutex<(usize, bool)>,
    changed: Condvar,
}

/// A listening proxy; its threads end with their connections.
pub(crate) struct Proxy {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    gate: Arc<Gate>,
    manifests: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) fn start(upstream: &str, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket").to_string();
        let gate = Arc::new(Gate::default());
        let (shared, upstream) = (Arc::clone(&gate), upstream.to_owned());
        let manifests = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&manifests);
        // Ends with the process: a listener has no other way to be told.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&upstream) else {
                    continue;
                };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                let asked = Arc::clone(&asked);
                thread::spawn(move || {
                    forward(from, to, |_, bytes| {
                        asked.fetch_add(manifest_requests(bytes), Ordering::Relaxed);
                    });
                });
                let gate = Arc::clone(&shared);
                thread::spawn(move || {
                    forward(server, client, |done, bytes| {
                        strike(fault, &gate, done, bytes)
                    });
                });
            }
        });
        Self {
            address,
            gate,
            manifests,
        }
    }

    /// How often a manifest was asked for so far.
    pub(crate) fn manifests_asked(&self) -> usize {
        self.manifests.load(Ordering::Relaxed)
    }

    /// Waits until a connection stands still.
    pub(crate) fn wait_until_holding(&self) {
        let holding = || (self.gate.lock().0 > 0).then_some(());
        assert!(
            poll(BOUND, holding).is_some(),
            "nothing came to the point where the proxy holds"
        );
    }

    /// Lets all connections go on, these and later ones.
    pub(crate) fn release(&self) {
        self.gate.lock().1 = true;
        self.gate.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
    }
}

impl Gate {
    fn lock(&self) -> std::sync::MutexGuard<'_, (usize, bool)> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests for manifests in what a client sends. Its requests are short and come in one piece.
fn manifest_requests(bytes: &[u8]) -> usize {
    let text = String::from_utf8_lossy(bytes);
    let is_request = |line: &&str| line.starts_with("GET ") && line.contains("/manifests/");
    text.lines().filter(is_request).count()
}

/// Applies the fault to the piece in which the limit is passed.
fn strike(fault: Fault, gate: &Gate, done: usize, bytes: &mut [u8]) {
    let Some(at) = AFTER.checked_sub(done).filter(|at| *at < bytes.len()) else {
        return;
    };
    match fault {
        Fault::Flip => bytes[at] ^= 0xff,
        Fault::Hold => {
            let mut held = gate.lock();
            held.0 += 1;
            let waited = gate.changed.wait_while(held, |held| !held.1);
            waited.unwrap_or_else(PoisonError::into_inner).0 -= 1;
        }
    }
}

/// Copies until the end; `change` sees how much went before and the piece.
fn forward(mut from: TcpStream, mut to: TcpStream, change: impl Fn(usize, &mut [u8])) {
    let mut buffer = vec![0; 16 << 10];
    let mut done = 0;
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 {
            break;
        }
        change(done, &mut buffer[..length]);
        done += length;
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Either side may be gone already.
    let _gone = to.shutdown(Shutdown::Write);
}
