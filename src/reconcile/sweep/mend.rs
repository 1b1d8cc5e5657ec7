//! From a difference to what mends it: a cleanup task, a look at a pod or a container, or a row
//! that stops claiming what is gone.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::difference::{Difference, Repair, Thing};
use crate::reconcile::{Back, ReconcileError, image, node_network};
use crate::state::cleanup::{CleanupTask, Resource};
use crate::state::health::Report;

/// Orphans handed to cleanup tasks in one run; the next run goes on.
const ORPHANS_MAX: usize = 1000;
/// Looks asked for in one run.
const LOOKS_MAX: usize = 500;

/// Sees to it that everything is mended that can be. What takes time is left to the workers.
pub(super) async fn mend(
    back: &Back,
    health: &watch::Sender<Report>,
    differences: &[Difference],
) -> Result<(), ReconcileError> {
    let with = |repair| differences.iter().filter(move |one| one.repair == repair);
    let orphans: Vec<_> = with(Repair::Remove)
        .filter_map(task)
        .take(ORPHANS_MAX)
        .collect();
    if !orphans.is_empty() {
        back.observed.remove_orphans(orphans).await?;
    }
    let network = [Repair::Bridge, Repair::Rules];
    if network.iter().any(|repair| with(*repair).next().is_some()) {
        node_network::mend(back, health).await;
    }
    for one in with(Repair::Forget) {
        forget(back, one).await?;
    }
    let mut keys: BTreeSet<String> = BTreeSet::new();
    keys.extend(differences.iter().filter_map(key));
    let keys = keys
        .into_iter()
        .take(LOOKS_MAX)
        .filter_map(|key| key.parse::<ObjectKey>().ok())
        .collect();
    back.observed.enqueue(keys).await?;
    Ok(())
}

/// Why a difference is left, as far as its task or its job knows.
pub(super) fn why(one: &Difference, errors: &BTreeMap<String, String>) -> String {
    let found = match one.repair {
        Repair::Nothing(_) => return String::new(),
        Repair::Remove => errors.get(&one.name),
        _ => key(one).and_then(|key| errors.get(&key)),
    };
    found
        .cloned()
        .unwrap_or_else(|| "it is still being worked on".to_owned())
}

/// The key of the object that gets a look.
fn key(one: &Difference) -> Option<String> {
    let owner = one.owner.clone();
    let key = match one.repair {
        Repair::Sandbox | Repair::Down => ObjectKey::Sandbox(SandboxId::try_from(owner).ok()?),
        Repair::Container => ObjectKey::Container(ContainerId::try_from(owner).ok()?),
        Repair::Remove | Repair::Bridge | Repair::Rules | Repair::Forget | Repair::Nothing(_) => {
            return None;
        }
    };
    Some(key.to_string())
}

fn task(one: &Difference) -> Option<CleanupTask> {
    let resource = match one.thing {
        Thing::Bridge => Resource::Bridge,
        Thing::Cgroup => Resource::Cgroup,
        Thing::ContainerFiles => Resource::ContainerFiles,
        Thing::Layer => Resource::Layer,
        Thing::Link => Resource::Network,
        Thing::Mount => Resource::Mounts,
        Thing::SandboxFiles => Resource::SandboxFiles,
        Thing::Snapshot => Resource::Rootfs,
        // These are never without an owner.
        Thing::Attachment
        | Thing::Image
        | Thing::Init
        | Thing::Namespace
        | Thing::Process
        | Thing::Rules
        | Thing::SandboxFile => return None,
    };
    Some(CleanupTask {
        resource,
        path: one.name.clone(),
        owner: one.owner.clone(),
    })
}

/// The name of the layer that is gone: an image names it as what it lacks.
async fn forget(back: &Back, one: &Difference) -> Result<(), ReconcileError> {
    let name = match one.thing {
        Thing::Image => &one.owner,
        _ => &one.name,
    };
    let chain_id = image::chain_id(name)?;
    // A pull may have brought it back.
    if one.thing == Thing::Layer && back.images.has_layer(&chain_id) {
        return Ok(());
    }
    Ok(back.observed.layer_lost(name.clone()).await?)
}
