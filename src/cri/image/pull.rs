//! PullImage: equal pulls are one; a caller that goes away cancels nothing. Pulls of one image with
//! different credentials are not equal: each is answered by what its own credentials may see.

use tonic::Code;

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front, validate};
use crate::id::ObjectKey;
use crate::lifecycle::docker_auth;
use crate::lifecycle::image::SIGNATURE_FAILED;
use crate::lifecycle::reference::Reference;
use crate::proto::cri as v1;
use crate::state::pull::{Pull, Secret};
use crate::traces;

use super::named;

/// Pulls an image and answers with its id.
pub(in crate::cri) async fn pull(
    front: Front,
    request: v1::PullImageRequest,
    deadline: Deadline,
) -> Result<v1::PullImageResponse, CallError> {
    if let Some(spec) = &request.image {
        validate::default_handler("image.runtime_handler", &spec.runtime_handler)?;
    }
    let name = named("image", request.image)?;
    let reference = name
        .parse::<Reference>()
        .map_err(|error| CallError::invalid("image.image", error.to_string()))?;
    let reference = reference.to_string();
    traces::about(&reference);
    let secret = secret(request.auth.unwrap_or_default())?;
    let pull = front.store.pull_secrets().key(&reference, &secret);
    let request = front
        .desired
        .request_pull(&front.store, pull.clone(), secret)
        .await?;
    let key = ObjectKey::Pull(pull.clone());
    let image_ref = front
        .wait_for("image", key, deadline, || async {
            let pull = front.store.pull(&pull).await?;
            pull.filter(|pull| pull.finished >= request)
                .map(answer)
                .transpose()
        })
        .await?;
    traces::also_about(&image_ref);
    Ok(v1::PullImageResponse { image_ref })
}

/// What a client gave for the registry: `auth` is base64 of `username:password`, and gives way to
/// the two written out.
fn secret(auth: v1::AuthConfig) -> Result<Secret, CallError> {
    let mut secret = Secret {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        server_address: auth.server_address,
    };
    if secret.username.is_empty() && !auth.auth.is_empty() {
        let invalid = || CallError::invalid("auth.auth", "is not base64 of username:password");
        (secret.username, secret.password) = docker_auth::decode(&auth.auth).ok_or_else(invalid)?;
    }
    // Kubelet names the host also where it has nothing for it.
    let empty = Secret {
        server_address: secret.server_address.clone(),
        ..Secret::default()
    };
    Ok(match secret == empty {
        true => Secret::default(),
        false => secret,
    })
}

/// What came of a pull, as kubelet takes it (`RegistryUnavailable` is one of its sentinel words,
/// `k8s.io/cri-api/pkg/errors`).
fn answer(pull: Pull) -> Result<String, CallError> {
    if let Some(id) = pull.image_id {
        return Ok(id);
    }
    let error = pull.error.unwrap_or_else(|| "unknown".into());
    let (code, message) = match pull.error_kind.as_deref() {
        Some("not_found") => (Code::NotFound, error),
        Some("unauthorized") => (Code::Unauthenticated, error),
        Some("unavailable") => (Code::Unavailable, format!("RegistryUnavailable: {error}")),
        Some("signature") => (
            Code::PermissionDenied,
            format!("{SIGNATURE_FAILED}: {error}"),
        ),
        Some("invalid") => (Code::FailedPrecondition, error),
        _ => (Code::Unknown, error),
    };
    Err(CallError::Pull { code, message })
}
