//! The real registry behind TLS and a password, a certificate or a token: Debian's
//! `docker-registry` on the storage of the shared one, with an authority of its own; and a proxy of
//! the kind that a network without a way out has.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::token::{ISSUER, SERVICE, TokenServer};
use super::wait::{BOUND, poll};
use super::{certificate, registry};

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
    /// With everything that the shared registry has, behind TLS, for a user with a password.
    pub(crate) fn start() -> Self {
        let dir = directory();
        certificates(dir.path());
        fs::write(dir.path().join("htpasswd"), HTPASSWD).expect("a password file");
        let path = dir.path().display();
        let auth = format!("auth: {{htpasswd: {{realm: quilt, path: {path}/htpasswd}}}}\n");
        let tls = tls(dir.path(), "");
        Self::launch(dir, &auth, &tls)
    }

    /// The same behind TLS for whoever has a certificate of its authority: `client.pem` and
    /// `client.key` are one, `stranger.pem` and `stranger.key` are not.
    pub(crate) fn for_certificates() -> Self {
        let dir = directory();
        certificates(dir.path());
        let usage = "extendedKeyUsage=clientAuth\n";
        certificate::signed(dir.path(), "ca", "client", usage);
        certificate::authority(dir.path(), "other");
        certificate::signed(dir.path(), "other", "stranger", usage);
        let clients = format!(", clientcas: [{}/ca.pem]", dir.path().display());
        let tls = tls(dir.path(), &clients);
        Self::launch(dir, "", &tls)
    }

    /// The same without TLS for whoever has a token of the server that comes with it.
    pub(crate) fn for_tokens() -> (Self, TokenServer) {
        let dir = directory();
        let tokens = TokenServer::start(dir.path());
        let auth = format!(
            "auth: {{token: {{realm: \"{}\", service: {SERVICE}, issuer: {ISSUER}, \
             rootcertbundle: {}/issuer.pem}}}}\n",
            tokens.realm,
            dir.path().display()
        );
        (Self::launch(dir, &auth, ""), tokens)
    }

    fn launch(dir: tempfile::TempDir, auth: &str, tls: &str) -> Self {
        let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = probe.local_addr().expect("a bound socket").to_string();
        drop(probe);
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {storage}}}}}\n{auth}\
             http: {{addr: \"{address}\"{tls}}}\n",
            storage = registry().storage().display(),
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
        self.file("ca.pem")
    }

    /// A file beside its configuration.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("qlt-guarded-").tempdir();
    dir.expect("a directory")
}

/// What the configuration says of TLS.
fn tls(dir: &Path, more: &str) -> String {
    let dir = dir.display();
    format!(", tls: {{certificate: {dir}/server.pem, key: {dir}/server.key{more}}}")
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority, and a certificate that it has signed for the registry, in `dir`.
fn certificates(dir: &Path) {
    certificate::authority(dir, "ca");
    let names = format!("subjectAltName=IP:127.0.0.1,DNS:{NAME}\n");
    certificate::signed(dir, "ca", "server", &names);
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
