//! Where the images of a registry host are really fetched: mirrors, schemes, certificates.
//!
//! Operators describe it in `certs.d/<host>/hosts.toml` (or `certs.d/_default/hosts.toml`), with
//! containerd's keys and meaning: each `[host."URL"]` in the order of the file, then `server`,
//! which is the host itself unless named. The file is read anew for every pull, so a change needs
//! no restart. Without a file: HTTPS, and plain HTTP for loopback addresses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::clients::Settings;
use super::error::ImageError;

/// One place to ask.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Ends in `/v2/`, or in whatever path the operator overrides that with.
    pub(super) base: Url,
    /// Host and port, for messages.
    pub(super) name: String,
    /// May turn a tag into a digest.
    pub(super) resolves: bool,
    /// May serve content by digest.
    pub(super) pulls: bool,
    /// Sent with every request.
    pub(super) headers: HeaderMap,
    /// The original host, told to a mirror as `?ns=`.
    pub(super) namespace: Option<String>,
    pub(super) client: Settings,
}

#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, HostTable>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<ClientCertificates>,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, OneOrMany>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientCertificates {
    /// One PEM file with certificate and key, or several.
    Files(OneOrMany),
    /// Certificate and key apart.
    Pairs(Vec<Vec<String>>),
}

/// The places to ask for images of `host`, in order; at least one.
///
/// # Errors
/// A `hosts.toml` that does not parse, or that names files that cannot be read.
pub(super) fn endpoints(certs_d: &Path, host: &str) -> Result<Vec<Endpoint>, ImageError> {
    for directory in directories(certs_d, host) {
        let path = directory.join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &path, host),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ImageError::Read { path, source }),
        }
    }
    let path = certs_d.to_owned();
    Ok(vec![upstream(host, &HostTable::default(), None, &path)?])
}

/// `host:port`, the same spelt for file systems without colons, and the default.
fn directories(certs_d: &Path, host: &str) -> Vec<PathBuf> {
    let mut found = vec![certs_d.join(host)];
    if let Some((name, port)) = host.rsplit_once(':') {
        found.push(certs_d.join(format!("{name}_{port}_")));
    }
    found.push(certs_d.join("_default"));
    found
}

pub(super) fn parse(text: &str, path: &Path, host: &str) -> Result<Vec<Endpoint>, ImageError> {
    let config = |detail: String| ImageError::HostConfig {
        path: path.to_owned(),
        detail,
    };
    let file: HostsFile = toml::from_str(text).map_err(|error| config(error.to_string()))?;
    // What belongs to `server` stands at the top level, beside it.
    let top: HostTable = toml::from_str(text).map_err(|error| config(error.to_string()))?;
    warn_of_unknown_keys(text, path);
    let mut hosts: Vec<_> = file.host.into_iter().collect();
    // Their order in the file is the order in which they are asked.
    hosts.sort_by_key(|(url, _)| url.span().start);
    let mut endpoints = Vec::new();
    for (url, table) in &hosts {
        endpoints.push(endpoint(url.get_ref(), host, table, path)?);
    }
    endpoints.push(upstream(host, &top, file.server.as_deref(), path)?);
    Ok(endpoints)
}

fn warn_of_unknown_keys(text: &str, path: &Path) {
    const TOP: [&str; 9] = [
        "server",
        "host",
        "capabilities",
        "ca",
        "client",
        "skip_verify",
        "override_path",
        "header",
        "dial_timeout",
    ];
    let Ok(table) = text.parse::<toml::Table>() else {
        return;
    };
    let hosts = table
        .get("host")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flatten();
    let keys = hosts
        .filter_map(|(_, value)| value.as_table())
        .flat_map(toml::Table::keys);
    for key in table
        .keys()
        .chain(keys)
        .filter(|key| !TOP.contains(&key.as_str()))
    {
        tracing::warn!(path = %path.display(), key, "unknown key in registry configuration");
    }
}

/// The host itself, or what the operator puts in its place.
fn upstream(
    host: &str,
    table: &HostTable,
    server: Option<&str>,
    path: &Path,
) -> Result<Endpoint, ImageError> {
    endpoint(server.unwrap_or(default_server(host)), host, table, path)
}

/// Docker Hub's registry lives at another name than its images.
fn default_server(host: &str) -> &str {
    match host {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

fn endpoint(
    address: &str,
    host: &str,
    table: &HostTable,
    path: &Path,
) -> Result<Endpoint, ImageError> {
    let config = |detail: String| ImageError::HostConfig {
        path: path.to_owned(),
        detail,
    };
    let with_scheme = match address.contains("://") {
        true => address.to_owned(),
        false if is_loopback(address) => format!("http://{address}"),
        false => format!("https://{address}"),
    };
    let mut base = Url::parse(&with_scheme)
        .map_err(|error| config(format!("{address:?} is not a URL: {error}")))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(config(format!("{address:?} is not an HTTP URL")));
    }
    let mut root = base.path().trim_end_matches('/').to_owned();
    if !table.override_path && !root.ends_with("/v2") {
        root.push_str("/v2");
    }
    base.set_path(&(root + "/"));
    let name = authority(&base);
    let namespace = (name != default_server(host)).then(|| host.to_owned());
    let can = |what: &str| {
        table
            .capabilities
            .as_ref()
            .is_none_or(|all| all.iter().any(|each| each == what))
    };
    Ok(Endpoint {
        name,
        resolves: can("resolve"),
        pulls: can("pull"),
        headers: headers(&table.header).map_err(config)?,
        namespace,
        client: settings(table, path)?,
        base,
    })
}

fn headers(table: &BTreeMap<String, OneOrMany>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in table {
        let bad = |_| format!("{name:?} is not a header that can be sent");
        for value in values.all() {
            let mut value = HeaderValue::from_str(value).map_err(|error| bad(error.to_string()))?;
            value.set_sensitive(true);
            let name = name
                .parse::<HeaderName>()
                .map_err(|error| bad(error.to_string()))?;
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// How to speak to a host. Reads the certificates it needs, relative to its `hosts.toml`.
fn settings(table: &HostTable, path: &Path) -> Result<Settings, ImageError> {
    let directory = path.parent().unwrap_or(path);
    let read = |name: &String| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| ImageError::Read { path, source })
    };
    let mut settings = Settings {
        skip_verify: table.skip_verify,
        ..Settings::default()
    };
    if let Some(text) = &table.dial_timeout {
        let timeout = go_duration(text).filter(|timeout| !timeout.is_zero());
        settings.dial_timeout = Some(timeout.ok_or_else(|| ImageError::HostConfig {
            path: path.to_owned(),
            detail: format!("dial_timeout {text:?} is no duration such as \"5s\" or \"1m30s\""),
        })?);
    }
    for name in table.ca.iter().flat_map(OneOrMany::all) {
        settings.roots.push(read(name)?);
    }
    let files: Vec<String> = match &table.client {
        None => Vec::new(),
        Some(ClientCertificates::Files(files)) => files.all().to_vec(),
        Some(ClientCertificates::Pairs(pairs)) => pairs.iter().flatten().cloned().collect(),
    };
    for name in files.iter().filter(|name| !name.is_empty()) {
        settings.identity.extend(read(name)?);
        settings.identity.push(b'\n');
    }
    Ok(settings)
}

/// A duration as Go writes it: numbers with units, `1m30s`, `1.5s`, `200ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    let mut rest = text;
    loop {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit());
        let (unit, further) = after.split_at(unit.unwrap_or(after.len()));
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(value.parse::<f64>().ok()? * seconds);
        sum = sum.checked_add(part.ok()?)?;
        if further.is_empty() {
            return Some(sum);
        }
        rest = further;
    }
}

/// The host of an address that may have a scheme and a path.
pub(super) fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// One name for each host: Docker Hub has three.
pub(super) fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Host and port as a person would write them.
pub(super) fn authority(url: &Url) -> String {
    match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    }
}

/// Whether `host`, with or without a port, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split([':', '/']).next().unwrap_or(host),
    };
    let address = name.parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: &str, host: &str) -> Result<Vec<Endpoint>, ImageError> {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join(host)).unwrap();
        std::fs::write(tmp.path().join(host).join("hosts.toml"), file).unwrap();
        std::fs::write(tmp.path().join(host).join("ca.pem"), "pem").unwrap();
        endpoints(tmp.path(), host)
    }

    fn urls(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().map(|each| each.base.as_str()).collect()
    }

    #[test]
    fn without_a_file_only_loopback_is_plain() {
        let none = Path::new("/nonexistent/certs.d");
        for (host, url) in [
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("a.b:5000", "https://a.b:5000/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.8.9.1:5000", "http://127.8.9.1:5000/v2/"),
            ("[::1]:5000", "http://[::1]:5000/v2/"),
            (
                "localhost.evil.example",
                "https://localhost.evil.example/v2/",
            ),
            (
                "127.0.0.1.evil.example",
                "https://127.0.0.1.evil.example/v2/",
            ),
        ] {
            let found = endpoints(none, host).unwrap();
            assert_eq!(urls(&found), [url]);
            assert_eq!(found[0].namespace, None);
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_then_the_server() {
        let file = r#"
            server = "https://upstream.example"
            unknown = 1
            [host."http://127.0.0.1:5000"]
            capabilities = ["pull", "resolve"]
            [host."https://a.example/path"]
            capabilities = ["pull"]
            skip_verify = true
            [host."b.example/exact"]
            override_path = true
            ca = "ca.pem"
            [host."b.example/exact".header]
            x-key = ["1", "2"]
        "#;
        let found = with(file, "registry.k8s.io").unwrap();
        let expected = [
            "http://127.0.0.1:5000/v2/",
            "https://a.example/path/v2/",
            "https://b.example/exact/",
            "https://upstream.example/v2/",
        ];
        assert_eq!(urls(&found), expected);
        assert_eq!(found[0].namespace.as_deref(), Some("registry.k8s.io"));
        assert!(found[0].resolves && !found[1].resolves && found[1].pulls);
        assert!(found[1].client.skip_verify && !found[0].client.skip_verify);
        assert_eq!(found[2].client.roots, [b"pem".to_vec()]);
        assert_eq!(found[2].headers.get_all("x-key").iter().count(), 2);
    }

    #[test]
    fn the_default_directory_serves_every_host_that_has_none() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("_default")).unwrap();
        let file = "[host.\"http://127.0.0.1:5000\"]\n";
        std::fs::write(tmp.path().join("_default/hosts.toml"), file).unwrap();
        let found = endpoints(tmp.path(), "quay.io").unwrap();
        assert_eq!(
            urls(&found),
            ["http://127.0.0.1:5000/v2/", "https://quay.io/v2/"]
        );
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("5s", Some(5000)),
            ("200ms", Some(200)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("5", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
        ] {
            assert_eq!(
                go_duration(text),
                expected.map(Duration::from_millis),
                "{text}"
            );
        }
        let found = with("dial_timeout = \"3s\"\n", "a.example").unwrap();
        let timeout = found[0].client.dial_timeout;
        assert_eq!(timeout, Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_broken_file_says_where() {
        for file in [
            "dial_timeout = \"soon\"",
            "server = 1",
            "[host.\"ftp://x\"]",
            "host = [",
            "[host.\"a\"]\nca = \"none.pem\"",
        ] {
            let error = with(file, "a.example").unwrap_err().to_string();
            assert!(error.contains("a.example/"), "{error}");
        }
    }
}
