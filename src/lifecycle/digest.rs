//! Content digests: `sha256:…` and `sha512:…` as a type, and the hasher that makes them.
//!
//! Not a content store: nothing here reads or writes files. An algorithm outside the two that the
//! OCI image specification registers is refused, because what cannot be checked is not pulled.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A registered digest algorithm (OCI image-spec, descriptor, "Registered algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// 64 hex digits.
    Sha256,
    /// 128 hex digits.
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// What a string lacked to be a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon between algorithm and hex, or hex of a wrong length or alphabet.
    #[error("{0:?} is not a digest of the form algorithm:lowercase-hex")]
    Malformed(String),
    /// An algorithm that this build cannot compute.
    #[error("digest algorithm {0:?} is not supported (sha256 and sha512 are)")]
    Algorithm(String),
}

/// The digest of some bytes: manifest, configuration, compressed layer, tar stream, layer chain.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    /// Digest of `bytes` with SHA-256, the algorithm of every id that Quilt makes itself.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The lowercase hex after the colon: also the directory name of a layer.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Whether `bytes` have this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.chars().take(160).collect());
        let (name, hex) = text.split_once(':').ok_or_else(malformed)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => return Err(DigestError::Algorithm(other.chars().take(40).collect())),
        };
        let lowercase = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if hex.len() != algorithm.hex_len() || !hex.as_bytes().iter().all(lowercase) {
            return Err(malformed());
        }
        Ok(Self {
            algorithm,
            hex: hex.into(),
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a digest while bytes stream past.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(inner) => inner.update(bytes),
            Self::Sha512(inner) => inner.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(inner) => Digest {
                algorithm: Algorithm::Sha256,
                hex: hex(&inner.finalize()).into(),
            },
            Self::Sha512(inner) => Digest {
                algorithm: Algorithm::Sha512,
                hex: hex(&inner.finalize()).into(),
            },
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The chain id of a layer on top of `parent` (OCI image-spec, config, "Layer ChainID").
pub fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => diff_id.clone(),
        Some(parent) => Digest::sha256(format!("{parent} {diff_id}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_empty_string_has_its_known_digest() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert!(EMPTY.parse::<Digest>().unwrap().matches(b""));
        assert!(!EMPTY.parse::<Digest>().unwrap().matches(b"x"));
    }

    #[test]
    fn only_lowercase_hex_of_the_right_length_is_a_digest() {
        for bad in [
            "",
            "sha256:",
            "sha256:abc",
            &EMPTY.to_uppercase(),
            "e3b0",
            "sha1:aa",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let upper = EMPTY.replace('e', "E");
        assert!(upper.parse::<Digest>().is_err());
        let path = format!("sha256:{}", "../".repeat(21) + "a");
        assert!(path.parse::<Digest>().is_err());
    }

    #[test]
    fn a_chain_id_folds_diff_ids_from_the_bottom() {
        let first = Digest::sha256(b"1");
        let second = Digest::sha256(b"2");
        assert_eq!(chain_id(None, &first), first);
        let expected = Digest::sha256(format!("{first} {second}").as_bytes());
        assert_eq!(chain_id(Some(&first), &second), expected);
    }
}
