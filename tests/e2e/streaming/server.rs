//! The server of sessions: TLS, idle sessions, and what is counted.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures_util::SinkExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tokio_tungstenite::tungstenite::Message;

use crate::support::certificate;
use crate::support::operator::said;
use crate::support::prometheus::Page;
use crate::support::streaming::{Spdy, http, message, place, run, websocket_on};
use crate::support::{Node, eventually, in_time, process};

/// A client that trusts the authority in this file alone.
fn connector(authority: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(authority).expect("a certificate");
    roots.add(trusted).expect("an authority");
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn with_a_certificate_sessions_are_served_over_tls_alone() {
    let mut node = Node::prepare("");
    let dir = node.path("tls");
    fs::create_dir(&dir).expect("a directory");
    certificate::authority(&dir, "authority");
    certificate::signed(&dir, "authority", "node", "subjectAltName=IP:127.0.0.1\n");
    let [chain, key] = ["node.pem", "node.key"].map(|name| dir.join(name).display().to_string());
    node.configure(&format!(
        "[streaming]\ntls_certificate = \"{chain}\"\ntls_key = \"{key}\"\n"
    ));
    node.restart().await;
    let pod = node.pod("tls").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["cat"], false).await;
    let plain = url.replacen("https://", "http://", 1);
    assert_ne!(url, plain, "{url}");
    let (address, path) = place(&plain);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let plain_answer = http(address, &request).await.1;
    assert!(!plain_answer.contains("HTTP"), "{plain_answer}");
    let socket = in_time("a connection", TcpStream::connect(address)).await;
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let connecting = connector(&dir.join("authority.pem"));
    let connecting = connecting.connect(name, socket.expect("it listens"));
    let stream = in_time("TLS", connecting)
        .await
        .expect("a certificate that is trusted");
    let mut socket = websocket_on(stream, &plain, "v5.channel.k8s.io").await;
    let sent = async {
        socket.send(Message::binary(b"\0over TLS".to_vec())).await?;
        socket.send(Message::binary(vec![255, 0])).await
    };
    in_time("it is sent", sent).await.expect("sent");
    let mut output = Vec::new();
    while let Some(message) = message(&mut socket).await {
        let payload = message.into_data();
        if payload[0] == 1 {
            output.extend_from_slice(&payload[1..]);
        }
    }
    assert_eq!(output, b"over TLS");
}

#[tokio::test]
async fn an_idle_session_is_ended_with_its_command_and_sessions_are_counted() {
    let mut node = Node::prepare("[streaming]\nidle_timeout_s = 1\n");
    node.restart().await;
    let pod = node.pod("idle").await;
    let id = pod.idle("main").await;
    let url = node.exec_url(&id, &["sleep", "86406"], false).await;
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let types = ["error", "stdin", "stdout", "stderr"];
    let streams = client.open_all(&types).await;
    let content = client.finish().await;
    let status = String::from_utf8_lossy(&content[&streams[0]]).into_owned();
    assert!(status.contains("nothing has moved"), "{status}");
    eventually("the command is gone", || async {
        process::of_containers(&node.names, "86406")
            .is_empty()
            .then_some(())
    })
    .await;
    let url = node.exec_url(&id, &["cat"], false).await;
    assert_eq!(run(&url, b"seven b").await.stdout, b"seven b");
    let (address, used) = place(&url);
    let request = format!("GET {used} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(http(address, &request).await.1.starts_with("HTTP/1.1 404 "));
    let exec = [("kind", "exec")];
    let page = eventually("both sessions have ended", || async {
        let page = Page::read(&said(&node.operate(&["metrics"])));
        let ended = page.get("quilt_session_duration_seconds_count", &exec);
        (ended == Some(2.0)).then_some(page)
    })
    .await;
    assert_eq!(page.get("quilt_sessions", &exec), Some(0.0));
    let bytes = |direction| {
        let labels = [("kind", "exec"), ("direction", direction)];
        page.get("quilt_session_bytes_total", &labels)
    };
    assert_eq!(bytes("received"), Some(7.0));
    assert!(bytes("sent") > Some(7.0), "the output and both endings");
    let refused = page.get("quilt_sessions_refused_total", &[("reason", "token")]);
    assert_eq!(refused, Some(1.0));
}
