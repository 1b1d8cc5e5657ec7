//! One look at a cleanup task: remove the thing, then the row that stood for it.

use std::path::{Component, Path};

use super::{Back, ReconcileError, blocking, image, processes, sandbox, sandbox_files};
use crate::cgroup::CgroupPath;
use crate::fault;
use crate::id::ObjectKey;
use crate::lifecycle::slice;
use crate::network::{self, EgressPolicy};
use crate::snapshot;
use crate::state::cleanup::{CleanupTask, Resource};
use crate::state::job::Outcome;

/// Pause before a cgroup whose processes still end is looked at again, at first and at last.
const ENDING_NS: i64 = 20_000_000;
const ENDING_MAX_NS: i64 = 60_000_000_000;
/// The longest such pause for a link that should go by itself; then it is removed.
const LINK_GOES_NS: i64 = 400_000_000;

/// Removes what a cleanup task names.
pub(super) async fn reconcile(back: &Back, id: i64) -> Result<Outcome, ReconcileError> {
    let Some(task) = back.store.cleanup_task(id).await? else {
        return Ok(Outcome::Done);
    };
    back.observed.cleanup_begun(id).await?;
    // The last moment to find that somebody needs it after all.
    let in_use = task.resource == Resource::Bridge && task.path == back.network.bridge;
    if in_use || !back.store.is_unclaimed(&task).await? {
        back.observed.cleanup_withdrawn(id).await?;
        return Ok(Outcome::Done);
    }
    fault::point("cleanup.begun").await?;
    let (back_too, task_too) = (back.clone(), task.clone());
    let key = ObjectKey::Cleanup(id);
    if task.resource == Resource::Network
        && let Some(pause) = link_goes(back, &key, &task.path).await?
    {
        return Ok(Outcome::Again(pause));
    }
    match blocking(move || remove(&back_too, &task_too)).await {
        Ok(false) => {
            let progress = back.store.progress();
            let pause = progress.wait(&key, "its processes end", ENDING_NS, ENDING_MAX_NS);
            Ok(Outcome::Again(pause))
        }
        Ok(true) => {
            if task.resource == Resource::Cgroup
                && let Some(id) = slice::id_of(&task.path)
                && let Ok(shim) = back.shim()
            {
                // It held what ran there, and would hold the exit for ever.
                shim.forget(&id).await?;
            }
            back.store.progress().rests(&key);
            back.observed.cleanup_completed(id, task).await?;
            fault::point("cleanup.completed").await?;
            Ok(Outcome::Done)
        }
        Err(error) => {
            back.observed.cleanup_failed(id, error.full_text()).await?;
            Err(error)
        }
    }
}

/// When to look again whether a link has gone with its namespace: then the kernel takes away many
/// at once, while each that is removed by itself costs 20 ms and more. `None` once it has gone, or
/// has not for a while.
async fn link_goes(
    back: &Back,
    key: &ObjectKey,
    link: &str,
) -> Result<Option<i64>, ReconcileError> {
    let progress = back.store.progress();
    let pause = progress.wait(key, "its namespace ends", ENDING_NS, LINK_GOES_NS);
    if pause >= LINK_GOES_NS {
        return Ok(None);
    }
    let link = link.to_owned();
    let there = blocking(move || Ok(network::has_link(&link)?)).await?;
    Ok(there.then_some(pause))
}

/// `false` says that something in it still ends.
fn remove(back: &Back, task: &CleanupTask) -> Result<bool, ReconcileError> {
    let path = task.path.as_str();
    match task.resource {
        Resource::Network => {
            sandbox::remove_link(back, path)?;
            // Whoever put the rules right meanwhile may still have counted the pod in.
            let policy = EgressPolicy {
                link: path.to_owned(),
                rules: Vec::new(),
            };
            network::close_policy(&back.netfilter, &back.network.bridge, &policy)?;
            fault::blocking_point("cleanup.link_removed")?;
        }
        Resource::Bridge => network::remove_bridge(path, &back.paths.marker())?,
        Resource::Rootfs => {
            snapshot::remove_snapshot(&back.paths.root, path)?;
            fault::blocking_point("cleanup.rootfs_removed")?;
        }
        Resource::Layer => {
            back.images.remove_layer(&image::chain_id(path)?)?;
            fault::blocking_point("cleanup.layer_removed")?;
        }
        Resource::Cgroup => {
            return processes::end_cgroup(&back.cgroups, &CgroupPath::parse(path)?);
        }
        Resource::Mounts => {
            let point = Path::new(path);
            if !point.starts_with(&back.paths.state) || !is_plain(point) {
                return Err(outside(path));
            }
            sandbox_files::unmount(point)?;
        }
        Resource::SandboxFiles => {
            sandbox_files::discard(&child(&back.paths.sandboxes(), path)?)?;
        }
        Resource::ContainerFiles => {
            sandbox_files::discard_tree(&child(&back.paths.containers(), path)?)?;
        }
    }
    Ok(true)
}

/// An entry of one of our directories, and nothing else.
fn child(dir: &Path, name: &str) -> Result<std::path::PathBuf, ReconcileError> {
    let path = Path::new(name);
    let mut components = path.components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(_)), None) => Ok(dir.join(path)),
        _ => Err(outside(name)),
    }
}

fn is_plain(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn outside(path: &str) -> ReconcileError {
    ReconcileError::NotOurs(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_entry_of_our_own_directory_is_ever_removed() {
        let dir = Path::new("/state/sandboxes");
        for bad in ["", ".", "..", "/", "/etc", "a/b", "../x", "a/.."] {
            assert!(child(dir, bad).is_err(), "{bad:?}");
        }
        assert_eq!(child(dir, "ab").unwrap(), dir.join("ab"));
        assert!(!is_plain(Path::new("/state/../etc")));
    }
}
