//! What exists and has no row is removed (invariant I5): but only below our own directories, and
//! only links that carry our own mark.

use std::collections::HashSet;
use std::path::Path;

use super::{Back, ReconcileError, blocking, image};
use crate::{fault, network, snapshot};

/// One sweep. Errors are logged; what could not be removed is found by the next one.
pub async fn run(back: &Back) {
    if let Err(error) = sweep(back).await {
        tracing::warn!(error = error.full_text(), "the sweep did not finish");
    }
}

async fn sweep(back: &Back) -> Result<(), ReconcileError> {
    fault::point("sweep.begun").await?;
    // Listed before the rows are read: what is made later has its row already.
    let back_too = back.clone();
    let found = blocking(move || {
        back_too.images.clear_staging()?;
        Found::list(&back_too)
    })
    .await?;
    fault::point("sweep.listed").await?;
    let sandboxes = ids(back
        .store
        .all_sandbox_ids()
        .await?
        .into_iter()
        .map(String::from));
    let containers = ids(back
        .store
        .all_containers()
        .await?
        .into_iter()
        .map(|c| String::from(c.id)));
    let snapshots = ids(back.store.snapshot_owners().await?);
    let layers = ids(back.store.all_layers().await?);
    let links = ids(back
        .store
        .allocations()
        .await?
        .into_iter()
        .map(|a| a.host_link));
    let known = Known {
        sandboxes,
        containers,
        snapshots,
        layers,
        links,
    };
    fault::point("sweep.compared").await?;
    let back = back.clone();
    blocking(move || {
        discard(&back, &found, &known);
        Ok(())
    })
    .await
}

/// What has a row.
struct Known {
    sandboxes: HashSet<String>,
    containers: HashSet<String>,
    snapshots: HashSet<String>,
    layers: HashSet<String>,
    links: HashSet<String>,
}

/// Removes what was found and is not known.
fn discard(back: &Back, found: &Found, known: &Known) {
    for name in found
        .sandboxes
        .iter()
        .filter(|name| !known.sandboxes.contains(*name))
    {
        let dir = back.paths.sandboxes().join(name);
        note(
            "sandbox directory",
            name,
            super::sandbox_files::discard(&dir),
        );
    }
    for name in found
        .containers
        .iter()
        .filter(|name| !known.containers.contains(*name))
    {
        let dir = back.paths.containers().join(name);
        let removed = std::fs::remove_dir_all(&dir);
        note(
            "container directory",
            name,
            removed.map_err(ReconcileError::file("remove", dir)),
        );
    }
    for name in found
        .snapshots
        .iter()
        .filter(|name| !known.snapshots.contains(*name))
    {
        let removed = snapshot::remove_snapshot(&back.paths.root, name);
        note("snapshot", name, removed.map_err(ReconcileError::from));
    }
    for name in found
        .layers
        .iter()
        .filter(|name| !known.layers.contains(*name))
    {
        let removed =
            image::chain_id(name).and_then(|chain_id| Ok(back.images.remove_layer(&chain_id)?));
        note("layer", name, removed);
    }
    for name in found
        .links
        .iter()
        .filter(|name| !known.links.contains(*name))
    {
        let removed = network::remove_pod_link(name, &back.paths.marker());
        note("link", name, removed.map_err(ReconcileError::from));
    }
}

fn ids(names: impl IntoIterator<Item = String>) -> HashSet<String> {
    names.into_iter().collect()
}

fn note(kind: &str, name: &str, result: Result<(), ReconcileError>) {
    match result {
        Ok(()) => tracing::warn!(kind, name, "removed what had no row"),
        Err(error) => {
            tracing::warn!(
                kind,
                name,
                error = error.full_text(),
                "cannot remove what has no row"
            );
        }
    }
}

/// What exists.
struct Found {
    sandboxes: Vec<String>,
    containers: Vec<String>,
    snapshots: Vec<String>,
    layers: Vec<String>,
    links: Vec<String>,
}

impl Found {
    fn list(back: &Back) -> Result<Self, ReconcileError> {
        let marker = back.paths.marker();
        let links = network::list_links(&marker)?;
        Ok(Self {
            sandboxes: names(&back.paths.sandboxes())?,
            containers: names(&back.paths.containers())?,
            snapshots: snapshot::list_snapshots(&back.paths.root)?,
            layers: back
                .images
                .list_layers()?
                .iter()
                .map(ToString::to_string)
                .collect(),
            links: links
                .into_iter()
                .filter(|link| link.alias == marker && link.kind == "veth")
                .map(|link| link.name)
                .collect(),
        })
    }
}

fn names(dir: &Path) -> Result<Vec<String>, ReconcileError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(ReconcileError::file("list", dir))? {
        let entry = entry.map_err(ReconcileError::file("list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
