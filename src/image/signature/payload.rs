//! What a signature is over: "simple signing" JSON that names a digest and a repository
//! (containers/image, "Format of simple signing", as cosign writes it). Checked after the key.

use serde::Deserialize;

use super::policy::covers;
use crate::image::digest::Digest;
use crate::image::reference::Reference;

const TYPE: &str = "cosign container image signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

/// Unknown members of it would change its meaning, so none is passed over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference", default)]
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: String,
}

/// Whether the payload says that `digest` is an image of the repository of `reference`, or of one
/// that `signed_as` names; why not, if it does not.
pub(super) fn check(
    payload: &[u8],
    digest: &Digest,
    reference: &Reference,
    signed_as: &[String],
) -> Result<(), String> {
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|error| format!("its payload does not parse: {error}"))?;
    let Critical {
        identity,
        image,
        kind,
    } = payload.critical;
    if kind != TYPE {
        return Err(format!("its payload is of the type {kind:?}"));
    }
    if image.docker_manifest_digest != digest.to_string() {
        let named = image.docker_manifest_digest;
        return Err(format!("it is for another image, {named}"));
    }
    let identity = identity.docker_reference;
    if signed_as.iter().any(|name| name == "*") {
        return Ok(());
    }
    // With one key for many repositories, a registry could serve one for another.
    let named: Result<Reference, _> = canonical(&identity).parse();
    let repository = named
        .map_err(|error| format!("it names no repository: {error}"))?
        .repository();
    let own = repository == reference.repository();
    if own || signed_as.iter().any(|prefix| covers(prefix, &repository)) {
        return Ok(());
    }
    Err(format!(
        "it is for the repository {repository} (the policy's signed_as does not name it)"
    ))
}

/// cosign's library calls Docker Hub by its old name.
fn canonical(identity: &str) -> String {
    match identity.strip_prefix("index.docker.io/") {
        Some(rest) => format!("docker.io/{rest}"),
        None => identity.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(identity: &str, digest: &str, kind: &str) -> Vec<u8> {
        let json = serde_json::json!({
            "critical": {
                "identity": {"docker-reference": identity},
                "image": {"docker-manifest-digest": digest},
                "type": kind,
            },
            "optional": {"creator": "somebody"},
        });
        json.to_string().into_bytes()
    }

    #[test]
    fn it_must_name_this_image_of_this_repository() {
        let digest = Digest::sha256(b"manifest");
        let other = Digest::sha256(b"another").to_string();
        let text = digest.to_string();
        let check = |identity: &str, named: &str, kind: &str, signed_as: &[&str]| {
            let reference = "docker.io/team/app:1".parse().expect("a name");
            let signed_as: Vec<_> = signed_as.iter().map(ToString::to_string).collect();
            super::check(
                &payload(identity, named, kind),
                &digest,
                &reference,
                &signed_as,
            )
        };
        for identity in [
            "team/app",
            "index.docker.io/team/app",
            "docker.io/team/app:9",
        ] {
            check(identity, &text, TYPE, &[]).expect(identity);
        }
        check("a.b/c/app", &text, TYPE, &["a.b/c"]).expect("named by the policy");
        check("", &text, TYPE, &["*"]).expect("any");
        for (identity, named, kind) in [
            ("team/app", other.as_str(), TYPE),
            ("team/app", "", TYPE),
            ("team/app", &text, "atomic container signature"),
            ("team/other", &text, TYPE),
            ("team/app/sub", &text, TYPE),
            ("", &text, TYPE),
        ] {
            check(identity, named, kind, &[]).expect_err(identity);
        }
        check("a.b/cc/app", &text, TYPE, &["a.b/c"]).expect_err("another one");
        let unknown = payload("team/app", &text, TYPE);
        let unknown = String::from_utf8(unknown).expect("JSON");
        let unknown = unknown.replace("\"type\"", "\"until\":\"yesterday\",\"type\"");
        let reference = "team/app".parse().expect("a name");
        super::check(unknown.as_bytes(), &digest, &reference, &[]).expect_err("not understood");
    }
}
