//! Whether mounts can spread as a volume asks for: that is up to the mount of the node on which the
//! volume lies (mount_namespaces(7), "Shared subtrees").
//!
//! What cannot is an error. A volume that looks right and never shows what is mounted later is
//! noticed by nobody until it is needed.

use std::fs;
use std::path::Path;

use super::ReconcileError;
use crate::lifecycle::spec::{MountSpec, Propagation};
use crate::sys::mountinfo::{self, MountEntry};

/// Checks the volumes of a container, whose host paths are there.
pub(super) fn check(volumes: &[MountSpec]) -> Result<(), ReconcileError> {
    let asking = volumes.iter();
    let mut asking = asking
        .filter(|volume| volume.image.is_none() && volume.propagation != Propagation::Private);
    let Some(first) = asking.next() else {
        return Ok(());
    };
    let table = "/proc/thread-self/mountinfo";
    let mounts = mountinfo::read().map_err(ReconcileError::file("read", table))?;
    for volume in std::iter::once(first).chain(asking) {
        let path = &volume.host_path;
        let path = fs::canonicalize(path).map_err(ReconcileError::file("find", path))?;
        let on = mount_of(&path, &mounts);
        if let Some(problem) = on.and_then(|on| problem(volume, on)) {
            return Err(ReconcileError::Plan(problem));
        }
    }
    Ok(())
}

/// The mount that `path` is on: the nearest, and of those on one place the last.
fn mount_of<'a>(path: &Path, mounts: &'a [MountEntry]) -> Option<&'a MountEntry> {
    let above = mounts.iter();
    let above = above.filter(|mount| path.starts_with(&mount.mount_point));
    above.max_by_key(|mount| mount.mount_point.components().count())
}

fn problem(volume: &MountSpec, on: &MountEntry) -> Option<String> {
    let (spreads, wanted) = match volume.propagation {
        Propagation::Private => return None,
        Propagation::HostToContainer => (on.shared || on.slave, "shared or slave"),
        Propagation::Bidirectional => (on.shared, "shared"),
    };
    let (path, point) = (&volume.host_path, on.mount_point.display());
    let text = || {
        format!(
            "the mount propagation of {path:?} needs a {wanted} mount, and {point} is none: \
             `mount --make-rshared {point}` on the node"
        )
    };
    (!spreads).then(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_nothing_would_spread_to_is_refused() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/root rw\n\
            2 1 8:2 / /a rw shared:1 - ext4 /dev/a rw\n\
            3 1 8:3 / /a/b rw master:1 - ext4 /dev/b rw\n\
            4 1 8:4 / /over rw shared:2 - ext4 /dev/c rw\n\
            5 1 8:5 / /over rw - tmpfs none rw\n";
        let mounts = mountinfo::parse(table);
        let refused = |path: &str, propagation| {
            let volume = MountSpec {
                host_path: path.into(),
                propagation,
                ..MountSpec::default()
            };
            let on = mount_of(Path::new(path), &mounts).expect("something is mounted on /");
            problem(&volume, on).is_some()
        };
        use Propagation::{Bidirectional, HostToContainer, Private};
        for (path, by) in [
            ("/x", [false, true, true]),
            ("/a/x", [false, false, false]),
            ("/a/b/x", [false, false, true]),
            ("/ab", [false, true, true]),
            ("/over/x", [false, true, true]),
        ] {
            let found = [Private, HostToContainer, Bidirectional].map(|how| refused(path, how));
            assert_eq!(found, by, "{path}");
        }
    }
}
