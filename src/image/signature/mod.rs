//! Whether an image may be pulled: the operator's policy, and signatures as cosign makes them with
//! a key (sigstore/cosign, "Signature Specification").
//!
//! ```text
//!   reference ──► policy: accept │ reject │ signed
//!                                            │  tag sha256-<digest>.sig of the same repository
//!                                            ▼
//!            manifest of signatures ─► payload, verified by a key ─► names this digest, and this
//!                                                                    repository
//! ```
//! What is signed is the digest that the name stands for, an index or a manifest, or the manifest
//! that was chosen from an index. Either ties down what will run: an index names its manifests by
//! digest. Nothing of an image is unpacked before this has passed. Signatures without a key
//! (certificates, transparency logs) and the newer bundles are not understood.

mod key;
mod payload;
mod policy;
#[cfg(test)]
mod tests;

use base64::Engine;
use serde::Deserialize;

use super::digest::{Algorithm, Digest};
use super::error::ImageError;
use super::manifest::Descriptor;
use super::reference::Reference;
use super::session::Session;
use key::PublicKey;
use policy::{Action, Signed};
pub use policy::{Policy, PolicyRule};

/// Media type of a signature's payload.
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation with the signature over the payload, base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Signatures of one image that are tried.
const SIGNATURES_MAX: usize = 64;
/// Longest payload, in bytes: it is a few lines of JSON.
const PAYLOAD_MAX: u64 = 64 << 10;

/// The part of a signature manifest that counts.
#[derive(Deserialize)]
struct Signatures {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Policy {
    /// Refuses what is not to be pulled whoever signed it; asks nobody.
    ///
    /// # Errors
    /// `Signature`.
    pub(super) fn refuse_rejected(&self, session: &Session) -> Result<(), ImageError> {
        let reference = &session.reference;
        match self.action(reference) {
            Action::Reject => {
                let why = "the policy of this node rejects it".to_owned();
                Err(refused(session, why))
            }
            Action::Accept | Action::Signed(_) => Ok(()),
        }
    }

    /// Whether a signature is demanded of this image.
    pub(super) fn wants_signature(&self, reference: &Reference) -> bool {
        matches!(self.action(reference), Action::Signed(_))
    }

    /// Demands a signature of `top`, what the reference stands for, or of `manifest`, which was
    /// chosen from it, if the policy wants one.
    ///
    /// # Errors
    /// `Signature` when there is none that counts; what asking the registry fails with.
    pub(super) async fn check(
        &self,
        session: &Session,
        top: &Digest,
        manifest: &Digest,
    ) -> Result<(), ImageError> {
        let Action::Signed(signed) = self.action(&session.reference) else {
            return Ok(());
        };
        let keys = signed.keys.iter().map(|path| PublicKey::read(path));
        let keys: Vec<PublicKey> = keys
            .collect::<Result<_, _>>()
            .map_err(|why| refused(session, why))?;
        let mut reasons = Vec::new();
        for digest in [top, manifest] {
            match verify(session, digest, signed, &keys).await? {
                Verdict::Signed => return Ok(()),
                Verdict::Not(why) => reasons.push(why),
            }
            if top == manifest {
                break;
            }
        }
        Err(refused(session, reasons.join("; ")))
    }
}

fn refused(session: &Session, why: String) -> ImageError {
    ImageError::Signature {
        reference: session.reference.to_string(),
        why,
    }
}

/// What became of the signatures of one digest.
enum Verdict {
    Signed,
    /// Why none of them counts.
    Not(String),
}

async fn verify(
    session: &Session,
    digest: &Digest,
    signed: &Signed,
    keys: &[PublicKey],
) -> Result<Verdict, ImageError> {
    if digest.algorithm() != Algorithm::Sha256 {
        let why = format!("{digest}: only sha256 digests can be signed");
        return Ok(Verdict::Not(why));
    }
    let tag = format!("sha256-{}.sig", digest.hex());
    let found = match session.manifest(&tag, None).await {
        Ok(found) => found,
        Err(ImageError::NotFound { .. }) => {
            return Ok(Verdict::Not(format!("{digest} has no signature")));
        }
        Err(error) => return Err(error),
    };
    let signatures: Signatures = match serde_json::from_slice(&found.bytes) {
        Ok(signatures) => signatures,
        Err(error) => {
            let why = format!("the signatures of {digest} do not parse: {error}");
            return Ok(Verdict::Not(why));
        }
    };
    let mut last = None;
    for layer in signatures.layers.iter().take(SIGNATURES_MAX) {
        match one(session, layer, digest, signed, keys).await? {
            Ok(()) => return Ok(Verdict::Signed),
            Err(why) => last = Some(why),
        }
    }
    let why = last.unwrap_or_else(|| "the list is empty".to_owned());
    let why = format!("no signature of {digest} counts: {why}");
    Ok(Verdict::Not(why))
}

/// The inner error says why this signature does not count; another one may.
async fn one(
    session: &Session,
    layer: &Descriptor,
    digest: &Digest,
    signed: &Signed,
    keys: &[PublicKey],
) -> Result<Result<(), String>, ImageError> {
    if layer.media_type != PAYLOAD_TYPE {
        let why = format!("its media type {:?} is another one", layer.media_type);
        return Ok(Err(why));
    }
    if layer.size > PAYLOAD_MAX {
        let why = format!(
            "its payload has {} bytes, more than {PAYLOAD_MAX}",
            layer.size
        );
        return Ok(Err(why));
    }
    let annotation = layer
        .annotations
        .as_ref()
        .and_then(|all| all.get(SIGNATURE));
    let Some(annotation) = annotation else {
        return Ok(Err(format!("it lacks the annotation {SIGNATURE}")));
    };
    let Ok(signature) = base64::engine::general_purpose::STANDARD.decode(annotation) else {
        return Ok(Err(format!("the annotation {SIGNATURE} is not base64")));
    };
    let payload = session.small_blob(&layer.digest).await?;
    if !keys
        .iter()
        .any(|key| key.verifies(&payload.bytes, &signature))
    {
        return Ok(Err("none of the keys made it".to_owned()));
    }
    // Only now is it more than a stranger's word.
    Ok(payload::check(
        &payload.bytes,
        digest,
        &session.reference,
        &signed.signed_as,
    ))
}
