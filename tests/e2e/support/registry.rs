//! A real registry on loopback, shared by the tests of one process, with the images they name.
//!
//! Debian's `docker-registry` runs under a small shell that reads from a pipe of this process: when
//! this process ends, however it ends, the pipe closes, the shell stops the registry and removes
//! its storage.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::image::{Dialect, Image, architecture};
use super::layer::{Contents, Layer, Packing, busybox, digest, noise};
use super::wait::{BOUND, poll};

/// Runs the registry until standard input ends. `$0` is its directory.
const KEEPER: &str = "docker-registry serve \"$0/config.yml\" >\"$0/log\" 2>&1 & server=$!
read -r _
kill \"$server\"
wait \"$server\"
rm -rf \"$0\"";

/// The registry of this process.
pub(crate) struct Registry {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    /// Where it keeps what was pushed.
    storage: PathBuf,
    /// What a tag or a digest leads to, by `name:tag`.
    images: BTreeMap<String, Image>,
    /// Its standard input is the pipe that keeps the registry running.
    _keeper: Child,
}

/// Starts the registry with the first call.
pub(crate) fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::start)
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("qlt-registry-")
            .tempdir()
            .expect("a directory");
        let dir = dir.keep();
        let port = {
            let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
            probe.local_addr().expect("a bound socket").port()
        };
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/storage}}}}\nhttp: {{addr: {address}}}\n",
            dir.display()
        );
        fs::write(dir.join("config.yml"), config).expect("a configuration");
        let mut keeper = Command::new("sh");
        keeper.arg("-c").arg(KEEPER).arg(&dir).stdin(Stdio::piped());
        keeper.stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = keeper.spawn().expect("sh runs");
        let up = poll(BOUND, || {
            let answer = http(&address, "GET", "/v2/", "", &[]).ok()?;
            (answer.status == 200).then_some(())
        });
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(
            up.is_some(),
            "docker-registry (Debian package) does not answer: {}",
            log()
        );
        let mut registry = Self {
            address,
            storage: dir.join("storage"),
            images: BTreeMap::new(),
            _keeper: keeper,
        };
        registry.fill();
        registry
    }

    /// A full reference.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The directory with everything that was pushed.
    pub(crate) fn storage(&self) -> &Path {
        &self.storage
    }

    /// What was pushed as `name:tag`.
    pub(crate) fn pushed(&self, name: &str) -> &Image {
        self.images
            .get(name)
            .unwrap_or_else(|| panic!("{name} was not pushed"))
    }

    /// Makes and pushes all images.
    fn fill(&mut self) {
        let settings = json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]});
        let base = busybox().pack(Packing::Gzip);
        let marked = |text: &str| {
            Contents::new()
                .file("etc/mark", 0o644, text.as_bytes())
                .pack(Packing::Gzip)
        };
        let oci = |layers: &[Layer]| Image::new(Dialect::Oci, layers, &settings);
        let docker = |layers: &[Layer]| Image::new(Dialect::Docker, layers, &settings);

        self.push("busybox:latest", oci(std::slice::from_ref(&base)));
        self.push("busybox:second", oci(std::slice::from_ref(&base)));
        self.push("copies/busybox:latest", oci(std::slice::from_ref(&base)));
        self.push("schema2:latest", docker(&[base.clone(), marked("schema2")]));
        let zstd = oci(&[busybox().pack(Packing::Zstd), marked("zstd")]);
        self.push_list("zstd:latest", Dialect::Oci, zstd, &settings);
        let plain = docker(&[busybox().pack(Packing::Plain), marked("plain")]);
        self.push_list("plain:latest", Dialect::Docker, plain, &settings);
        self.push("layered:latest", oci(&layered(&base)));
        let large = Contents::new()
            .file("large", 0o644, &noise(8 << 20, 7))
            .pack(Packing::Gzip);
        self.push("large:latest", oci(&[base.clone(), large]));
        let settings = json!({
            "User": "tester",
            "Env": ["PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"],
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["echo default"],
            "WorkingDir": "/home/made/for/it",
            "Labels": {"purpose": "settings"},
        });
        let configured = Image::new(Dialect::Oci, std::slice::from_ref(&base), &settings);
        self.push("configured:latest", configured);
        let settings = json!({
            "Cmd": ["httpd", "-f", "-p", "80", "-h", "/etc"],
            "Env": ["PATH=/bin"],
            "StopSignal": "SIGKILL",
        });
        self.push(
            "kubelet/web:latest",
            Image::new(Dialect::Oci, &[base], &settings),
        );
    }

    /// Pushes an image and a list that has it for this machine and another for a foreign one.
    fn push_list(&mut self, name: &str, dialect: Dialect, image: Image, settings: &Value) {
        let layer = Contents::new()
            .file("foreign", 0o644, b"not for us")
            .pack(Packing::Gzip);
        let foreign = Image::for_architecture(dialect, &[layer], settings, "s390x");
        let list = Image::list(dialect, &[(&foreign, "s390x"), (&image, architecture())]);
        let (repository, tag) = name.split_once(':').expect("name:tag");
        self.upload(repository, &foreign.digest(), &foreign);
        self.upload(repository, &image.digest(), &image);
        self.put_manifest(repository, tag, dialect.list(), &list);
        self.images.insert(name.into(), image);
    }

    fn push(&mut self, name: &str, image: Image) {
        let (repository, tag) = name.split_once(':').expect("name:tag");
        self.upload(repository, tag, &image);
        self.images.insert(name.into(), image);
    }

    /// Pushes an image of a test's own, under a name that no other test uses.
    pub(crate) fn upload(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image
            .layers
            .iter()
            .map(|layer| &layer.blob)
            .chain([&image.config])
        {
            self.put_blob(repository, blob);
        }
        self.put_manifest(repository, tag, image.dialect.manifest(), &image.manifest);
    }

    pub(crate) fn put_blob(&self, repository: &str, blob: &[u8]) {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = http(&self.address, "POST", &path, "", &[]).expect("the registry answers");
        let location = begun
            .location
            .unwrap_or_else(|| panic!("{path}: {}", begun.status));
        let path = location
            .trim_start_matches(&format!("http://{}", self.address))
            .to_owned();
        let path = format!("{path}&digest={}", digest(blob));
        let kind = "application/octet-stream";
        let sent = http(&self.address, "PUT", &path, kind, blob);
        assert_eq!(sent.expect("the registry answers").status, 201, "{path}");
    }

    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        manifest: &[u8],
    ) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let sent = http(&self.address, "PUT", &path, media_type, manifest);
        assert_eq!(sent.expect("the registry answers").status, 201, "{path}");
    }
}

/// Layers that change what lies below them, in every way a layer can.
fn layered(base: &Layer) -> [Layer; 4] {
    let below = Contents::new()
        .dir("data/", 0o750)
        .file("data/keep", 0o644, b"kept")
        .file("data/gone", 0o644, b"never seen")
        .dir("opaque/", 0o755)
        .file("opaque/old", 0o644, b"never seen")
        .dir("linked/", 0o755)
        .file("linked/a", 0o644, b"one inode")
        .pack(Packing::Gzip);
    let above = Contents::new()
        .file("data/.wh.gone", 0o644, b"")
        .dir("opaque/", 0o755)
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("opaque/new", 0o644, b"new")
        .hard_link("linked/b", "linked/a")
        .owned("owned", 0o640, (1234, 4321), b"not root's")
        .file("setuid", 0o4755, b"")
        .xattr("user.note", b"from a layer")
        .file("noted", 0o644, b"")
        .pack(Packing::Zstd);
    // No entry for `data/`: its mode must come from the layer below.
    let implicit = Contents::new()
        .file("data/deep/file", 0o644, b"deep")
        .pack(Packing::Plain);
    [base.clone(), below, above, implicit]
}

/// The part of an answer that pushing needs.
struct Answer {
    status: u16,
    location: Option<String>,
}

/// One HTTP/1.1 exchange on a connection of its own. `kind` is the media type that is sent, or that
/// is wanted.
fn http(address: &str, method: &str, path: &str, kind: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Accept: {kind}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    )?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let header = lines.find_map(|line| line.strip_prefix("Location: ").map(str::to_owned));
    status
        .map(|status| Answer {
            status,
            location: header,
        })
        .ok_or_else(|| io::Error::other(format!("no HTTP answer: {text}")))
}

#[test]
fn the_registry_serves_what_was_pushed() {
    let registry = registry();
    for (name, kind) in [
        ("busybox", Dialect::Oci.manifest()),
        ("schema2", Dialect::Docker.manifest()),
        ("zstd", Dialect::Oci.list()),
        ("plain", Dialect::Docker.list()),
    ] {
        let path = format!("/v2/{name}/manifests/latest");
        let answer = http(&registry.address, "HEAD", &path, kind, &[]).expect("an answer");
        assert_eq!(answer.status, 200, "{path}");
    }
    let image = registry.pushed("layered:latest");
    for layer in &image.layers {
        let path = format!("/v2/layered/blobs/{}", digest(&layer.blob));
        let answer = http(&registry.address, "HEAD", &path, "", &[]).expect("an answer");
        assert_eq!(answer.status, 200, "{path}");
    }
}
