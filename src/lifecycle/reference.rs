//! Image references: what a user types, made canonical the way Docker and containerd do it.
//!
//! `busybox` becomes `docker.io/library/busybox:latest`. Knows nothing of image ids: a bare 64-hex
//! string is refused here, because it could mean either; who accepts ids looks for them first.
//! Grammar: distribution-spec, "Pulling manifests", and the reference grammar of the
//! `distribution/reference` library.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError};

/// Longest repository name with its host (distribution/reference `NameTotalLengthMax`).
const NAME_MAX: usize = 255;
/// Longest tag (distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
const TAG_MAX: usize = 128;
/// The host of a reference that names none.
const DEFAULT_HOST: &str = "docker.io";

/// Why a string is not a reference; each names the offending string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing before the tag or digest.
    #[error("image reference is empty")]
    Empty,
    /// More than 255 bytes of name.
    #[error("image name of {0} bytes is longer than 255")]
    TooLong(usize),
    /// A host that is neither a domain name nor an address with an optional port.
    #[error("image reference {0:?} has an invalid registry host")]
    Host(String),
    /// A repository path outside lowercase letters, digits and single separators.
    #[error("image reference {0:?} has an invalid repository name (must be lowercase)")]
    Repository(String),
    /// A tag outside its alphabet or longer than 128.
    #[error("image reference {0:?} has an invalid tag")]
    Tag(String),
    /// A digest that does not parse.
    #[error("image reference {reference:?} has an invalid digest")]
    Digest {
        /// The reference as given.
        reference: String,
        /// What was wrong with it.
        source: DigestError,
    },
    /// Sixty-four hex digits could as well be an image id.
    #[error("image reference {0:?} looks like an image id, not a name")]
    LooksLikeId(String),
}

/// A canonical reference: host, repository path, and a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry host as written, `docker.io` for Docker Hub; with its port, if any.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository path within the host (`library/busybox`).
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and path: `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The tag; `latest` was filled in when neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over the tag when both are given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name as people write it: without Docker Hub's host and `library/`.
    pub fn familiar_name(&self) -> String {
        if self.host != DEFAULT_HOST {
            return self.repository();
        }
        match self.path.strip_prefix("library/") {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// `repository@digest`, without the tag: the form of a CRI repo digest.
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest.clone()),
            ..self.clone()
        }
    }

    /// The form in which a name is stored and found again. A digest names the content; a tag beside
    /// it is for people.
    pub fn known_as(&self) -> String {
        match &self.digest {
            Some(digest) => self.with_digest(digest).to_string(),
            None => self.to_string(),
        }
    }

    /// The part of a manifest URL that selects the manifest: the digest if any, else the tag.
    pub(crate) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        // Bounds every later copy of the string; name, tag and digest fit with room to spare.
        if text.len() > NAME_MAX + TAG_MAX + 160 {
            return Err(ReferenceError::TooLong(text.len()));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let parsed = digest.parse().map_err(|source| ReferenceError::Digest {
                    reference: text.to_owned(),
                    source,
                })?;
                (rest, Some(parsed))
            }
        };
        let (name, tag) = split_tag(rest);
        if name.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(text.to_owned()));
        }
        if name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (host, path) = split_host(name);
        if !is_host(host) {
            return Err(ReferenceError::Host(text.to_owned()));
        }
        if !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Repository(text.to_owned()));
        }
        let path = match path.contains('/') || host != DEFAULT_HOST {
            true => path.to_owned(),
            false => format!("library/{path}"),
        };
        if host.len() + 1 + path.len() > NAME_MAX {
            return Err(ReferenceError::TooLong(host.len() + 1 + path.len()));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            host: host.to_owned(),
            path,
            tag,
            digest,
        })
    }
}

/// A colon after the last slash starts a tag; any other belongs to a port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    // `[::1]` alone is no repository, so a bracketed address always has a slash after it.
    match name[last..].split_once(':') {
        None => (name, None),
        Some((before, tag)) => (&name[..last + before.len()], Some(tag)),
    }
}

/// The first component is a host if it could not be a repository name: it has a dot, a colon or an
/// uppercase letter, or it is `localhost`.
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            match first {
                "index.docker.io" => (DEFAULT_HOST, rest),
                _ => (first, rest),
            }
        }
        _ => (DEFAULT_HOST, name),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let port_ok = port.is_none_or(|port| !port.starts_with('+') && port.parse::<u16>().is_ok());
    let name_ok = match host.starts_with('[') {
        true => name.parse::<std::net::Ipv6Addr>().is_ok(),
        false => name.split('.').all(is_host_label),
    };
    port_ok && name_ok
}

fn is_host_label(label: &str) -> bool {
    let inner = label
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= TAG_MAX
        && bytes.next().is_some_and(word)
        && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

/// Runs of lowercase letters and digits, joined by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(|b| alphanumeric(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_become_canonical() {
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.29-2", "docker.io/library/busybox:1.29-2"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Registry/a", "Registry/a:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("gcr.io/a--b/c__d.e_f", "gcr.io/a--b/c__d.e_f:latest"),
        ];
        for (given, expected) in cases {
            assert_eq!(canonical(given), expected);
        }
    }

    #[test]
    fn a_digest_keeps_the_tag_and_adds_none() {
        let digest = format!("sha256:{HEX}");
        assert_eq!(
            canonical(&format!("a@{digest}")),
            format!("docker.io/library/a@{digest}")
        );
        let both: Reference = format!("a.b/c:t@{digest}").parse().unwrap();
        assert_eq!(both.to_string(), format!("a.b/c:t@{digest}"));
        assert_eq!(both.selector(), digest);
        let named: Reference = "a.b/c:t".parse().unwrap();
        let digested = named.with_digest(both.digest().unwrap());
        assert_eq!(digested.to_string(), format!("a.b/c@{digest}"));
    }

    #[test]
    fn familiar_names_lose_what_was_implied() {
        for (given, familiar) in [
            ("busybox", "busybox"),
            ("u/a", "u/a"),
            ("a.b/c:d", "a.b/c"),
            ("localhost/x", "localhost/x"),
        ] {
            assert_eq!(
                given.parse::<Reference>().unwrap().familiar_name(),
                familiar
            );
        }
    }

    #[test]
    fn hostile_and_sloppy_references_are_refused() {
        let long = "a".repeat(256);
        let long_tag = format!("a:{}", "t".repeat(129));
        let bare = [
            "",
            ":t",
            "@",
            "a@",
            "a@sha256:1",
            "A",
            "a/B",
            "a:",
            "a:-t",
            "a:t/b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a//b",
            "/a",
            "a/",
            "a b",
            "../a",
            "a/../b",
            "a.b:c/d",
            "a.b:99999/d",
            "[::1/a",
            "[zz]/a",
            "a:t:u",
            "http://a/b",
            "é",
            "a\0b",
            "-a.b/c",
            "a.b:+80/c",
            HEX,
            &long,
            &long_tag,
        ];
        for text in bare {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(
            host in "([a-z]{1,5}\\.[a-z]{2,4}(:[0-9]{1,4})?/)?",
            path in "[a-z0-9]{1,6}([_-][a-z0-9]{1,4}){0,2}\
                     (/[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,10})?",
            digest in prop::bool::ANY,
        ) {
            let digest = if digest { format!("@sha256:{HEX}") } else { String::new() };
            let text = format!("{host}{path}{tag}{digest}");
            let once: Reference = text.parse().unwrap();
            let twice: Reference = once.to_string().parse().unwrap();
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn no_string_panics_or_yields_an_unsafe_path(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let bad = |c: &str| c.is_empty() || c == ".." || c == ".";
                prop_assert!(!reference.path().split('/').any(bad));
                prop_assert!(!reference.host().contains(['/', ' ', '@', '?', '#', '\\']));
            }
        }
    }
}
