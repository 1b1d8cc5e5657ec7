//! How writable layers are made: chosen at the first start, recorded, and held to.
//!
//! A snapshot keeps the kind it was made with, so a choice concerns new containers only; but
//! overlays that are there already must go on being mounted, and whether they can is found out
//! here, not by every one of them.

use std::path::Path;

use anyhow::Context;

use crate::config::{SnapshotConfig, SnapshotDriver};
use crate::snapshot::{self, Kind};
use crate::state::node::SNAPSHOTS;
use crate::state::{ObservedWriter, Store};

/// The kind of new snapshots under `root`, by configuration, record and what the kernel can do.
pub(super) async fn choose(
    config: &SnapshotConfig,
    root: &Path,
    store: &Store,
    observed: &ObservedWriter,
) -> anyhow::Result<Kind> {
    let recorded = store.fact(SNAPSHOTS).await?;
    let place = root.display();
    let kind = match (config.driver, recorded.as_deref()) {
        (SnapshotDriver::Native, _) => Kind::Native,
        (SnapshotDriver::Auto, Some("native")) => Kind::Native,
        (SnapshotDriver::Overlay, _) => {
            snapshot::probe(root).with_context(|| {
                format!("snapshot.driver is \"overlay\", but {place} does not take one")
            })?;
            Kind::Overlay
        }
        (SnapshotDriver::Auto, recorded) => match (snapshot::probe(root), recorded) {
            (Ok(()), _) => Kind::Overlay,
            (Err(error), Some(_)) => {
                return Err(error).with_context(|| {
                    format!(
                        "containers under {place} have been overlays, which it does not take any \
                         more; move it back, or set snapshot.driver to \"native\" for new ones"
                    )
                });
            }
            (Err(error), None) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(
                    error,
                    "no overlays: each container gets a copy of its image"
                );
                Kind::Native
            }
        },
    };
    if recorded.as_deref() != Some(kind.as_str()) {
        observed.record_snapshots(kind.as_str()).await?;
        tracing::info!(
            kind = kind.as_str(),
            was = recorded,
            "writable layers are made by"
        );
    }
    Ok(kind)
}
