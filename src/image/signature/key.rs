//! Public keys as cosign and openssl write them: PEM of a SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use spki::der::DecodePem;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoOwned};

/// Longest key file, in bytes.
const FILE_MAX: u64 = 64 << 10;

const ELLIPTIC_CURVE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EDWARDS_25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A key that may have signed.
pub(super) struct PublicKey {
    /// The ways in which signers use such a key.
    algorithms: Vec<&'static dyn VerificationAlgorithm>,
    bytes: Vec<u8>,
}

impl PublicKey {
    /// Reads a key from a file; the error names the file.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let mut text = String::new();
        let read = File::open(path).and_then(|file| {
            let mut file = file.take(FILE_MAX + 1);
            file.read_to_string(&mut text)
        });
        let length = read.map_err(|error| format!("the key {shown} cannot be read: {error}"))?;
        if length as u64 > FILE_MAX {
            return Err(format!("the key {shown} is longer than {FILE_MAX} bytes"));
        }
        Self::parse(&text).map_err(|why| format!("the key {shown} cannot be used: {why}"))
    }

    /// Understands the text of a key.
    pub(super) fn parse(pem: &str) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoOwned::from_pem(pem.trim())
            .map_err(|error| format!("it is no PEM of a public key: {error}"))?;
        let parameters = info.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithms: Vec<&'static dyn VerificationAlgorithm> = match (info.algorithm.oid, curve)
        {
            (ELLIPTIC_CURVE, Some(P256)) => vec![&ECDSA_P256_SHA256_ASN1],
            (ELLIPTIC_CURVE, Some(P384)) => vec![&ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1],
            (RSA, _) => vec![&RSA_PKCS1_2048_8192_SHA256],
            (EDWARDS_25519, _) => vec![&ED25519],
            (other, _) => {
                let why = format!("its kind {other} is not ECDSA P-256 or P-384, RSA or Ed25519");
                return Err(why);
            }
        };
        let bytes = info.subject_public_key.as_bytes();
        let bytes = bytes.ok_or_else(|| "it has a broken bit string".to_owned())?;
        Ok(Self {
            algorithms,
            bytes: bytes.to_vec(),
        })
    }

    /// Whether this key made `signature` over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms.iter().any(|algorithm| {
            let key = UnparsedPublicKey::new(*algorithm, &self.bytes);
            key.verify(message, signature).is_ok()
        })
    }
}
