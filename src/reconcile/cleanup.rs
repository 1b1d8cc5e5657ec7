//! One look at a cleanup task: remove the thing, then the row that stood for it.

use super::{Back, ReconcileError, blocking, image, sandbox};
use crate::fault;
use crate::snapshot;
use crate::state::cleanup::{CleanupTask, Resource};
use crate::state::job::Outcome;

/// Removes what a cleanup task names.
pub(super) async fn reconcile(back: &Back, id: i64) -> Result<Outcome, ReconcileError> {
    let Some(task) = back.store.cleanup_task(id).await? else {
        return Ok(Outcome::Done);
    };
    fault::point("cleanup.begun").await?;
    let (back_too, task_too) = (back.clone(), task.clone());
    match blocking(move || remove(&back_too, &task_too)).await {
        Ok(()) => {
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

fn remove(back: &Back, task: &CleanupTask) -> Result<(), ReconcileError> {
    match task.resource {
        Resource::Network => {
            sandbox::remove_link(back, &task.path)?;
            fault::blocking_point("cleanup.link_removed")?;
        }
        Resource::Rootfs => {
            snapshot::remove_snapshot(&back.paths.root, &task.path)?;
            fault::blocking_point("cleanup.rootfs_removed")?;
        }
        Resource::Layer => {
            back.images.remove_layer(&image::chain_id(&task.path)?)?;
            fault::blocking_point("cleanup.layer_removed")?;
        }
    }
    Ok(())
}
