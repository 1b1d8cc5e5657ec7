//! Networks that are made before a pod asks for one (`[network] prepared`): namespaces with `lo`
//! up, `/dev/shm`, and a link with its addresses.
//!
//! ```text
//!  rows ──► drop those that no longer fit ──► complete those that are not ──► reserve and make
//! ```
//!
//! One key stands for all of them, so that there is one look at a time. RunPodSandbox makes a
//! sandbox of one in its own transaction (`state::prepared`) and asks for this look when half are
//! gone. What differs between pods (host name, sysctls, ports) is set when the pod is set up.

use std::time::{Duration, Instant};

use super::{Back, ReconcileError, blocking, sandbox, sandbox_files};
use crate::fault;
use crate::id::SandboxId;
use crate::lifecycle::address::Pool;
use crate::lifecycle::spec::Map;
use crate::network::{self, NamespaceSpec, NetworkConfig};
use crate::state::job::Outcome;
use crate::state::network::Allocation;
use crate::state::prepared::Prepared;

/// Longest wait for links to go with their namespaces, when the daemon ends.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at whether they are gone.
const END_PAUSE: Duration = Duration::from_millis(5);

/// Where pods get their addresses from, before kubelet has told a range.
#[must_use]
pub fn pool(config: &NetworkConfig) -> Pool {
    Pool {
        subnet: config.subnet,
        gateway: config.gateway().addr(),
        bridge: config.bridge.clone(),
        subnet6: config.subnet6,
        quarantine_ns: config.address_rest_ns(),
        mtu: config.mtu,
        prepared: config.prepared,
    }
}

/// Whether a pod of today could take it.
fn fits(one: &Prepared, allocation: &Allocation, pool: &Pool, boot_id: &str) -> bool {
    let ipv6 = allocation.ipv6;
    one.boot_id == boot_id
        && one.mtu == pool.mtu
        && allocation.bridge == pool.bridge
        && allocation.gateway == pool.gateway
        && allocation.prefix_length == pool.subnet.prefix_len()
        && pool.subnet.contains(&allocation.address)
        && ipv6.map(|given| given.gateway) == pool.gateway6()
        && ipv6.map(|given| given.prefix_length) == pool.subnet6.map(|net| net.prefix_len())
}

/// Sees to it that as many networks wait as should.
pub(super) async fn reconcile(back: &Back) -> Result<Outcome, ReconcileError> {
    let configured = pool(&back.network);
    let pool = back.store.pool_now(&configured).await?;
    let wanted = match back.plugins.is_native() {
        true => usize::try_from(pool.prepared).unwrap_or(usize::MAX),
        // Plugins make what they need themselves.
        false => 0,
    };
    let (mut unfit, mut kept) = (Vec::new(), Vec::new());
    for one in back.store.prepared_networks().await? {
        // One that was taken between two reads is a pod's.
        let Some(allocation) = back.store.allocation(&one.id).await? else {
            continue;
        };
        if kept.len() < wanted && fits(&one, &allocation, &pool, &back.boot_id) {
            kept.push(one);
        } else {
            unfit.push(one.id);
        }
    }
    if !unfit.is_empty() {
        back.observed.drop_prepared(unfit).await?;
        fault::point("prepared.dropped").await?;
    }
    for one in kept.iter().filter(|one| !one.is_ready) {
        make(back, &one.id).await?;
    }
    if kept.len() < wanted {
        let boot_id = back.boot_id.clone();
        let new = back.observed.reserve_prepared(configured, boot_id).await?;
        fault::point("prepared.reserved").await?;
        for id in &new {
            make(back, id).await?;
        }
    }
    Ok(Outcome::Done)
}

/// Makes one, or completes it.
async fn make(back: &Back, id: &SandboxId) -> Result<(), ReconcileError> {
    let Some(allocation) = back.store.allocation(id).await? else {
        return Ok(());
    };
    let (back_too, id_too) = (back.clone(), id.clone());
    blocking(move || {
        let dir = back_too.paths.sandbox(&id_too);
        std::fs::create_dir_all(&dir).map_err(ReconcileError::file("make", &dir))?;
        network::ensure_namespaces(&NamespaceSpec {
            dir: &dir.join("ns"),
            net: true,
            ipc: true,
            // The sandbox' own if it wishes none.
            hostname: Some(id_too.short()),
            sysctls: &[],
            users: None,
        })?;
        fault::blocking_point("prepared.namespaces")?;
        let link = (&id_too, &allocation, &Map::new());
        sandbox::with_link_spec(&back_too, link, network::ensure_pod_link)?;
        fault::blocking_point("prepared.link")?;
        sandbox_files::mount_shm(&dir, None)
    })
    .await?;
    back.observed.prepared_is_ready(id.clone()).await?;
    Ok(fault::point("prepared.ready").await?)
}

/// Takes all of them down, when the daemon ends and the node has no pod; links of pods that have
/// just gone are waited for as well.
///
/// # Errors
/// When something cannot be removed; the next start goes on with it.
pub async fn end(back: &Back) -> Result<(), ReconcileError> {
    let prepared = back.store.prepared_networks().await?;
    let ids: Vec<_> = prepared.into_iter().map(|one| one.id).collect();
    let allocations = back.store.allocations().await?;
    let links: Vec<_> = allocations
        .into_iter()
        .map(|allocation| allocation.host_link)
        .collect();
    if links.is_empty() {
        return Ok(());
    }
    let (back_too, ids_too) = (back.clone(), ids.clone());
    blocking(move || {
        for id in &ids_too {
            sandbox_files::discard(&back_too.paths.sandbox(id))?;
        }
        let marker = back_too.paths.marker();
        let end = Instant::now() + END_PATIENCE;
        let are_there = || {
            let found = network::list_links(&marker)?;
            Ok::<_, ReconcileError>(found.iter().any(|link| links.contains(&link.name)))
        };
        // They go with their namespaces, all at once.
        while are_there()? && Instant::now() < end {
            std::thread::sleep(END_PAUSE);
        }
        for link in &links {
            network::remove_pod_link(link, &marker)?;
        }
        Ok(())
    })
    .await?;
    Ok(back.observed.prepared_are_gone(ids).await?)
}
