//! One look at a pull or at an image that is to go, and the import of an archive.
//!
//! ```text
//!  asked for ─► resolved ─► rows of layers ─► layers fetched side by side
//!      │                                        ─► committed bottom to top ─► row of the image,
//!      └─► here already, as the registry says ───────────────────────────────► and answered
//! ```

use std::future::Future;
use std::path::Path;
use std::pin::{Pin, pin};

use super::image_layers::{is_there, store_layers};
use super::{Back, ReconcileError};
use crate::fault;
use crate::id::ObjectKey;
use crate::image::{
    Credentials, Digest, Given, ImageConfigSummary, ImageError, Lookup, Reference, ResolvedImage,
};
use crate::lifecycle::image::{Step, next_step};
use crate::lifecycle::spec::ImageSpec;
use crate::state::image::NewImage;
use crate::state::job::Outcome;
use crate::state::now_ns;
use crate::state::operation::Finished;
use crate::state::progress::Stages;
use crate::state::pull::{self, Secret};

/// Pause until a layer that is being removed is gone and can be fetched again.
const LEAVING_NS: i64 = 20_000_000;

/// What came of a pull.
enum Pulled {
    /// An image whose layers are all here now.
    New(Box<ResolvedImage>),
    /// What the name means at the registry is here under these names.
    Known { id: String, names: Vec<String> },
    /// A layer of it is being removed just now.
    Leaving,
}

/// Pulls what was asked for, and answers. `key` is the reference, with a fingerprint of the
/// credentials if there are any.
pub(super) async fn pull(back: &Back, key: &str) -> Result<Outcome, ReconcileError> {
    let Some(pull) = back.store.pull(key).await? else {
        return Ok(Outcome::Done);
    };
    if pull.finished >= pull.requested {
        return Ok(Outcome::Done);
    }
    fault::point("image.asked").await?;
    let object = ObjectKey::Pull(key.to_owned());
    let stages = Stages::new(back.store.progress(), object.clone());
    let outcome = fetch_and_answer(back, key, stages).await;
    if matches!(outcome, Ok(Outcome::Done)) {
        // After the answer: a pull that is tried again still needs it.
        back.store.pull_secrets().remove(key, pull.requested);
    }
    back.store.progress().rests(&object);
    outcome
}

async fn fetch_and_answer(
    back: &Back,
    key: &str,
    mut stages: Stages<'_>,
) -> Result<Outcome, ReconcileError> {
    let reference = pull::reference_of(key);
    let started_at = now_ns();
    let result = fetch(back, key, &mut stages).await;
    let done = |stages: Stages<'_>, object_id: String, error| Finished {
        kind: "pull_image",
        object_id,
        started_at,
        duration_ns: now_ns() - started_at,
        error,
        stages: stages.finish(),
    };
    let pulls = &back.store.metrics().pulls;
    match result {
        Ok(Pulled::Leaving) => return Ok(Outcome::Again(LEAVING_NS)),
        Ok(Pulled::Known { id, names }) => {
            let done = done(stages, id.clone(), None);
            let known = back.observed.pull_known(key.to_owned(), id, names, done);
            if !known.await? {
                return Ok(Outcome::Again(0));
            }
            pulls.get(["present"]).increment();
            fault::point("image.known").await?;
        }
        Ok(Pulled::New(image)) => {
            stages.enter("record");
            let names = std::slice::from_ref(&image.reference);
            let new = record(back, &image, names, reference);
            let done = done(stages, new.id.clone(), None);
            back.observed
                .image_present(new, Some(key.to_owned()), done)
                .await?;
            back.image_records.notify_one();
            pulls.get(["pulled"]).increment();
            fault::point("image.recorded").await?;
        }
        Err(error) if error.is_passing() => return Err(error),
        Err(error) => {
            let text = error.full_text();
            tracing::warn!(reference, error = text, "cannot pull");
            let done = done(stages, reference.to_owned(), Some(text.clone()));
            let kind = kind_of(&error);
            let kept_until = now_ns().saturating_add(back.image_rules.failed_pull_kept_ns);
            back.observed
                .pull_failed(key.to_owned(), (kind, text), kept_until, done)
                .await?;
            pulls.get([kind]).increment();
            back.unused_layers.notify_one();
            fault::point("image.failed").await?;
        }
    }
    Ok(Outcome::Done)
}

/// The kind of a failure, as the front turns it into a status.
fn kind_of(error: &ReconcileError) -> &'static str {
    match error {
        ReconcileError::Image(ImageError::NotFound { .. }) => "not_found",
        ReconcileError::Image(ImageError::Unauthorized { .. }) => "unauthorized",
        ReconcileError::Image(ImageError::Unavailable { .. }) | ReconcileError::CredentialsLost => {
            "unavailable"
        }
        ReconcileError::Image(
            ImageError::Unsupported { .. }
            | ImageError::DigestMismatch { .. }
            | ImageError::TooLong { .. },
        ) => "invalid",
        ReconcileError::Image(ImageError::Signature { .. }) => "signature",
        _ => "other",
    }
}

async fn fetch(back: &Back, key: &str, stages: &mut Stages<'_>) -> Result<Pulled, ReconcileError> {
    let parsed: Reference = pull::reference_of(key)
        .parse()
        .map_err(|error| ReconcileError::Plan(format!("{error}")))?;
    let secret = match back.store.pull_secrets().get(key) {
        None if pull::has_credentials(key) => return Err(ReconcileError::CredentialsLost),
        secret => secret.unwrap_or_default(),
    };
    stages.enter("resolve");
    let lookup = back.images.lookup(&parsed, &given(secret))?;
    let fetched = async {
        if let Some(known) = known(back, &parsed, &lookup).await? {
            return Ok(known);
        }
        let image = lookup.resolve().await?;
        fault::point("image.resolved").await?;
        // A caller that goes away cancels nothing (invariant I8).
        let stored = store_layers(back, key, &image, stages, std::future::pending()).await?;
        Ok(match stored {
            true => Pulled::New(Box::new(image)),
            false => Pulled::Leaving,
        })
    };
    let fetched = fetched.await;
    back.store.metrics().registry_retries.add(lookup.repeated());
    for (host, what) in lookup.wrong_hosts() {
        let message = format!("{host} served wrong content: {what}");
        let subject = parsed.to_string();
        back.observed
            .image_event(subject, "wrong_content", message)
            .await?;
    }
    fetched
}

/// Whether what the registry now calls by this name is here already, under this name and its
/// digest: then the digest is all that is asked for. The registry is asked in any case, for the
/// name may have moved, and these credentials may not see it.
async fn known(
    back: &Back,
    reference: &Reference,
    lookup: &Lookup,
) -> Result<Option<Pulled>, ReconcileError> {
    let name = reference.to_string();
    let Some(image) = back.store.image_by_reference(&name).await? else {
        return Ok(None);
    };
    let Some(digest) = lookup.digest().await else {
        return Ok(None);
    };
    let by_digest = reference.with_digest(&digest).to_string();
    if !image.digests.contains(&by_digest) {
        return Ok(None);
    }
    let origin = back.store.image_origin(&image.id).await?;
    if origin.is_none_or(|origin| origin.damage.is_some()) {
        return Ok(None);
    }
    if let Some(top) = &image.top_chain_id {
        for layer in back.store.layer_chain(top).await? {
            if !is_there(back, &chain_id(&layer)?).await? {
                return Ok(None);
            }
        }
    }
    let (id, names) = (image.id, vec![name, by_digest]);
    Ok(Some(Pulled::Known { id, names }))
}

fn given(secret: Secret) -> Given {
    let server = Some(secret.server_address.clone()).filter(|server| !server.is_empty());
    Given {
        credentials: credentials(secret),
        server,
    }
}

fn credentials(secret: Secret) -> Credentials {
    let Secret {
        username,
        password,
        identity_token,
        registry_token,
        server_address: _,
    } = secret;
    if !registry_token.is_empty() {
        return Credentials::RegistryToken(registry_token);
    }
    if !identity_token.is_empty() {
        return Credentials::IdentityToken(identity_token);
    }
    if username.is_empty() {
        return Credentials::Anonymous;
    }
    Credentials::Password { username, password }
}

/// The rows of a complete image under these names, which came from `source`.
pub(super) fn record(
    back: &Back,
    image: &ResolvedImage,
    names: &[Reference],
    source: &str,
) -> NewImage {
    let config = &image.config;
    let mut tags = Vec::new();
    let mut digests = Vec::new();
    for name in names {
        if name.tag().is_some() && name.digest().is_none() {
            tags.push(name.to_string());
        }
        digests.push(name.with_digest(&image.repo_digest_of_index).to_string());
    }
    digests.sort();
    digests.dedup();
    NewImage {
        id: image.image_id.to_string(),
        manifest_digest: image.manifest_digest.to_string(),
        top_chain_id: image.layers.last().map(|layer| layer.chain_id.to_string()),
        spec: spec_of(config),
        tags,
        digests,
        annotations: image.annotations(),
        pulled_as: source.to_owned(),
        manifest: image.manifest.clone(),
        config: config.json.clone(),
        pins: back.image_rules.pins.clone(),
    }
}

/// What an image says of its containers.
pub(super) fn spec_of(config: &ImageConfigSummary) -> ImageSpec {
    ImageSpec {
        env: config.env.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        user: config.user.clone(),
        working_dir: config.working_dir.clone(),
        stop_signal: config.stop_signal.clone(),
        labels: config.labels.clone(),
    }
}

/// Deletes an image that nobody wants.
pub(super) async fn remove(back: &Back, id: &str) -> Result<Outcome, ReconcileError> {
    let image = back.store.image(id).await?;
    if image.is_some_and(|image| next_step(image.desired) == Step::Rest) {
        return Ok(Outcome::Done);
    }
    let key = ObjectKey::Image(id.to_owned());
    back.store.progress().at(&key, "remove");
    fault::point("image.removing").await?;
    back.observed.image_removed(id.to_owned()).await?;
    back.image_records.notify_one();
    fault::point("image.removed").await?;
    back.store.progress().rests(&key);
    Ok(Outcome::Done)
}

/// Loads every image of an archive; returns id and names of each. When `given_up` comes first, what
/// is being unpacked goes.
///
/// # Errors
/// When the archive is none, a layer is bad, or an image has no name and none is given.
pub async fn import(
    back: &Back,
    path: &Path,
    name: Option<&str>,
    given_up: impl Future<Output = ()>,
) -> Result<Vec<(String, Vec<String>)>, ReconcileError> {
    back.observed.import_begins().await?;
    let imported = import_archive(back, path, name, pin!(given_up)).await;
    back.observed.import_ends().await?;
    imported
}

async fn import_archive(
    back: &Back,
    path: &Path,
    name: Option<&str>,
    mut given_up: Pin<&mut impl Future<Output = ()>>,
) -> Result<Vec<(String, Vec<String>)>, ReconcileError> {
    let name: Option<Reference> = name
        .map(|name| name.parse())
        .transpose()
        .map_err(|error| ReconcileError::Plan(format!("--reference: {error}")))?;
    let mut imported = Vec::new();
    for found in back.images.open_archive(path).await? {
        let started_at = now_ns();
        let mut names = found.references;
        if names.is_empty() {
            names.extend(name.clone());
        }
        if names.is_empty() {
            let why = "the archive does not name its image: give a name with --reference";
            return Err(ReconcileError::Plan(why.into()));
        }
        let key = ObjectKey::Image(found.image.image_id.to_string());
        let mut stages = Stages::new(back.store.progress(), key.clone());
        while !store_layers(
            back,
            pull::IMPORT,
            &found.image,
            &mut stages,
            given_up.as_mut(),
        )
        .await?
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let new = record(back, &found.image, &names, &path.display().to_string());
        let id = new.id.clone();
        let done = Finished {
            kind: "import_image",
            object_id: id.clone(),
            started_at,
            duration_ns: now_ns() - started_at,
            error: None,
            stages: stages.finish(),
        };
        back.observed.image_present(new, None, done).await?;
        back.image_records.notify_one();
        back.store.progress().rests(&key);
        imported.push((id, names.iter().map(Reference::to_string).collect()));
    }
    Ok(imported)
}

/// A stored chain id.
pub(super) fn chain_id(text: &str) -> Result<Digest, ReconcileError> {
    text.parse()
        .map_err(|error| ReconcileError::Plan(format!("chain id {text:?}: {error}")))
}
