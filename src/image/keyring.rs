//! Credentials that the operator keeps in a file as `docker login` writes it.
//!
//! Only `auths` counts; credential helpers are other programs, and are not run. Which entry is for
//! which image is decided as Kubernetes does it (`k8s.io/kubernetes/pkg/credentialprovider`): the
//! host label by label with `*` inside a label, the same port, and a prefix of the path; the
//! longest key first. Entries that match are all offered, one after the other.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::auth::Credentials;
use super::error::ImageError;
use super::hosts::canonical;
use crate::lifecycle::docker_auth;

/// The entries of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct Keyring(Vec<(Pattern, Credentials)>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern {
    /// Host with port, `*` standing for any part of a label.
    host: String,
    /// Without a slash in front; empty matches every path.
    path: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Keyring {
    /// Reads a file; one that is not there has no entries.
    ///
    /// # Errors
    /// read(2)'s, and a file that is not of that form. Its content is never shown.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => {
                let path = path.to_owned();
                return Err(ImageError::Read { path, source });
            }
        };
        Self::parse(&text).map_err(|detail| ImageError::HostConfig {
            path: path.to_owned(),
            detail,
        })
    }

    fn parse(json: &[u8]) -> Result<Self, String> {
        // serde's own words may quote a secret: only the place is told.
        let file: File = serde_json::from_slice(json).map_err(|error| {
            format!(
                "is not a Docker configuration (line {}, column {})",
                error.line(),
                error.column()
            )
        })?;
        let mut entries = Vec::new();
        for (key, entry) in file.auths {
            let credentials = entry
                .credentials()
                .ok_or_else(|| format!("the auth of {key:?} is not base64 of user:password"))?;
            if credentials != Credentials::Anonymous {
                entries.push((Pattern::parse(&key), credentials));
            }
        }
        // The longest, which is the most particular, comes first.
        entries.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(Self(entries))
    }

    /// What may open `host`/`path`, the most particular first.
    pub(super) fn find(&self, host: &str, path: &str) -> Vec<Credentials> {
        let host = canonical(host);
        let matching = self.0.iter().filter(|(key, _)| key.matches(host, path));
        matching.map(|(_, found)| found.clone()).collect()
    }
}

impl Entry {
    /// `None` when `auth` cannot be read.
    fn credentials(self) -> Option<Credentials> {
        if !self.registrytoken.is_empty() {
            return Some(Credentials::RegistryToken(self.registrytoken));
        }
        if !self.identitytoken.is_empty() {
            return Some(Credentials::IdentityToken(self.identitytoken));
        }
        let (mut username, mut password) = (self.username, self.password);
        if !self.auth.is_empty() {
            (username, password) = docker_auth::decode(&self.auth)?;
        }
        Some(match username.is_empty() {
            true => Credentials::Anonymous,
            false => Credentials::Password { username, password },
        })
    }
}

impl Pattern {
    /// `https://host:port/v1/path`, of which only the host is needed.
    fn parse(key: &str) -> Self {
        let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path
            .strip_prefix("v1/")
            .or(path.strip_prefix("v2/"))
            .unwrap_or(path);
        let path = match path.trim_end_matches('/') {
            "v1" | "v2" => "",
            other => other,
        };
        Self {
            host: canonical(host).to_owned(),
            path: path.to_owned(),
        }
    }

    fn matches(&self, host: &str, path: &str) -> bool {
        let split = |text: &str| match text.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
                (name.to_owned(), port.to_owned())
            }
            _ => (text.to_owned(), String::new()),
        };
        let ((own, own_port), (other, other_port)) = (split(&self.host), split(host));
        let (own, other): (Vec<_>, Vec<_>) = (own.split('.').collect(), other.split('.').collect());
        own_port == other_port
            && own.len() == other.len()
            && own.iter().zip(&other).all(|(own, other)| glob(own, other))
            && path.starts_with(&self.path)
    }
}

/// Whether `text` is `pattern`, in which `*` stands for anything.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| glob(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str) -> Credentials {
        Credentials::Password {
            username: username.into(),
            password: "p".into(),
        }
    }

    #[test]
    fn entries_are_found_by_host_port_path_and_wildcard() {
        let names = [
            "https://index.docker.io/v1/",
            "a.example",
            "a.example/team",
            "a.example/team/app",
            "*.example",
            "b*.example:5000",
        ];
        let auths: serde_json::Map<_, _> = names
            .iter()
            .map(|name| {
                (
                    (*name).into(),
                    serde_json::json!({"username": name, "password": "p"}),
                )
            })
            .collect();
        let file = serde_json::json!({ "auths": auths }).to_string();
        let keyring = Keyring::parse(file.as_bytes()).unwrap();
        for (host, path, expected) in [
            ("docker.io", "library/busybox", &names[..1]),
            ("registry-1.docker.io", "library/busybox", &names[..1]),
            ("a.example", "other", &["a.example", "*.example"]),
            (
                "a.example",
                "team/app/x",
                &[
                    "a.example/team/app",
                    "a.example/team",
                    "a.example",
                    "*.example",
                ],
            ),
            ("c.example", "x", &["*.example"]),
            ("b2.example:5000", "x", &["b*.example:5000"]),
            ("b2.example:5001", "x", &[]),
            ("deep.c.example", "x", &[]),
            ("a.example.evil", "x", &[]),
        ] {
            let expected: Vec<_> = expected.iter().map(|name| password(name)).collect();
            assert_eq!(keyring.find(host, path), expected, "{host}/{path}");
        }
    }

    #[test]
    fn every_form_of_a_secret_is_read_and_none_is_shown() {
        let file = r#"{"auths": {
            "a": {"auth": "dXNlcjpzZWNyZXQ="}, "b": {"identitytoken": "i"},
            "c": {"registrytoken": "r"}, "d": {}}, "credsStore": "x"}"#;
        let keyring = Keyring::parse(file.as_bytes()).unwrap();
        let secret = Credentials::Password {
            username: "user".into(),
            password: "secret".into(),
        };
        assert_eq!(keyring.find("a", "x"), [secret]);
        assert_eq!(
            keyring.find("b", "x"),
            [Credentials::IdentityToken("i".into())]
        );
        assert_eq!(
            keyring.find("c", "x"),
            [Credentials::RegistryToken("r".into())]
        );
        assert!(keyring.find("d", "x").is_empty());
        assert!(!format!("{keyring:?}").contains("secret"));
        for bad in [
            r#"{"auths": {"a": {"auth": "hunter2!"}}}"#,
            r#"{"auths": "hunter2"}"#,
            "[",
        ] {
            let error = Keyring::parse(bad.as_bytes()).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_star_matches_within_its_label() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*", "abcd", true),
            ("a*d", "abc", false),
            ("", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
