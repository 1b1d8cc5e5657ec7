//! A token server, as the distribution project describes one ("Token Authentication
//! Specification"; for identity tokens "OAuth2 Token Authentication"), whose tokens a real
//! `docker-registry` verifies.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::certificate::openssl;
use super::guarded::{PASSWORD, USER};

/// Who the tokens say that they are from.
pub(crate) const ISSUER: &str = "quilt-test-issuer";
/// Whom they are for.
pub(crate) const SERVICE: &str = "quilt-test-registry";
/// What opens in place of user and password.
pub(crate) const IDENTITY: &str = "an identity token";
/// A registry takes an expired token for so many seconds longer (`registry/auth/token`, `Leeway`).
pub(crate) const LEEWAY_S: i64 = 60;

/// A request for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Query or form: names and values.
    pub(crate) pairs: Vec<(String, String)>,
    /// The token that it was answered with, if it was given one.
    pub(crate) given: Option<String>,
}

impl Asked {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Listens until the process ends: a listener has no other way to be told.
pub(crate) struct TokenServer {
    /// The URL of its tokens.
    pub(crate) realm: String,
    signer: Signer,
    asked: Arc<Mutex<Vec<Asked>>>,
    lifetime_s: Arc<AtomicI64>,
}

impl TokenServer {
    /// `dir` gets its key and certificate, `issuer.pem`.
    pub(crate) fn start(dir: &Path) -> Self {
        let signer = Signer::new(dir);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (asked, lifetime_s) = (Arc::default(), Arc::new(AtomicI64::new(300)));
        let server = Self {
            realm: format!("http://{address}/token"),
            signer: signer.clone(),
            asked: Arc::clone(&asked),
            lifetime_s: Arc::clone(&lifetime_s),
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let lifetime = lifetime_s.load(Ordering::SeqCst);
                if let Ok(one) = answer(&stream, &signer, lifetime) {
                    lock(&asked).push(one);
                }
            }
        });
        server
    }

    /// How long tokens hold from now on, by their own word.
    pub(crate) fn lifetime(&self, seconds: i64) {
        self.lifetime_s.store(seconds, Ordering::SeqCst);
    }

    /// All requests since the last time that somebody asked.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut lock(&self.asked))
    }

    /// A token that nobody has asked for.
    pub(crate) fn token(&self, scope: &str) -> String {
        self.signer.token(scope, 300)
    }
}

fn lock(asked: &Mutex<Vec<Asked>>) -> std::sync::MutexGuard<'_, Vec<Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut stream: &TcpStream, signer: &Signer, lifetime_s: i64) -> io::Result<Asked> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let (mut length, mut shown) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
            "authorization" => value.trim().clone_into(&mut shown),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let query = match method.as_str() {
        "POST" => String::from_utf8_lossy(&body).into_owned(),
        _ => path
            .split_once('?')
            .map_or("", |(_, query)| query)
            .to_owned(),
    };
    let mut asked = Asked {
        method,
        pairs: query.split('&').filter_map(pair).collect(),
        given: None,
    };
    let basic = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let opens = match asked.method.as_str() {
        "POST" => {
            asked.get("grant_type") == Some("refresh_token")
                && asked.get("refresh_token") == Some(IDENTITY)
        }
        _ => shown == basic,
    };
    let scope = asked.get("scope").unwrap_or_default();
    asked.given = opens.then(|| signer.token(scope, lifetime_s));
    let (status, body) = match (&asked.given, asked.method.as_str()) {
        (None, _) => ("401 Unauthorized", json!({})),
        (Some(token), "POST") => ("200 OK", json!({"access_token": token})),
        (Some(token), _) => ("200 OK", json!({"token": token})),
    };
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    Ok(asked)
}

/// A name and a value of a query (URL Standard, application/x-www-form-urlencoded).
fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let decoded = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let digits = [rest.next()?, rest.next()?];
                    let digits = std::str::from_utf8(&digits).ok()?.to_owned();
                    u8::from_str_radix(&digits, 16).ok()?
                }
                other => other,
            });
        }
        String::from_utf8(bytes).ok()
    };
    Some((decoded(name)?, decoded(value)?))
}

/// Makes JSON Web Tokens (RFC 7519) with RS256.
#[derive(Debug, Clone)]
struct Signer {
    dir: PathBuf,
    /// The certificate, as `x5c` has it.
    certificate: String,
}

impl Signer {
    fn new(dir: &Path) -> Self {
        let ask = ["req", "-x509", "-days", "2", "-subj", "/CN=issuer"];
        let key = ["-newkey", "rsa:2048", "-nodes"];
        let into = ["-keyout", "issuer.key", "-out", "issuer.pem"];
        openssl(dir, &[&ask[..], &key, &into].concat(), b"");
        let der = openssl(dir, &["x509", "-in", "issuer.pem", "-outform", "DER"], b"");
        Self {
            dir: dir.to_owned(),
            certificate: STANDARD.encode(der),
        }
    }

    /// What `scope` asks for, all of it.
    fn token(&self, scope: &str, lifetime_s: i64) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = i64::try_from(since.expect("a clock").as_secs()).expect("a time");
        let access: Vec<Value> = scope
            .split(' ')
            .filter_map(|one| {
                let (kind, rest) = one.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let actions: Vec<&str> = actions.split(',').collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": USER, "jti": "1",
            "iat": now - 600, "nbf": now - 600, "exp": now + lifetime_s,
            "access": access,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let sign = ["dgst", "-sha256", "-sign", "issuer.key"];
        let signature = openssl(&self.dir, &sign, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
