//! One look at a pull or at an image that is to go, and the import of an archive.
//!
//! ```text
//!  asked for ─► resolved ─► rows of layers ─► layers fetched side by side ─► committed bottom to
//! top
//!                                                                  ─► row of the image, and
//! answered
//! ```

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Back, ReconcileError, blocking};
use crate::fault;
use crate::id::ObjectKey;
use crate::image::{
    CommittedLayer, Credentials, Digest, ImageError, Reference, ResolvedImage, StagedLayer,
};
use crate::lifecycle::image::{Step, next_step};
use crate::lifecycle::spec::ImageSpec;
use crate::state::image::NewImage;
use crate::state::job::Outcome;
use crate::state::layer::{NewLayer, PresentLayer};
use crate::state::now_ns;
use crate::state::operation::Finished;
use crate::state::progress::Stages;
use crate::state::pull::{self, Secret};

/// Pause until a layer that is being removed is gone and can be fetched again.
const LEAVING_NS: i64 = 20_000_000;

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
    match result {
        Ok(None) => return Ok(Outcome::Again(LEAVING_NS)),
        Ok(Some(image)) => {
            stages.enter("record");
            let names = std::slice::from_ref(&image.reference);
            let new = record(back, &image, names, reference);
            let done = done(stages, new.id.clone(), None);
            back.observed
                .image_present(new, Some(key.to_owned()), done)
                .await?;
            back.image_records.notify_one();
            fault::point("image.recorded").await?;
        }
        Err(error) if error.is_passing() => return Err(error),
        Err(error) => {
            let text = error.full_text();
            tracing::warn!(reference, error = text, "cannot pull");
            let done = done(stages, reference.to_owned(), Some(text.clone()));
            let kept_until = now_ns().saturating_add(back.image_rules.failed_pull_kept_ns);
            back.observed
                .pull_failed(key.to_owned(), (kind_of(&error), text), kept_until, done)
                .await?;
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
            ImageError::Unsupported { .. } | ImageError::DigestMismatch { .. },
        ) => "invalid",
        _ => "other",
    }
}

/// `None` when a layer of the image is being removed just now.
async fn fetch(
    back: &Back,
    key: &str,
    stages: &mut Stages<'_>,
) -> Result<Option<ResolvedImage>, ReconcileError> {
    let parsed: Reference = pull::reference_of(key)
        .parse()
        .map_err(|error| ReconcileError::Plan(format!("{error}")))?;
    let secret = match back.store.pull_secrets().get(key) {
        None if pull::has_credentials(key) => return Err(ReconcileError::CredentialsLost),
        secret => secret.unwrap_or_default(),
    };
    stages.enter("resolve");
    let image = back.images.resolve(&parsed, &credentials(secret)).await?;
    fault::point("image.resolved").await?;
    Ok(store_layers(back, key, &image, stages)
        .await?
        .then_some(image))
}

fn credentials(secret: Secret) -> Credentials {
    let Secret {
        username,
        password,
        identity_token,
        registry_token,
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

/// Brings every layer of an image to its place, held by `holder`, a row of `pulls`; `false` when
/// one is being removed just now.
async fn store_layers(
    back: &Back,
    holder: &str,
    image: &ResolvedImage,
    stages: &mut Stages<'_>,
) -> Result<bool, ReconcileError> {
    let mut parent: Option<String> = None;
    let mut rows = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let chain_id = layer.chain_id.to_string();
        rows.push(NewLayer {
            chain_id: chain_id.clone(),
            parent: parent.replace(chain_id),
            diff_id: layer.diff_id.to_string(),
            digest: layer.digest.to_string(),
        });
    }
    if !back.observed.expect_layers(holder.to_owned(), rows).await? {
        return Ok(false);
    }
    fault::point("image.layers_recorded").await?;
    stages.enter("fetch");
    let image = Arc::new(image.clone());
    let of = image.layers.len();
    let mut fetching = JoinSet::new();
    let mut staged: Vec<Option<StagedLayer>> = Vec::new();
    for (index, layer) in image.layers.iter().enumerate() {
        staged.push(None);
        if is_there(back, &layer.chain_id).await? {
            continue;
        }
        let (back, image) = (back.clone(), Arc::clone(&image));
        fetching
            .spawn(async move { (index, back.images.fetch_layer(&image, index, &|_| {}).await) });
    }
    stages.count(of - fetching.len(), of);
    // Dropping the set on an error ends the other downloads; what they staged goes with them.
    while let Some(joined) = fetching.join_next().await {
        let (index, layer) = joined.map_err(|_| ReconcileError::Panicked)?;
        staged[index] = Some(layer?);
        stages.count(of - fetching.len(), of);
        fault::point("image.layer_fetched").await?;
    }
    fault::point("image.fetched").await?;
    stages.enter("commit");
    // Bottom to top: a directory a layer only implies takes after the one below it.
    for layer in staged.into_iter().flatten() {
        let damaged = back
            .store
            .is_layer_damaged(&layer.chain_id().to_string())
            .await?;
        let back_too = back.clone();
        let committed = blocking(move || {
            Ok(match damaged {
                true => back_too.images.replace_layer(layer)?,
                false => back_too.images.commit_layer(layer)?,
            })
        });
        let committed = committed.await?;
        fault::point("image.layer_committed").await?;
        back.observed.layer_present(present(&committed)).await?;
        fault::point("image.layer_recorded").await?;
    }
    Ok(true)
}

/// Whether a layer need not be fetched. One that came into its place just before its daemon died is
/// whole and only lacks its row's word.
async fn is_there(back: &Back, chain_id: &Digest) -> Result<bool, ReconcileError> {
    let name = chain_id.to_string();
    if !back.images.has_layer(chain_id) || back.store.is_layer_damaged(&name).await? {
        return Ok(false);
    }
    if back.store.has_layer(&name).await? {
        return Ok(true);
    }
    let (back_too, chain_id) = (back.clone(), chain_id.clone());
    let found = blocking(move || Ok(back_too.images.measure_layer(&chain_id)?)).await?;
    back.observed.layer_present(present(&found)).await?;
    Ok(true)
}

/// What a driver measured, as a row has it.
pub(super) fn present(layer: &CommittedLayer) -> PresentLayer {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    PresentLayer {
        chain_id: layer.chain_id.to_string(),
        size_bytes: number(layer.size_bytes),
        inodes: number(layer.inodes),
        entries: number(layer.seal.entries),
        seal: layer.seal.digest.to_string(),
    }
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
        spec: ImageSpec {
            env: config.env.clone(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            user: config.user.clone(),
            working_dir: config.working_dir.clone(),
            stop_signal: config.stop_signal.clone(),
            labels: config.labels.clone(),
        },
        tags,
        digests,
        annotations: image.annotations(),
        pulled_as: source.to_owned(),
        manifest: image.manifest.clone(),
        config: config.json.clone(),
        pins: back.image_rules.pins.clone(),
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

/// Loads every image of an archive; returns id and names of each.
///
/// # Errors
/// When the archive is none, a layer is bad, or an image has no name and none is given.
pub async fn import(
    back: &Back,
    path: &Path,
    name: Option<&str>,
) -> Result<Vec<(String, Vec<String>)>, ReconcileError> {
    back.observed.import_begins().await?;
    let imported = import_archive(back, path, name).await;
    back.observed.import_ends().await?;
    imported
}

async fn import_archive(
    back: &Back,
    path: &Path,
    name: Option<&str>,
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
        while !store_layers(back, pull::IMPORT, &found.image, &mut stages).await? {
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
