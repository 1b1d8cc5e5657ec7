//! The layers of an image on their way to their places: fetched side by side, each completed as
//! soon as those below it are, and made to count together.
//!
//! ```text
//!   rows ─► fetched, in any order ─► prepared, bottom first ─► placed, all at once ─► rows
//! ```
//! When one fails, the others end; what is below it and has come is kept for a retry.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};

use super::pull_progress::{self, Watch};
use super::{Back, ReconcileError, blocking};
use crate::fault;
use crate::image::{
    Below, CommittedLayer, Digest, ImageError, PreparedLayer, ResolvedImage, StagedLayer,
};
use crate::state::layer::{NewLayer, PresentLayer};
use crate::state::progress::Stages;
use crate::state::pull_progress::LayerStage;

/// Brings every layer of an image to its place, held by `holder`, a row of `pulls` whose progress
/// it is; `false` when one is being removed just now.
pub(super) async fn store_layers(
    back: &Back,
    holder: &str,
    image: &ResolvedImage,
    stages: &mut Stages<'_>,
    given_up: impl Future<Output = ()>,
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
    // What is being fetched goes when that is dropped. What comes later takes no time.
    let (prepared, failed) = tokio::select! {
        fetched = fetch_layers(back, holder, image, stages) => fetched?,
        () = given_up => return Err(ReconcileError::GivenUp),
    };
    if !prepared.is_empty() {
        // Beside what comes next; nobody needs to know when.
        tokio::task::spawn_blocking(crate::sys::memory::give_back);
    }
    fault::point("image.fetched").await?;
    stages.enter("commit");
    let back_too = back.clone();
    let placed = blocking(move || Ok(back_too.images.place_layers(prepared)?)).await?;
    pull_progress::measure_downloads(back).await;
    fault::point("image.layer_committed").await?;
    for layer in &placed {
        back.observed.layer_present(present(layer)).await?;
        fault::point("image.layer_recorded").await?;
    }
    failed.map_or(Ok(true), Err)
}

/// Fetches the layers that are not here and completes them; returns them bottom first, and why not
/// all of them have come: then up to the first that has not.
async fn fetch_layers(
    back: &Back,
    holder: &str,
    image: &ResolvedImage,
    stages: &mut Stages<'_>,
) -> Result<(Vec<PreparedLayer>, Option<ReconcileError>), ReconcileError> {
    let image = Arc::new(image.clone());
    let of = image.layers.len();
    let (back_too, key, image_too) = (back.clone(), holder.to_owned(), Arc::clone(&image));
    let mut watch = blocking(move || Ok(Watch::new(&key, &back_too, &image_too))).await?;
    let mut missing = VecDeque::new();
    for (index, layer) in image.layers.iter().enumerate() {
        match is_there(back, &layer.chain_id).await? {
            true => watch.reached(index, LayerStage::Present),
            false => missing.push_back(index),
        }
    }
    watch.begin(back).await?;
    fault::point("image.pull_begun").await?;
    let mut coming = Coming::new(back, missing, of);
    for index in coming.missing.clone() {
        let (back, image, progress) = (back.clone(), Arc::clone(&image), watch.progress(index));
        coming.fetching.spawn(async move {
            let fetched = back.images.fetch_layer(&image, index, &progress).await;
            (index, fetched)
        });
    }
    let mut tick = tokio::time::interval(pull_progress::PERIOD);
    tick.reset();
    while coming.goes_on() {
        coming.prepare_next();
        stages.count(of - coming.fetching.len(), of);
        tokio::select! {
            Some(joined) = coming.fetching.join_next() => {
                if let Some(index) = coming.fetched(joined) {
                    watch.reached(index, LayerStage::Fetched);
                    stages.count(of - coming.fetching.len(), of);
                    fault::point("image.layer_fetched").await?;
                }
            }
            Some(joined) = coming.preparing.join_next() => coming.prepared(joined),
            _ = tick.tick() => watch.note(back).await,
        }
    }
    watch.note(back).await;
    back.store.metrics().pulled_bytes.add(watch.fetched_bytes());
    Ok((coming.done, coming.failed))
}

/// Layers of one image that are being fetched and completed. Dropping it ends that; what was staged
/// goes with it.
struct Coming<'b> {
    back: &'b Back,
    fetching: JoinSet<(usize, Result<StagedLayer, ImageError>)>,
    /// One at most: each stands on those below it.
    preparing: JoinSet<Result<PreparedLayer, ReconcileError>>,
    /// To be completed still, bottom first.
    missing: VecDeque<usize>,
    staged: Vec<Option<StagedLayer>>,
    below: Vec<Below>,
    done: Vec<PreparedLayer>,
    failed: Option<ReconcileError>,
}

impl<'b> Coming<'b> {
    fn new(back: &'b Back, missing: VecDeque<usize>, of: usize) -> Self {
        Self {
            back,
            fetching: JoinSet::new(),
            preparing: JoinSet::new(),
            missing,
            staged: (0..of).map(|_| None).collect(),
            below: Vec::new(),
            done: Vec::new(),
            failed: None,
        }
    }

    fn goes_on(&self) -> bool {
        !self.fetching.is_empty() || !self.preparing.is_empty() || self.next().is_some()
    }

    /// The lowest layer that is not complete, if it has come.
    fn next(&self) -> Option<usize> {
        let next = self.missing.front().copied();
        next.filter(|index| self.staged.get(*index).is_some_and(Option::is_some))
    }

    fn prepare_next(&mut self) {
        if !self.preparing.is_empty() {
            return;
        }
        let Some(index) = self.next() else { return };
        self.missing.pop_front();
        let staged = self.staged.get_mut(index).and_then(Option::take);
        let Some(staged) = staged else { return };
        let (back, below) = (self.back.clone(), self.below.clone());
        self.preparing.spawn(async move {
            let name = staged.chain_id().to_string();
            let replaces = back.store.is_layer_damaged(&name).await?;
            let back_too = back.clone();
            blocking(move || Ok(back_too.images.prepare_layer(staged, &below, replaces)?)).await
        });
    }

    /// Which layer has come.
    fn fetched(
        &mut self,
        joined: Result<(usize, Result<StagedLayer, ImageError>), JoinError>,
    ) -> Option<usize> {
        match joined {
            Ok((index, Ok(layer))) => {
                self.staged[index] = Some(layer);
                return Some(index);
            }
            Ok((_, Err(error))) => self.fail(error.into()),
            Err(_) => self.fail(ReconcileError::Panicked),
        }
        None
    }

    fn prepared(&mut self, joined: Result<Result<PreparedLayer, ReconcileError>, JoinError>) {
        match joined.unwrap_or(Err(ReconcileError::Panicked)) {
            Ok(layer) => {
                self.below.extend(layer.below());
                self.done.push(layer);
            }
            Err(error) => {
                self.fail(error);
                self.missing.clear();
            }
        }
    }

    /// The first failure counts; other downloads end.
    fn fail(&mut self, error: ReconcileError) {
        self.fetching = JoinSet::new();
        self.failed.get_or_insert(error);
    }
}

/// Whether a layer need not be fetched. One that came into its place just before its daemon died is
/// whole and only lacks its row's word.
pub(super) async fn is_there(back: &Back, chain_id: &Digest) -> Result<bool, ReconcileError> {
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
