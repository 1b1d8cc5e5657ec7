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
use crate::sys::mountinfo::{self, MountEntry};

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
    let mounts = mountinfo::read().unwrap_or_default();
    tracing::info!(
        why = unlimited(root, &mounts),
        "writable layers have no quota"
    );
    Ok(kind)
}

/// Why a container may fill the file system that `root` is on.
fn unlimited(root: &Path, mounts: &[MountEntry]) -> &'static str {
    let above = mounts
        .iter()
        .filter(|mount| root.starts_with(&mount.mount_point));
    // Of mounts on one point the last one shows.
    let on = above.max_by_key(|mount| mount.mount_point.components().count());
    let options = on.map(|mount| mount.super_options.as_slice());
    let has_quota = |option: &String| option == "prjquota" || option == "pquota";
    match options.is_some_and(|options| options.iter().any(has_quota)) {
        true => "its file system has project quotas, and this version sets none",
        false => "its file system is mounted without project quotas, and this version sets none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_whether_the_file_system_could_have_limited_containers() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:2 / /var/lib rw shared:1 - xfs /dev/b rw,prjquota\n\
            3 1 8:3 / /var/lib/quilt2 rw - ext4 /dev/c rw,usrquota\n";
        let mounts = mountinfo::parse(text);
        let has = |root: &str| unlimited(Path::new(root), &mounts).contains("has project quotas");
        assert!(has("/var/lib/quilt") && has("/var/lib"));
        assert!(!has("/var/lib/quilt2") && !has("/srv") && !has("/var/library"));
    }
}
