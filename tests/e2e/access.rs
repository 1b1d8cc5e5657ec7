//! Who may pull: registries behind passwords, tokens and certificates, all of them real.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::json;
use tonic::{Code, Status};

use crate::pull::refused;
use crate::support::cri::{AuthConfig, ImageSpec, PullImageRequest};
use crate::support::guarded::{Guarded, NAME, PASSWORD, Tunnel, USER};
use crate::support::image::{Dialect, Image};
use crate::support::layer::{Contents, Packing, noise};
use crate::support::proxy::{Fault, Proxy};
use crate::support::token::{Asked, IDENTITY, LEEWAY_S, SERVICE};
use crate::support::{Cri, Node, eventually, in_time, registry};

async fn pull_as(cri: &Cri, image: &str, auth: AuthConfig) -> Result<String, Status> {
    let image = ImageSpec {
        image: image.into(),
        ..Default::default()
    };
    let message = PullImageRequest {
        image: Some(image),
        auth: Some(auth),
        ..Default::default()
    };
    let answer = cri.image().pull_image(cri.wrap(message)).await?;
    Ok(answer.into_inner().image_ref)
}

fn known(password: &str) -> AuthConfig {
    AuthConfig {
        username: USER.into(),
        password: password.into(),
        ..Default::default()
    }
}

/// What the operator says of a host that is spoken to over TLS.
fn trust(certs: &Path, host: &str, lines: &str) {
    fs::create_dir_all(certs.join(host)).expect("a directory");
    let text = format!("server = \"https://{host}\"\n{lines}\n");
    fs::write(certs.join(host).join("hosts.toml"), text).expect("a file");
}

#[tokio::test]
async fn a_registry_with_tls_and_a_password_opens_to_the_right_ones_only() {
    let guarded = Guarded::start();
    let host = guarded.address.as_str();
    let mut node = Node::prepare("");
    let (certs, file) = (node.path("certs.d"), node.path("config.json"));
    node.configure(&format!(
        "[image]\ncerts_d = {certs:?}\ncredentials_file = {file:?}\n"
    ));
    let tunnel = Tunnel::start(host);
    node.env.push(("HTTPS_PROXY".into(), tunnel.url.clone()));
    node.spawn();
    node.answers().await;
    let image = format!("{host}/busybox:latest");
    let trust = |host: &str, lines: &str| trust(&certs, host, lines);

    trust(host, "");
    let error = refused(
        pull_as(&node.cri, &image, known(PASSWORD)).await,
        "no authority",
    );
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    trust(host, &format!("ca = {:?}", guarded.authority()));
    for (what, auth) in [
        ("nothing", AuthConfig::default()),
        ("a wrong password", known("hunter2")),
        (
            "another server's password",
            AuthConfig {
                server_address: "https://other.test".into(),
                ..known(PASSWORD)
            },
        ),
    ] {
        let error = refused(pull_as(&node.cri, &image, auth).await, what);
        assert_eq!(error.code(), Code::Unauthenticated, "{what}: {error}");
        assert!(error.message().contains(host), "{what}: {error}");
        assert!(!error.message().contains("hunter2"), "{what}: {error}");
    }
    let encoded = AuthConfig {
        auth: "dXNlcjpzZWNyZXQ=".into(),
        server_address: format!("https://{host}/v2/"),
        ..Default::default()
    };
    pull_as(&node.cri, &image, encoded)
        .await
        .expect("PullImage");
    assert_eq!(
        tunnel.connections(),
        0,
        "this machine is reached without a proxy"
    );

    // From here on by the operator's file, and by a name that only the proxy knows.
    trust(NAME, "skip_verify = true");
    let far = format!("{NAME}/schema2:latest");
    let error = refused(node.cri.pull(&far).await, "no credentials");
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    let auths = json!({"auths": {"*.test": {"auth": "dXNlcjpzZWNyZXQ="}}});
    fs::write(&file, auths.to_string()).expect("a file");
    trust(NAME, &format!("ca = {:?}", guarded.authority()));
    node.cri.pull(&far).await.expect("PullImage");
    assert!(tunnel.connections() > 0, "the proxy was passed by");
    let status = node.cri.image_status(&far).await.expect("ImageStatus");
    assert_eq!(
        status.expect("present").id,
        registry().pushed("schema2:latest").id()
    );
    let log = fs::read_to_string(node.path("daemon.log")).expect("the daemon's log");
    for secret in ["hunter2", PASSWORD, "dXNlcjpzZWNyZXQ"] {
        assert!(!log.contains(secret), "the log has {secret:?}");
    }
}

/// Whether a registry still opens a repository to this token.
fn is_open(address: &str, repository: &str, token: &str) -> bool {
    let mut stream = TcpStream::connect(address).expect("the registry listens");
    let request = format!(
        "GET /v2/{repository}/tags/list HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    match answer.split(' ').nth(1) {
        Some("200") => true,
        Some("401") => false,
        _ => panic!("{answer}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_by_scope_and_anew_when_they_expire() {
    let (guarded, tokens) = Guarded::for_tokens();
    let mut node = Node::prepare("[image]\nkeep_from_bytes = 4194304\n");
    node.restart().await;
    // Two pieces, and the first is longer than what the proxy lets through at once.
    let large = Contents::new().file("large", 0o644, &noise(9 << 20, 12));
    let image = Image::new(Dialect::Oci, &[large.pack(Packing::Gzip)], &json!({}));
    registry().upload("tokens/large", "latest", &image);
    let proxy = Proxy::start(&guarded.address, Fault::Hold);
    let scope = "repository:tokens/large:pull";
    let name = format!("{}/tokens/large:latest", proxy.address);
    for (what, auth) in [
        ("nothing", AuthConfig::default()),
        ("a wrong password", known("hunter2")),
    ] {
        let error = refused(pull_as(&node.cri, &name, auth).await, what);
        assert_eq!(error.code(), Code::Unauthenticated, "{what}: {error}");
        assert!(error.message().contains(&proxy.address), "{what}: {error}");
        let asked = tokens.asked();
        assert!(asked.iter().all(|one| one.given.is_none()), "{asked:?}");
    }

    // It holds for three seconds, in which nothing of the large layer can go on.
    tokens.lifetime(3 - LEEWAY_S);
    let pull = tokio::spawn({
        let (cri, name) = (node.cri.clone(), name.clone());
        async move { pull_as(&cri, &name, known(PASSWORD)).await }
    });
    proxy.wait_until_holding();
    let before = tokens.asked();
    let first = before
        .last()
        .and_then(|one| one.given.clone())
        .expect("a token");
    eventually("the token expires", || async {
        (!is_open(&guarded.address, "tokens/large", &first)).then_some(())
    })
    .await;
    tokens.lifetime(300);
    proxy.release();
    let pulled = in_time("the pull", pull).await.expect("the caller");
    assert_eq!(pulled.expect("PullImage"), image.id());
    let after = tokens.asked();
    assert!(!after.is_empty(), "the expired token was not replaced");
    for one in before.iter().chain(&after) {
        assert_eq!(one.method, "GET");
        assert_eq!(one.get("service"), Some(SERVICE), "{one:?}");
        assert_eq!(one.get("scope"), Some(scope), "{one:?}");
        assert_eq!(one.get("account"), Some(USER), "{one:?}");
    }
}

#[tokio::test]
async fn identity_and_registry_tokens_open_what_they_are_for() {
    let (guarded, tokens) = Guarded::for_tokens();
    let node = Node::start().await;
    let host = guarded.address.as_str();
    let name = format!("{host}/schema2:latest");
    let identity = |token: &str| AuthConfig {
        identity_token: token.into(),
        ..Default::default()
    };
    let error = pull_as(&node.cri, &name, identity("another")).await;
    let error = refused(error, "another identity token");
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    tokens.asked();
    let pulled = pull_as(&node.cri, &name, identity(IDENTITY)).await;
    let id = registry().pushed("schema2:latest").id();
    assert_eq!(pulled.expect("PullImage"), id);
    let asked: Vec<Asked> = tokens.asked();
    assert!(!asked.is_empty());
    for one in &asked {
        assert_eq!(one.method, "POST");
        assert_eq!(one.get("scope"), Some("repository:schema2:pull"), "{one:?}");
    }

    let given = |token: String| AuthConfig {
        registry_token: token,
        ..Default::default()
    };
    let other = tokens.token("repository:busybox:pull");
    let error = pull_as(&node.cri, &format!("{host}/zstd:latest"), given(other)).await;
    let error = refused(error, "a token for another repository");
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    let right = tokens.token("repository:zstd:pull");
    let pulled = pull_as(&node.cri, &format!("{host}/zstd:latest"), given(right)).await;
    let id = registry().pushed("zstd:latest").id();
    assert_eq!(pulled.expect("PullImage"), id);
    assert_eq!(tokens.asked(), [], "what was given is sent as it is");
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_gets_the_operators() {
    let guarded = Guarded::for_certificates();
    let host = guarded.address.as_str();
    let mut node = Node::prepare("");
    let certs = node.path("certs.d");
    node.configure(&format!("[image]\ncerts_d = {certs:?}\n"));
    node.restart().await;
    let name = format!("{host}/schema2:latest");
    let ca = format!("ca = {:?}\n", guarded.authority());
    let [client, key, stranger, strange_key] =
        ["client.pem", "client.key", "stranger.pem", "stranger.key"].map(|file| guarded.file(file));
    for (what, lines) in [
        ("no certificate", String::new()),
        (
            "a stranger's",
            format!("client = [[{stranger:?}, {strange_key:?}]]\n"),
        ),
    ] {
        trust(&certs, host, &format!("{ca}{lines}"));
        let error = refused(node.cri.pull(&name).await, what);
        assert_eq!(error.code(), Code::Unavailable, "{what}: {error}");
        assert!(error.message().contains(host), "{what}: {error}");
    }
    // As containerd's operators write it: a pair of files, or both in one.
    let both = node.path("both.pem");
    let read = |path: &str| fs::read_to_string(path).expect("a file");
    fs::write(&both, read(&client) + &read(&key)).expect("a file");
    for lines in [
        format!("client = [[{client:?}, {key:?}]]\n"),
        format!("client = {both:?}\n"),
    ] {
        trust(&certs, host, &format!("{ca}{lines}"));
        let id = node.cri.pull(&name).await.expect("PullImage");
        assert_eq!(id, registry().pushed("schema2:latest").id());
        node.cri.remove_image(&name).await.expect("RemoveImage");
    }
}
