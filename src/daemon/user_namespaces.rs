//! Whether pods can have user namespaces on this node, found out by making one.

use crate::reconcile::Paths;
use crate::runtime::probe;

/// Whether pods can have user namespaces of their own, and why not.
pub(super) fn probe(paths: &Paths, overlays: bool) -> Result<(), String> {
    let tried = probe::user_namespaces(probe::Ground {
        directory: &paths.root.join("staging/user-namespaces"),
        mount_point: &paths.mount_point(),
        overlays,
    });
    let tried = tried.map_err(|error| format!("cannot {error}"));
    if let Err(why) = &tried {
        tracing::warn!(why, "pods get no user namespaces");
    }
    tried
}
