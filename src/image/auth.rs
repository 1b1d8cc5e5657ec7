//! Credentials for registries, and the challenges by which registries ask for them.
//!
//! Nothing is sent before it is asked for, and nothing is stored on disk. Bearer tokens follow the
//! distribution project's token specification; the header grammar is RFC 9110, 11.6.1.

use std::fmt;

use base64::Engine;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;

/// What a client gave for one pull (CRI `AuthConfig`).
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// For Basic authentication, or to be exchanged for a token.
    Password {
        /// User name.
        username: String,
        /// Password or personal token.
        password: String,
    },
    /// An OAuth 2 refresh token, to be exchanged for an access token.
    IdentityToken(String),
    /// An access token, sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password(…)",
            Self::IdentityToken(_) => "IdentityToken(…)",
            Self::RegistryToken(_) => "RegistryToken(…)",
        })
    }
}

/// What a client gave, and whom it meant it for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// The credentials.
    pub credentials: Credentials,
    /// The host that may see them (CRI `AuthConfig.server_address`, with or without scheme and
    /// path); every host that serves the image if there is none.
    pub server: Option<String>,
}

impl From<Credentials> for Given {
    fn from(credentials: Credentials) -> Self {
        let server = None;
        Self {
            credentials,
            server,
        }
    }
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lowercase.
    pub(super) scheme: String,
    /// Names in lowercase.
    pub(super) parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// All challenges of one header value; what does not parse ends the list.
    pub(super) fn parse(header: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut rest = header.trim_start_matches([' ', ',']);
        while !rest.is_empty() {
            let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let after = after.trim_start();
            if word.is_empty() {
                break;
            }
            if let Some(value) = after.strip_prefix('=') {
                let Some((value, after)) = parameter_value(value.trim_start()) else {
                    break;
                };
                let Some(challenge) = found.last_mut() else {
                    break;
                };
                challenge
                    .parameters
                    .push((word.to_ascii_lowercase(), value));
                rest = after.trim_start_matches([' ', ',', '\t']);
            } else {
                found.push(Self {
                    scheme: word.to_ascii_lowercase(),
                    parameters: Vec::new(),
                });
                rest = after.trim_start_matches([' ', ',', '\t']);
            }
        }
        found
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// `Authorization: Basic`, marked so that it is never logged.
pub(super) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    let text = format!(
        "Basic {}",
        base64(format!("{username}:{password}").as_bytes())
    );
    sensitive(&text)
}

/// `Authorization: Bearer`, marked so that it is never logged.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// How a token is asked for.
#[derive(Debug)]
pub(super) struct TokenRequest {
    pub(super) url: Url,
    /// The body of a POST, URL-encoded; `None` is a GET.
    pub(super) form: Option<String>,
    pub(super) authorization: Option<HeaderValue>,
}

impl TokenRequest {
    /// The request that answers a bearer challenge; `None` if its realm is no URL.
    pub(super) fn new(
        challenge: &Challenge,
        default_scope: &str,
        credentials: &Credentials,
    ) -> Option<Self> {
        let mut url = Url::parse(challenge.get("realm")?).ok()?;
        let service = challenge.get("service");
        let scope = challenge.get("scope").unwrap_or(default_scope);
        if let Credentials::IdentityToken(token) = credentials {
            // A throw-away URL, only to encode the form.
            let mut form = Url::parse("form:").ok()?;
            let mut pairs = form.query_pairs_mut();
            pairs
                .append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", token);
            pairs
                .append_pair("client_id", "quilt")
                .append_pair("scope", scope);
            if let Some(service) = service {
                pairs.append_pair("service", service);
            }
            drop(pairs);
            return Some(Self {
                url,
                form: form.query().map(str::to_owned),
                authorization: None,
            });
        }
        let mut pairs = url.query_pairs_mut();
        if let Some(service) = service {
            pairs.append_pair("service", service);
        }
        // Several scopes are separated by spaces, and asked for one by one.
        for one in scope.split(' ').filter(|one| !one.is_empty()) {
            pairs.append_pair("scope", one);
        }
        let mut authorization = None;
        if let Credentials::Password { username, password } = credentials {
            pairs.append_pair("account", username);
            authorization = basic(username, password);
        }
        drop(pairs);
        Some(Self {
            url,
            form: None,
            authorization,
        })
    }
}

/// The token server's answer.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The token in a token server's answer.
pub(super) fn token(json: &[u8]) -> Option<String> {
    let answer: TokenAnswer = serde_json::from_slice(json).ok()?;
    answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base64_has_its_known_answers() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn challenges_are_read_with_their_parameters() {
        let header = concat!(
            r#"Basic realm="a, \"b\"", Bearer realm="https://t/x","#,
            r#"service=reg , scope="repository:a/b:pull""#
        );
        let found = Challenge::parse(header);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].scheme.as_str(), found[0].get("realm")),
            ("basic", Some("a, \"b\""))
        );
        assert_eq!(found[1].get("service"), Some("reg"));
        assert_eq!(found[1].get("scope"), Some("repository:a/b:pull"));
        assert_eq!(Challenge::parse("Negotiate")[0].scheme, "negotiate");
        assert!(Challenge::parse("=x").is_empty());
    }

    #[test]
    fn a_token_is_asked_for_with_what_the_client_gave() {
        let header = r#"Bearer realm="https://t/token?x=1",service="s",scope="a b""#;
        let challenge = &Challenge::parse(header)[0];
        let anonymous = TokenRequest::new(challenge, "d", &Credentials::Anonymous).unwrap();
        assert_eq!(
            anonymous.url.as_str(),
            "https://t/token?x=1&service=s&scope=a&scope=b"
        );
        assert!(anonymous.authorization.is_none() && anonymous.form.is_none());
        let password = Credentials::Password {
            username: "u".into(),
            password: "p".into(),
        };
        let request = TokenRequest::new(challenge, "d", &password).unwrap();
        assert_eq!(
            request.authorization.unwrap().to_str().unwrap(),
            "Basic dTpw"
        );
        let refresh = Credentials::IdentityToken("r&t".into());
        let form = TokenRequest::new(challenge, "d", &refresh)
            .unwrap()
            .form
            .unwrap();
        assert!(form.contains("refresh_token=r%26t"), "{form}");
    }

    #[test]
    fn credentials_do_not_show_in_debug_output() {
        let secret = Credentials::Password {
            username: "u".into(),
            password: "hunter2".into(),
        };
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(!format!("{:?}", bearer("hunter2")).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_header_parses_to_something(header in "\\PC{0,60}") {
            let _ = Challenge::parse(&header);
        }
    }
}
