//! HTTP clients: one for plain HTTP, one for TLS with the system's roots, and one for each further
//! set of certificates.
//!
//! Built when first needed, for reading the system's roots takes a while and fails on machines that
//! have none. No client follows redirects by itself: the registry code does, and decides what is
//! sent along.

use std::collections::HashMap;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, redirect};

/// What is particular about the TLS of one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct TlsSettings {
    /// Accept any certificate: the operator said so.
    pub(super) skip_verify: bool,
    /// PEM files of further authorities.
    pub(super) roots: Vec<Vec<u8>>,
    /// PEM of client certificate and key; empty is none.
    pub(super) identity: Vec<u8>,
}

/// Which client is meant.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Plain,
    Tls(TlsSettings),
}

/// Builds clients once.
#[derive(Debug)]
pub(super) struct Clients {
    connect_timeout: Duration,
    built: Mutex<HashMap<Key, Client>>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration) -> Self {
        static PROVIDER: Once = Once::new();
        // Fails only if somebody else in this process has installed one, which serves as well.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        Self {
            connect_timeout,
            built: Mutex::new(HashMap::new()),
        }
    }

    /// For plain HTTP, and only that: it trusts no certificate.
    pub(super) fn plain(&self) -> reqwest::Result<Client> {
        self.get(Key::Plain)
    }

    /// For HTTPS.
    pub(super) fn tls(&self, settings: &TlsSettings) -> reqwest::Result<Client> {
        self.get(Key::Tls(settings.clone()))
    }

    fn get(&self, key: Key) -> reqwest::Result<Client> {
        let lock = || self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = lock().get(&key) {
            return Ok(client.clone());
        }
        // Reads files: not under the lock. Two threads may build one; the last is kept.
        let client = self.build(&key)?;
        lock().insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, key: &Key) -> reqwest::Result<Client> {
        let builder = Client::builder()
            .user_agent(concat!("quilt/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .redirect(redirect::Policy::none());
        match key {
            Key::Plain => builder.no_proxy().tls_certs_only([]).build(),
            Key::Tls(settings) => {
                let mut builder = builder.tls_danger_accept_invalid_certs(settings.skip_verify);
                for pem in &settings.roots {
                    builder = builder.tls_certs_merge(Certificate::from_pem_bundle(pem)?);
                }
                if !settings.identity.is_empty() {
                    builder = builder.identity(Identity::from_pem(&settings.identity)?);
                }
                builder.build()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_built_once_per_kind() {
        let clients = Clients::new(Duration::from_secs(1));
        clients.plain().unwrap();
        clients.plain().unwrap();
        let skip = TlsSettings {
            skip_verify: true,
            ..TlsSettings::default()
        };
        clients.tls(&skip).unwrap();
        assert_eq!(clients.built.lock().unwrap().len(), 2);
        let broken = TlsSettings {
            identity: b"no key".to_vec(),
            ..TlsSettings::default()
        };
        assert!(clients.tls(&broken).is_err());
    }
}
