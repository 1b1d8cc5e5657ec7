//! Looks at the images an operator names, or at all: manifest and configuration against their
//! digests, each layer against the list of its entries; and fetches again what is broken, and only
//! that.
//!
//! ```text
//! documents, then layers from the base up ─► whole, or damaged: said in the row
//!                        ─► with `repair`: fetched, checked, exchanged ─► repaired
//! ```
//! A damaged layer stays in its place until a whole one can take it. One that cannot be fetched now
//! (no registry, no credentials) is fetched by the next pull that needs it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::image::{chain_id, record, spec_of};
use super::image_layers::present;
use super::{Back, ReconcileError, blocking, sweep};
use crate::fault;
use crate::image::{
    Compared, Credentials, Depth, Digest, Reference, ResolvedImage, StagedLayer, manifest,
};
use crate::lifecycle::image_check::{Part, Verdict};
use crate::state::image::Image;
use crate::state::image_document::Documents;
use crate::state::image_lookup::FoundImage;
use crate::state::layer::Layer;

/// A check that somebody waits for.
pub struct Request {
    /// Ids or names; none is all images.
    pub images: Vec<String>,
    /// How closely.
    pub depth: Depth,
    /// Whether to fetch again what is broken.
    pub repair: bool,
    /// Where each part goes, and at last why the check could not go on. Who does not listen any
    /// more ends it.
    pub answers: mpsc::Sender<Result<Part, String>>,
}

/// Makes one check at a time, until `stop` turns true.
pub async fn run(
    back: Back,
    mut requests: mpsc::Receiver<Request>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let request = tokio::select! {
            _ = stop.changed() => return,
            request = requests.recv() => request,
        };
        let Some(request) = request else { return };
        let checked = tokio::select! {
            _ = stop.changed() => return,
            () = request.answers.closed() => continue,
            checked = check(&back, &request) => checked,
        };
        if let Err(error) = checked {
            // A command that was interrupted does not wait.
            let _ = request.answers.send(Err(error.full_text())).await;
        }
    }
}

async fn check(back: &Back, request: &Request) -> Result<(), ReconcileError> {
    let mut images = Vec::new();
    for name in &request.images {
        match back.store.find_image(name).await? {
            FoundImage::One(image) => images.push(*image),
            FoundImage::None => return Err(ReconcileError::NoImage(name.clone())),
            FoundImage::Several => return Err(ReconcileError::SeveralImages(name.clone())),
        }
    }
    if request.images.is_empty() {
        images = back.store.images().await?;
    }
    let mut seen = BTreeMap::new();
    for image in images {
        let looking = Looking {
            back,
            request,
            image: &image,
            source: None,
        };
        looking.image(&mut seen).await?;
    }
    Ok(())
}

/// One image being looked at.
struct Looking<'a> {
    back: &'a Back,
    request: &'a Request,
    image: &'a Image,
    /// Where its parts come from, once that was asked.
    source: Option<ResolvedImage>,
}

impl Looking<'_> {
    /// `seen` has the layers that were looked at by way of another image.
    async fn image(mut self, seen: &mut BTreeMap<String, ()>) -> Result<(), ReconcileError> {
        self.documents().await?;
        let layers = match &self.image.top_chain_id {
            Some(top) => self.back.store.layers_of(top).await?,
            None => Vec::new(),
        };
        for layer in layers {
            if seen.insert(layer.chain_id.clone(), ()).is_none() {
                self.layer(&layer).await?;
            }
        }
        Ok(())
    }

    async fn documents(&mut self) -> Result<(), ReconcileError> {
        let id = &self.image.id;
        let Some(origin) = self.back.store.image_origin(id).await? else {
            return Ok(());
        };
        let documents = self.back.store.image_documents(id).await?;
        let mut part = self.part(None);
        part.differences = differences(self.image, &origin.manifest_digest, &documents);
        part.entries = 2;
        let read = documents.manifest.iter().chain(&documents.config);
        part.bytes_read = read.map(|bytes| bytes.len() as u64).sum();
        if !part.differences.is_empty() {
            part.verdict = Verdict::Damaged;
            if self.request.repair {
                let mended = self.mend_documents().await;
                settle(&mut part, mended)?;
            }
        }
        if part.verdict != Verdict::Repaired {
            let damage = told(&part.differences);
            self.back.observed.image_checked(id.clone(), damage).await?;
        }
        self.tell(part).await
    }

    async fn mend_documents(&mut self) -> Result<(), ReconcileError> {
        let source = self.source().await?.clone();
        let name = source.reference.to_string();
        let new = record(self.back, &source, &[], &name);
        self.back.observed.image_mended(new).await?;
        self.back.image_records.notify_one();
        Ok(())
    }

    async fn layer(&mut self, layer: &Layer) -> Result<(), ReconcileError> {
        let id = chain_id(&layer.chain_id)?;
        let seal: Option<Digest> = layer.seal.as_ref().and_then(|seal| seal.parse().ok());
        let (back, depth) = (self.back.clone(), self.request.depth);
        let of = id.clone();
        let looked = move || Ok(back.images.check_layer(&of, seal.as_ref(), depth)?);
        let found = sweep::gently(looked).await?;
        if !self.back.store.is_layer_present(&layer.chain_id).await? {
            // It was removed meanwhile, and what was seen says nothing.
            return Ok(());
        }
        let Compared {
            entries,
            bytes_read,
            mut differences,
            more,
        } = found.compared;
        if let (Depth::Quick, true, Some(known)) = (depth, differences.is_empty(), &layer.damage) {
            // What only a reader of files can see is not taken back by who reads none.
            differences.push(known.clone());
        }
        let mut part = self.part(Some(layer.chain_id.clone()));
        part = Part {
            entries,
            bytes_read,
            differences,
            more,
            ..part
        };
        let damage = told(&part.differences);
        let sealed = found.sealed.map(|seal| {
            let entries = i64::try_from(seal.entries).unwrap_or(i64::MAX);
            (seal.digest.to_string(), entries)
        });
        let name = layer.chain_id.clone();
        self.back
            .observed
            .layer_checked(name, damage, sealed)
            .await?;
        if !part.differences.is_empty() {
            part.verdict = Verdict::Damaged;
            if self.request.repair {
                let mended = self.mend_layer(&id).await;
                settle(&mut part, mended)?;
            }
            self.note(&part).await?;
        }
        self.tell(part).await
    }

    /// Makes a layer again, of its kept blob or else of what its registry has, and puts it in the
    /// place of the broken one.
    async fn mend_layer(&mut self, id: &Digest) -> Result<(), ReconcileError> {
        let staged = match self.of_kept_blob(id).await? {
            Some(staged) => staged,
            None => {
                let source = self.source().await?.clone();
                let index = source.layers.iter().position(|own| own.chain_id == *id);
                let index = index.ok_or_else(|| {
                    ReconcileError::Plan(format!("{} has no layer {id}", source.reference))
                })?;
                let images = &self.back.images;
                images.fetch_layer(&source, index, &Arc::default()).await?
            }
        };
        let back = self.back.clone();
        let placed = blocking(move || {
            let prepared = back.images.prepare_layer(staged, &[], true)?;
            Ok(back.images.place_layers(vec![prepared])?)
        });
        let placed = placed.await?;
        fault::point("image.layer_replaced").await?;
        for layer in &placed {
            self.back.observed.layer_present(present(layer)).await?;
        }
        self.back.unused_layers.notify_one();
        Ok(())
    }

    /// The layer as its kept blob makes it; `None` when there is none, or none that is right.
    async fn of_kept_blob(&self, id: &Digest) -> Result<Option<StagedLayer>, ReconcileError> {
        let (image, images) = (self.image, &self.back.images);
        let documents = self.back.store.image_documents(&image.id).await?;
        let (Some(manifest), Some(config)) = (documents.manifest, documents.config) else {
            return Ok(None);
        };
        let mut names = image.digests.iter().chain(&image.tags);
        let Some(Ok(name)) = names.next().map(|name| name.parse()) else {
            return Ok(None);
        };
        let Ok(kept) = images.kept_image(&name, manifest, config) else {
            return Ok(None);
        };
        let index = kept.layers.iter().position(|own| own.chain_id == *id);
        let Some(index) = index.filter(|index| images.has_blob(&kept, *index)) else {
            return Ok(None);
        };
        match images.fetch_layer(&kept, index, &Arc::default()).await {
            Ok(staged) => Ok(Some(staged)),
            Err(error) => {
                let error = ReconcileError::from(error).full_text();
                tracing::warn!(layer = %id, error, "its kept blob does not mend it");
                Ok(None)
            }
        }
    }

    /// The image as its registry has it, which must be the same image.
    async fn source(&mut self) -> Result<&ResolvedImage, ReconcileError> {
        if self.source.is_none() {
            self.source = Some(self.resolve().await?);
        }
        self.source
            .as_ref()
            .ok_or_else(|| ReconcileError::Plan("no source".into()))
    }

    async fn resolve(&self) -> Result<ResolvedImage, ReconcileError> {
        let mut last = ReconcileError::Plan("the image has no name to fetch it by".into());
        for name in &self.image.digests {
            let Ok(reference) = name.parse::<Reference>() else {
                continue;
            };
            let resolved = self
                .back
                .images
                .resolve(&reference, &Credentials::Anonymous);
            match resolved.await {
                Ok(found) if found.image_id.to_string() == self.image.id => return Ok(found),
                Ok(_) => last = ReconcileError::Plan(format!("{name} is another image by now")),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    fn part(&self, layer: Option<String>) -> Part {
        Part {
            image_id: self.image.id.clone(),
            names: [self.image.tags.as_slice(), &self.image.digests].concat(),
            layer,
            verdict: Verdict::Whole,
            differences: Vec::new(),
            more: 0,
            entries: 0,
            bytes_read: 0,
            error: None,
        }
    }

    async fn note(&self, part: &Part) -> Result<(), ReconcileError> {
        let kind = match part.verdict {
            Verdict::Repaired => "repaired",
            _ => "damaged",
        };
        let told = told(&part.differences).unwrap_or_default();
        let layer = part.layer.as_deref().unwrap_or_default();
        let message = format!("layer {layer}: {told}");
        tracing::warn!(image = part.image_id, message, "{kind}");
        let id = part.image_id.clone();
        Ok(self.back.observed.image_event(id, kind, message).await?)
    }

    async fn tell(&self, part: Part) -> Result<(), ReconcileError> {
        // Nobody listens any more: `run` ends this check.
        let _ = self.request.answers.send(Ok(part)).await;
        Ok(())
    }
}

/// In one line; `None` if nothing differs.
fn told(differences: &[String]) -> Option<String> {
    (!differences.is_empty()).then(|| differences.join("; "))
}

/// What came of a repair. The database's trouble ends the whole check.
fn settle(part: &mut Part, mended: Result<(), ReconcileError>) -> Result<(), ReconcileError> {
    match mended {
        Ok(()) => part.verdict = Verdict::Repaired,
        Err(error @ ReconcileError::State(_)) => return Err(error),
        Err(error) => {
            part.error = Some(format!(
                "{}; a pull of the image with its credentials, or an import, fetches it as well",
                error.full_text()
            ));
        }
    }
    Ok(())
}

/// What is wrong with the documents of an image.
fn differences(image: &Image, manifest_digest: &str, documents: &Documents) -> Vec<String> {
    let mut found = Vec::new();
    let digests = [
        ("manifest", manifest_digest, &documents.manifest),
        ("configuration", image.id.as_str(), &documents.config),
    ];
    for (what, digest, content) in digests {
        let parsed: Option<Digest> = digest.parse().ok();
        match (content, parsed) {
            (None, _) => found.push(format!("its {what} is not kept")),
            (Some(content), Some(digest)) if digest.matches(content) => {}
            _ => found.push(format!("its {what} has another digest than {digest}")),
        }
    }
    if found.is_empty()
        && let Some(config) = &documents.config
    {
        match manifest::parse_config(config.clone()) {
            Ok((summary, _)) if spec_of(&summary) == image.spec => {}
            Ok(_) => found.push("its row says something else than its configuration".to_owned()),
            Err(error) => found.push(format!("its configuration: {error}")),
        }
    }
    found
}
