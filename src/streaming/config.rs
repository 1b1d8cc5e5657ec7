//! `[streaming]`: where sessions are served, and how many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// `[streaming]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamingConfig {
    /// Address and port; port 0 is a free one.
    pub listen: String,
    /// The certificate chain in PEM; with it sessions are served over TLS.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key in PEM.
    pub tls_key: Option<PathBuf>,
    /// Sessions at once.
    pub max_sessions: usize,
    /// Seconds without a byte in either direction after which a session is ended.
    pub idle_timeout_s: u64,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            tls_certificate: None,
            tls_key: None,
            max_sessions: 4096,
            // What kubelet has as well.
            idle_timeout_s: 4 * 3600,
        }
    }
}

impl StreamingConfig {
    /// Checks what can be checked without the machine.
    ///
    /// # Errors
    /// The key and what is wrong with its value.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        self.address().map_err(|why| ("streaming.listen", why))?;
        if self.max_sessions == 0 {
            return Err(("streaming.max_sessions", "must not be 0".into()));
        }
        if self.idle_timeout_s == 0 {
            return Err(("streaming.idle_timeout_s", "must not be 0".into()));
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            let why = "tls_certificate and tls_key go together";
            return Err(("streaming.tls_key", why.into()));
        }
        Ok(())
    }

    /// Where to listen.
    ///
    /// # Errors
    /// Why the text is no address.
    pub fn address(&self) -> Result<SocketAddr, String> {
        let listen = &self.listen;
        let parsed = listen.parse();
        parsed
            .map_err(|_| format!("{listen:?} is not an IP address and a port, such as 127.0.0.1:0"))
    }

    /// The idle time-out as a duration.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_s)
    }
}

/// The beginning of every URL: clients on this node find a server that listens on all addresses by
/// the loopback one.
pub(super) fn base_url(bound: SocketAddr, tls: bool) -> String {
    let ip = match bound.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(ip, bound.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_absolute_and_reachable() {
        let url = |text: &str, tls| base_url(text.parse().unwrap(), tls);
        assert_eq!(url("127.0.0.1:80", false), "http://127.0.0.1:80");
        assert_eq!(url("0.0.0.0:80", false), "http://127.0.0.1:80");
        assert_eq!(url("[::]:80", true), "https://[::1]:80");
        assert_eq!(url("10.0.0.1:80", true), "https://10.0.0.1:80");
    }

    #[test]
    fn impossible_values_are_named() {
        let key = |change: fn(&mut StreamingConfig)| {
            let mut config = StreamingConfig::default();
            change(&mut config);
            config.validate().err().map(|(key, _)| key)
        };
        assert_eq!(key(|_| {}), None);
        assert_eq!(
            key(|c| c.listen = "localhost".into()),
            Some("streaming.listen")
        );
        assert_eq!(key(|c| c.max_sessions = 0), Some("streaming.max_sessions"));
        assert_eq!(
            key(|c| c.idle_timeout_s = 0),
            Some("streaming.idle_timeout_s")
        );
        assert_eq!(
            key(|c| c.tls_key = Some("k".into())),
            Some("streaming.tls_key")
        );
    }
}
