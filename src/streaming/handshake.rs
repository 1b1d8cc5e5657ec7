//! What a request wants to become, and what it is answered. Pure.
//!
//! The rules are those of Kubernetes' own servers, so that what works with other runtimes works
//! here: a SPDY client names its protocols in `X-Stream-Protocol-Version`, a WebSocket client in
//! `Sec-WebSocket-Protocol`; a SPDY client that names none speaks the oldest.

use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::websocket::channels::Subprotocol;

/// Where a SPDY client names its protocols and a server its choice.
const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What could have been chosen, for a client that offers nothing of it.
pub(super) const ACCEPTED: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Port-forward over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// The same inside the messages of a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The versions of exec and attach over SPDY, best first.
const VERSIONS: [(&str, u8); 4] = [
    ("v4.channel.k8s.io", 4),
    ("v3.channel.k8s.io", 3),
    ("v2.channel.k8s.io", 2),
    ("channel.k8s.io", 1),
];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Exec and attach: one process, its streams.
    Process,
    /// Port-forward: many connections.
    PortForward,
}

/// How it is to be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// Streams of SPDY/3.1, in this version of Kubernetes' protocol.
    Spdy(u8),
    /// Channels in the messages of a WebSocket.
    WebSocket(Subprotocol),
    /// Streams of SPDY/3.1 in the messages of a WebSocket.
    Tunnel,
}

/// Why a request does not become a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// It does not ask to be upgraded.
    #[error("unable to upgrade: neither SPDY/3.1 nor a WebSocket is asked for")]
    NoUpgrade,
    /// It is no WebSocket handshake.
    #[error("bad WebSocket handshake: {0}")]
    WebSocket(&'static str),
    /// Nothing of what the client offers is spoken.
    #[error("unable to upgrade: of the offered protocols none is spoken")]
    NoProtocol {
        /// What is spoken.
        spoken: Vec<&'static str>,
    },
}

/// The transport that a request with these headers gets, and the headers of the answer.
pub(super) fn negotiate(
    headers: &HeaderMap,
    kind: Kind,
) -> Result<(Transport, Vec<(HeaderName, HeaderValue)>), Refused> {
    if !words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(Refused::NoUpgrade);
    }
    let wanted = |name: &str| words(headers, &UPGRADE).any(|word| word.eq_ignore_ascii_case(name));
    if wanted("websocket") {
        return websocket(headers, kind);
    }
    if wanted("SPDY/3.1") {
        return spdy(headers, kind);
    }
    Err(Refused::NoUpgrade)
}

/// Comma-separated words of all headers of a name.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let words = texts.flat_map(|text| text.split(','));
    words.map(str::trim).filter(|word| !word.is_empty())
}

fn websocket(
    headers: &HeaderMap,
    kind: Kind,
) -> Result<(Transport, Vec<(HeaderName, HeaderValue)>), Refused> {
    if words(headers, &SEC_WEBSOCKET_VERSION).next() != Some("13") {
        return Err(Refused::WebSocket("its version is not 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or(Refused::WebSocket("it has no key"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let accept = accept.map_err(|_| Refused::WebSocket("its key is none"))?;
    let offered: Vec<&str> = words(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    let (transport, chosen) = if kind == Kind::PortForward && offered.contains(&TUNNEL) {
        (Transport::Tunnel, TUNNEL)
    } else {
        let none = || Refused::NoProtocol {
            spoken: Subprotocol::spoken().collect(),
        };
        let protocol = Subprotocol::choose(offered).ok_or_else(none)?;
        (Transport::WebSocket(protocol), protocol.name())
    };
    let mut answer = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    if !chosen.is_empty() {
        answer.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen)));
    }
    Ok((transport, answer))
}

fn spdy(
    headers: &HeaderMap,
    kind: Kind,
) -> Result<(Transport, Vec<(HeaderName, HeaderValue)>), Refused> {
    let offered: Vec<&str> = words(headers, &PROTOCOL).collect();
    let known: &[(&str, u8)] = match kind {
        Kind::Process => &VERSIONS,
        Kind::PortForward => &[(PORT_FORWARD, 1)],
    };
    let mut answer = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("SPDY/3.1")),
    ];
    if offered.is_empty() {
        return Ok((Transport::Spdy(1), answer));
    }
    let chosen = known.iter().find(|(name, _)| offered.contains(name));
    let Some((name, version)) = chosen else {
        let spoken = known.iter().map(|(name, _)| *name).collect();
        return Err(Refused::NoProtocol { spoken });
    };
    answer.push((PROTOCOL, HeaderValue::from_static(name)));
    Ok((Transport::Spdy(*version), answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn spdy_headers(offered: &[&str]) -> HeaderMap {
        let mut pairs = vec![(CONNECTION, "Upgrade"), (UPGRADE, "SPDY/3.1")];
        pairs.extend(offered.iter().map(|name| (PROTOCOL, *name)));
        headers(&pairs)
    }

    fn websocket_headers(offered: &str) -> HeaderMap {
        headers(&[
            (CONNECTION, "keep-alive, upgrade"),
            (UPGRADE, "WebSocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
            (SEC_WEBSOCKET_PROTOCOL, offered),
        ])
    }

    #[test]
    fn spdy_takes_the_best_of_what_is_offered_in_one_header_or_many() {
        for offered in [
            &["v2.channel.k8s.io", "v4.channel.k8s.io"][..],
            &["v4.channel.k8s.io, v3"],
        ] {
            let (transport, answer) = negotiate(&spdy_headers(offered), Kind::Process).unwrap();
            assert_eq!(transport, Transport::Spdy(4));
            assert_eq!(answer.last().unwrap().1, "v4.channel.k8s.io");
        }
        let (transport, answer) = negotiate(&spdy_headers(&[]), Kind::Process).unwrap();
        assert_eq!((transport, answer.len()), (Transport::Spdy(1), 2));
    }

    #[test]
    fn what_is_not_spoken_is_refused_with_what_is() {
        let refused = negotiate(&spdy_headers(&["v9"]), Kind::PortForward).unwrap_err();
        let spoken = vec![PORT_FORWARD];
        assert_eq!(refused, Refused::NoProtocol { spoken });
        let chat = negotiate(&websocket_headers("chat"), Kind::Process);
        assert!(matches!(chat, Err(Refused::NoProtocol { .. })));
        // A tunnel is for ports alone.
        let tunnel = negotiate(&websocket_headers(TUNNEL), Kind::Process);
        assert!(matches!(tunnel, Err(Refused::NoProtocol { .. })));
    }

    #[test]
    fn a_websocket_is_answered_as_the_rfc_says() {
        let offered = "v4.channel.k8s.io, v5.channel.k8s.io";
        let (transport, answer) = negotiate(&websocket_headers(offered), Kind::Process).unwrap();
        assert!(matches!(transport, Transport::WebSocket(p) if p.name() == "v5.channel.k8s.io"));
        let accept = answer.iter().find(|(name, _)| name == SEC_WEBSOCKET_ACCEPT);
        // The example of RFC 6455, section 1.3.
        assert_eq!(accept.unwrap().1, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let tunnel = negotiate(&websocket_headers(TUNNEL), Kind::PortForward).unwrap();
        assert_eq!(tunnel.0, Transport::Tunnel);
    }

    #[test]
    fn half_a_handshake_is_none() {
        let plain = headers(&[(UPGRADE, "SPDY/3.1")]);
        assert_eq!(negotiate(&plain, Kind::Process), Err(Refused::NoUpgrade));
        let other = headers(&[(CONNECTION, "upgrade"), (UPGRADE, "h2c")]);
        assert_eq!(negotiate(&other, Kind::Process), Err(Refused::NoUpgrade));
        for missing in [SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION] {
            let mut headers = websocket_headers("v4.channel.k8s.io");
            headers.remove(missing);
            let refused = negotiate(&headers, Kind::Process);
            assert!(matches!(refused, Err(Refused::WebSocket(_))));
        }
    }
}
