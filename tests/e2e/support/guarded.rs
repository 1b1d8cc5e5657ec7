//! The real registry behind TLS and a password: Debian's `docker-registry` on the storage of the
//! shared one, with an authority of its own; and a proxy of the kind that a network without a way
//! out has.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::registry;
use super::wait::{BOUND, poll};

/// The only user.
pub(crate) const USER: &str = "user";
/// Its password.
pub(crate) const PASSWORD: &str = "secret";
/// The same as `docker-registry` wants it: bcrypt.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// A name that its certificate has and no resolver knows.
pub(crate) const NAME: &str = "registry.test";

/// A running registry; dropping it ends it.
pub(crate) struct Guarded {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    child: Child,
    dir: tempfile::TempDir,
}

impl Guarded {
    /// With everything that the shared registry has.
    pub(crate) fn start() -> Self {
        let storage = registry().storage();
        let dir = tempfile::Builder::new().prefix("qlt-guarded-").tempdir();
        let dir = dir.expect("a directory");
        certificates(dir.path());
        fs::write(dir.path().join("htpasswd"), HTPASSWD).expect("a password file");
        let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = probe.local_addr().expect("a bound socket").to_string();
        drop(probe);
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {storage}}}}}\n\
             auth: {{htpasswd: {{realm: quilt, path: {dir}/htpasswd}}}}\n\
             http: {{addr: \"{address}\", tls: {{certificate: {dir}/server.pem, \
             key: {dir}/server.key}}}}\n",
            storage = storage.display(),
            dir = dir.path().display(),
        );
        fs::write(dir.path().join("config.yml"), config).expect("a configuration");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.path().join("config.yml"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("docker-registry runs");
        let up = poll(BOUND, || TcpStream::connect(&address).ok());
        assert!(up.is_some(), "docker-registry does not listen");
        Self {
            address,
            child,
            dir,
        }
    }

    /// The certificate of its authority, a PEM file.
    pub(crate) fn authority(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority, and a certificate that it has signed, in `dir`.
fn certificates(dir: &Path) {
    let names = format!("subjectAltName=IP:127.0.0.1,DNS:{NAME}\n");
    fs::write(dir.join("names"), names).expect("a file");
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let authority = [
        "req",
        "-x509",
        "-days",
        "2",
        "-subj",
        "/CN=Quilt test authority",
    ];
    let ca = ["-keyout", "ca.key", "-out", "ca.pem"];
    openssl(dir, &[&authority[..], &key, &ca].concat());
    let request = [
        "req",
        "-subj",
        "/CN=registry",
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
    ];
    openssl(dir, &[&request[..], &key].concat());
    let sign = [
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
    ];
    let rest = [
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "names",
        "-out",
        "server.pem",
    ];
    openssl(dir, &[&sign[..], &rest].concat());
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(dir)
        .output();
    let output = output.expect("openssl, of Debian's package of that name");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
}

/// An HTTP proxy that knows CONNECT (RFC 9110, 9.3.6) and takes every name for one address.
pub(crate) struct Tunnel {
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    connections: Arc<AtomicUsize>,
}

impl Tunnel {
    /// Leads everybody to `target`.
    pub(crate) fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let connections = Arc::new(AtomicUsize::new(0));
        let (target, count) = (target.to_owned(), Arc::clone(&connections));
        // Ends with the process: a listener has no other way to be told.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (target, count) = (target.clone(), Arc::clone(&count));
                thread::spawn(move || tunnel(client, &target, &count));
            }
        });
        Self {
            url: format!("http://{address}"),
            connections,
        }
    }

    /// Tunnels that were opened to the registry's name.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn tunnel(mut client: TcpStream, target: &str, count: &AtomicUsize) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::from("-");
    while !line.trim_end().is_empty() {
        line.clear();
        reader.read_line(&mut line)?;
    }
    if !first.starts_with(&format!("CONNECT {NAME}:443 ")) {
        return client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    }
    count.fetch_add(1, Ordering::SeqCst);
    let mut server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || {
        let copied = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Write);
        copied
    });
    let mut piece = [0; 16 << 10];
    loop {
        match reader.read(&mut piece)? {
            0 => break,
            read => server.write_all(&piece[..read])?,
        }
    }
    let _ = server.shutdown(std::net::Shutdown::Write);
    let _ = back.join();
    Ok(())
}
