//! HTTP clients: one for each way of speaking to a host, built when first needed, for reading the
//! system's roots takes a while and fails on machines that have none.
//!
//! No client follows redirects by itself: the registry code does, and decides what is sent along.
//! Proxies are those of the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, also
//! in lowercase); this machine itself is never reached through one.

use std::collections::HashMap;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, NoProxy, Proxy, Url, redirect};

use super::hosts::{authority, is_loopback};

/// What is particular about one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    /// Accept any certificate: the operator said so.
    pub(super) skip_verify: bool,
    /// PEM files of further authorities.
    pub(super) roots: Vec<Vec<u8>>,
    /// PEM of client certificate and key; empty is none.
    pub(super) identity: Vec<u8>,
    /// Bound on making a connection, other than the configured one.
    pub(super) dial_timeout: Option<Duration>,
}

/// Which client is meant.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    /// It trusts no certificate, and needs none.
    plain: bool,
    /// Past every proxy.
    direct: bool,
    settings: Settings,
}

/// The proxies of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain HTTP.
    pub http: Option<String>,
    /// For HTTPS.
    pub https: Option<String>,
    /// Hosts, domains, addresses and CIDR ranges that are reached without, separated by commas.
    pub except: Option<String>,
}

impl Proxies {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in lowercase.
    #[must_use]
    pub fn from_environment() -> Self {
        let variable = |name: &str| {
            let values = [name.to_owned(), name.to_ascii_lowercase()];
            let values = values.iter().filter_map(|name| std::env::var(name).ok());
            values.into_iter().find(|value| !value.is_empty())
        };
        let any = variable("ALL_PROXY");
        Self {
            http: variable("HTTP_PROXY").or_else(|| any.clone()),
            https: variable("HTTPS_PROXY").or(any),
            except: variable("NO_PROXY"),
        }
    }
}

/// Builds clients once.
#[derive(Debug)]
pub(super) struct Clients {
    connect_timeout: Duration,
    proxies: Proxies,
    built: Mutex<HashMap<Key, Client>>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration, proxies: Proxies) -> Self {
        static PROVIDER: Once = Once::new();
        // Fails only if somebody else in this process has installed one, which serves as well.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        Self {
            connect_timeout,
            proxies,
            built: Mutex::new(HashMap::new()),
        }
    }

    /// The client for an address. Plain HTTP does not depend on certificates.
    pub(super) fn get(&self, url: &Url, settings: &Settings) -> reqwest::Result<Client> {
        let plain = url.scheme() == "http";
        let settings = match plain {
            true => Settings {
                dial_timeout: settings.dial_timeout,
                ..Settings::default()
            },
            false => settings.clone(),
        };
        let key = Key {
            plain,
            direct: is_loopback(&authority(url)),
            settings,
        };
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
        let settings = &key.settings;
        // `no_proxy` also keeps the library from reading the environment by its own rules.
        let mut builder = Client::builder()
            .user_agent(concat!("quilt/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.dial_timeout.unwrap_or(self.connect_timeout))
            .redirect(redirect::Policy::none())
            .no_proxy();
        if !key.direct {
            let except = || {
                self.proxies
                    .except
                    .as_deref()
                    .and_then(NoProxy::from_string)
            };
            if let Some(proxy) = &self.proxies.http {
                builder = builder.proxy(Proxy::http(proxy)?.no_proxy(except()));
            }
            if let Some(proxy) = &self.proxies.https {
                builder = builder.proxy(Proxy::https(proxy)?.no_proxy(except()));
            }
        }
        if key.plain {
            return builder.tls_certs_only([]).build();
        }
        builder = builder.tls_danger_accept_invalid_certs(settings.skip_verify);
        for pem in &settings.roots {
            builder = builder.tls_certs_merge(Certificate::from_pem_bundle(pem)?);
        }
        if !settings.identity.is_empty() {
            builder = builder.identity(Identity::from_pem(&settings.identity)?);
        }
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_built_once_per_kind() {
        let clients = Clients::new(Duration::from_secs(1), Proxies::default());
        let get = |url: &str, settings: &Settings| {
            clients.get(&Url::parse(url).unwrap(), settings).map(drop)
        };
        let skip = Settings {
            skip_verify: true,
            ..Settings::default()
        };
        get("http://a", &Settings::default()).unwrap();
        get("http://b", &skip).unwrap();
        get("https://a", &skip).unwrap();
        assert_eq!(clients.built.lock().unwrap().len(), 2);
        get("http://127.0.0.1:5", &skip).unwrap();
        assert_eq!(clients.built.lock().unwrap().len(), 3);
        let broken = Settings {
            identity: b"no key".to_vec(),
            ..Settings::default()
        };
        assert!(get("https://a", &broken).is_err());
        get("http://a", &broken).unwrap();
    }

    #[test]
    fn a_proxy_that_is_none_is_an_error() {
        let proxies = Proxies {
            http: Some("://".into()),
            ..Proxies::default()
        };
        let clients = Clients::new(Duration::from_secs(1), proxies);
        let url = |text| Url::parse(text).unwrap();
        assert!(clients.get(&url("http://a"), &Settings::default()).is_err());
        clients
            .get(&url("http://localhost"), &Settings::default())
            .unwrap();
    }
}
