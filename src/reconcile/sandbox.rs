//! One look at a sandbox: steps until wish and fact agree or something has to be waited for.

use std::net::IpAddr;
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};

use super::pod_network::{self, Connected, Given};
use super::{Back, ReconcileError, blocking, node_network, records};
use super::{sandbox_files, sandbox_repair, sandbox_update, stand_in};
use crate::fault;
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::bandwidth::Bandwidth;
use crate::lifecycle::container;
use crate::lifecycle::id_map::{self, IdMaps};
use crate::lifecycle::record::{AddressRecord, AttachmentRecord, SandboxRecord};
use crate::lifecycle::sandbox::{Containers, Desired, State, Step, effective, next_step};
use crate::lifecycle::spec::{Map, NamespaceMode};
use crate::network::{self, NamespaceSpec, NetworkError, PodLinkSpec, ShapingSpec, UserSpec};
use crate::runtime::plan::{CgroupEntry, PodInitPlan};
use crate::state::attachment::Attachment;
use crate::state::job::Outcome;
use crate::state::network::Allocation;
use crate::state::now_ns;
use crate::state::operation::Finished;
use crate::state::progress::Stages;
use crate::state::sandbox::Sandbox;

/// Looked at again at the latest after this long, at first and at last, when containers are waited
/// for; their exits come earlier by themselves.
const WAIT_NS: i64 = 5_000_000_000;
const WAIT_MAX_NS: i64 = 60_000_000_000;
/// The same for the init of a pod, whose end nobody tells of.
const INIT_NS: i64 = 2_000_000;
const INIT_MAX_NS: i64 = 5_000_000_000;

/// Brings one sandbox to rest.
pub(super) async fn reconcile(back: &Back, id: &SandboxId) -> Result<Outcome, ReconcileError> {
    let key = ObjectKey::Sandbox(id.clone());
    let outcome = steps(back, id, &key).await;
    if matches!(outcome, Ok(Outcome::Done)) {
        back.store.progress().rests(&key);
    }
    outcome
}

async fn steps(back: &Back, id: &SandboxId, key: &ObjectKey) -> Result<Outcome, ReconcileError> {
    let progress = back.store.progress();
    let init_ends = || Outcome::Again(progress.wait(key, "pod init ends", INIT_NS, INIT_MAX_NS));
    let mut checked = false;
    loop {
        let Some(sandbox) = back.store.sandbox(id).await? else {
            return Ok(Outcome::Done);
        };
        let containers = back.store.sandbox_containers(id).await?;
        let alive = containers
            .iter()
            .filter(|c| container::may_live(c.state))
            .count();
        let counts = Containers {
            known: containers.len() as u64,
            alive: alive as u64,
        };
        let desired = effective(sandbox.desired, sandbox.init_ended);
        match next_step(desired, sandbox.state, counts) {
            Step::Rest
                if sandbox.update.is_wanted()
                    && desired == Desired::Ready
                    && sandbox.state == State::Ready =>
            {
                sandbox_update::update(back, &sandbox).await?;
            }
            Step::Rest if checked || desired != Desired::Ready || sandbox.state != State::Ready => {
                return Ok(Outcome::Done);
            }
            // A look at a pod that is up: what somebody took from it is given back.
            Step::Rest => {
                sandbox_repair::complete(back, &sandbox, &containers).await?;
                stand_in::follow(back, id).await;
                checked = true;
            }
            Step::SetUp => {
                if !set_up(back, &sandbox).await? {
                    let stage = "plugins connect it";
                    let pause = progress.wait(key, stage, WAIT_NS, WAIT_MAX_NS);
                    return Ok(Outcome::Again(pause));
                }
                checked = true;
            }
            Step::StopContainers | Step::RemoveContainers => {
                let keys = containers
                    .into_iter()
                    .map(|c| ObjectKey::Container(c.id))
                    .collect();
                back.observed.enqueue(keys).await?;
                let pause = progress.wait(key, "containers end", WAIT_NS, WAIT_MAX_NS);
                return Ok(Outcome::Again(pause));
            }
            Step::TearDown | Step::Remove if !end_init(back, &sandbox).await? => {
                return Ok(init_ends());
            }
            Step::TearDown | Step::Remove if !pod_network::disconnect(back, &sandbox).await? => {
                let stage = "plugins disconnect it";
                let pause = progress.wait(key, stage, WAIT_NS, WAIT_MAX_NS);
                return Ok(Outcome::Again(pause));
            }
            Step::TearDown => tear_down(back, &sandbox).await?,
            Step::Remove => {
                progress.at(key, "remove");
                remove(back, &sandbox).await?;
                return Ok(Outcome::Done);
            }
        }
    }
}

fn finished(
    kind: &'static str,
    id: &SandboxId,
    started_at: i64,
    stages: Stages<'_>,
    error: Option<String>,
) -> Finished {
    Finished {
        kind,
        object_id: id.to_string(),
        started_at,
        duration_ns: now_ns() - started_at,
        error,
        stages: stages.finish(),
    }
}

/// `false` says that plugins are still at it.
async fn set_up(back: &Back, sandbox: &Sandbox) -> Result<bool, ReconcileError> {
    fault::point("sandbox.recorded").await?;
    let id = &sandbox.id;
    let mut stages = Stages::new(back.store.progress(), ObjectKey::Sandbox(id.clone()));
    let attachment = pod_network::attachment(back, id).await?;
    let plugins_ns = attachment.as_ref().map_or(0, |attached| attached.add_ns);
    stages.record("queue", now_ns() - sandbox.created_at - plugins_ns);
    match make(back, sandbox, attachment, &mut stages).await {
        Ok(false) => Ok(false),
        Ok(true) => {
            let done = finished("run_sandbox", id, sandbox.created_at, stages, None);
            back.observed
                .sandbox_ready(id.clone(), back.boot_id.clone(), done)
                .await?;
            let ready_at = now_ns();
            note(back, id, move |record| record.ready_at = Some(ready_at)).await;
            fault::point("sandbox.ready").await?;
            Ok(true)
        }
        Err(error) if error.is_passing() => Err(error),
        Err(error) => {
            let text = error.full_text();
            tracing::warn!(sandbox = %id, error = text, "cannot set the sandbox up");
            let done = finished("run_sandbox", id, sandbox.created_at, stages, Some(text));
            back.observed.sandbox_failed(id.clone(), done).await?;
            fault::point("sandbox.failed").await?;
            Ok(true)
        }
    }
}

async fn make(
    back: &Back,
    sandbox: &Sandbox,
    attachment: Option<Attachment>,
    stages: &mut Stages<'_>,
) -> Result<bool, ReconcileError> {
    let allocation = back.store.allocation(&sandbox.id).await?;
    stages.enter("namespaces");
    let (back_too, sandbox_too) = (back.clone(), sandbox.clone());
    let allocated = allocation.clone();
    let prepared = blocking(move || {
        make_namespaces(
            &back_too,
            &sandbox_too,
            allocated.as_ref(),
            Namespaces::Settled,
        )
    })
    .await?;
    fault::point("sandbox.namespaces").await?;
    if let Some(allocation) = allocation.clone() {
        stages.enter("network");
        let (back_too, sandbox_too) = (back.clone(), sandbox.clone());
        let link = allocation.clone();
        blocking(move || match prepared {
            true => complete_link(&back_too, &sandbox_too, &link),
            false => make_link(&back_too, &sandbox_too, &link),
        })
        .await?;
        let source = if prepared { "prepared" } else { "made" };
        back.store.metrics().pod_networks.get([source]).increment();
        fault::point("sandbox.link").await?;
        node_network::open_policy(back, sandbox, &allocation).await?;
        node_network::open_ports(back, sandbox, &allocation).await?;
    }
    let mut given = Given::by_us(allocation.as_ref().map(addresses).unwrap_or_default());
    if let Some(attachment) = attachment {
        stages.record("plugins", attachment.add_ns);
        match pod_network::connect(back, attachment).await? {
            Connected::Yes(attachment) => given = attachment.into(),
            Connected::NotYet => return Ok(false),
        }
    }
    fault::point("sandbox.network").await?;
    stages.enter("files");
    let (back_too, sandbox_too) = (back.clone(), sandbox.clone());
    blocking(move || sandbox_files::write(&back_too, &sandbox_too, &given)).await?;
    fault::point("sandbox.files").await?;
    if sandbox.spec.pid == NamespaceMode::Pod {
        stages.enter("init");
        start_init(back, sandbox).await?;
        fault::point("sandbox.init").await?;
    }
    Ok(true)
}

/// A pod's addresses.
pub(super) fn addresses(allocation: &Allocation) -> Vec<IpAddr> {
    let ipv6 = allocation.ipv6.map(|given| IpAddr::V6(given.address));
    [IpAddr::V4(allocation.address)]
        .into_iter()
        .chain(ipv6)
        .collect()
}

/// What becomes of namespaces that are there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespaces {
    /// Host name and sysctls are set: nothing has run in them yet.
    Settled,
    /// They stay as they are: something may run in them.
    Kept,
}

/// Returns whether some namespaces were there already.
pub(super) fn make_namespaces(
    back: &Back,
    sandbox: &Sandbox,
    allocation: Option<&Allocation>,
    existing: Namespaces,
) -> Result<bool, ReconcileError> {
    let spec = &sandbox.spec;
    let dir = back.paths.sandbox(&sandbox.id);
    std::fs::create_dir_all(&dir).map_err(ReconcileError::file("make", &dir))?;
    fault::blocking_point("sandbox.directory")?;
    let known = records::sandbox(&dir, sandbox.id.as_str());
    if known.is_none_or(|known| known.boot_id != back.boot_id) {
        records::write(&dir, &record(back, sandbox, allocation))?;
    }
    let own_network = spec.network == NamespaceMode::Pod;
    let hostname = sandbox.hostname();
    let sysctls: Vec<_> = spec.sysctls.clone().into_iter().collect();
    let users = spec.users.as_ref().map(user_spec).transpose()?;
    let spec = NamespaceSpec {
        dir: &dir.join("ns"),
        users: users.as_ref(),
        net: own_network,
        ipc: spec.ipc == NamespaceMode::Pod,
        // Who shares the node's network shares its name.
        hostname: own_network.then_some(hostname.as_str()),
        sysctls: &sysctls,
    };
    let there = network::ensure_namespaces(&spec)?;
    if there && existing == Namespaces::Settled {
        network::settle_namespaces(&spec)?;
    }
    Ok(there)
}

/// The ids of a pod's user namespace, as the kernel takes them.
fn user_spec(maps: &IdMaps) -> Result<UserSpec, ReconcileError> {
    let root = maps.root();
    let root = root.ok_or_else(|| ReconcileError::Plan(format!("there is no root in {maps}")))?;
    Ok(UserSpec {
        uids: id_map::lines(&maps.uids),
        gids: id_map::lines(&maps.gids),
        root,
    })
}

/// The sandbox' row as it is kept on disk.
fn record(back: &Back, sandbox: &Sandbox, allocation: Option<&Allocation>) -> SandboxRecord {
    SandboxRecord {
        id: sandbox.id.clone(),
        spec: sandbox.spec.as_ref().clone(),
        address: allocation.map(|allocation| AddressRecord {
            address: allocation.address,
            prefix_length: allocation.prefix_length,
            gateway: allocation.gateway,
            bridge: allocation.bridge.clone(),
            host_link: allocation.host_link.clone(),
            pod_link: allocation.pod_link.clone(),
            ipv6: allocation.ipv6,
        }),
        // Who has a network of its own, and no address of ours, is connected by plugins.
        attachment: (sandbox.spec.network == NamespaceMode::Pod && allocation.is_none())
            .then(AttachmentRecord::default),
        boot_id: back.boot_id.clone(),
        created_at: sandbox.created_at,
        ready_at: None,
        stopping_at: None,
        init: None,
    }
}

/// Notes on disk how far the sandbox has come. Only the loss of the database would miss it, so it
/// fails nothing.
pub(super) async fn note(
    back: &Back,
    id: &SandboxId,
    change: impl FnOnce(&mut SandboxRecord) + Send + 'static,
) {
    let (dir, id_too) = (back.paths.sandbox(id), id.clone());
    let noted = blocking(move || {
        note_here(&dir, &id_too, change);
        Ok(())
    });
    if let Err(error) = noted.await {
        tracing::warn!(sandbox = %id, error = error.full_text(), "its record is out of date");
    }
}

/// The same on a thread that may block.
fn note_here(dir: &Path, id: &SandboxId, change: impl FnOnce(&mut SandboxRecord)) {
    let Some(mut record) = records::sandbox(dir, id.as_str()) else {
        return;
    };
    change(&mut record);
    if let Err(error) = records::write(dir, &record) {
        tracing::warn!(sandbox = %id, error = error.full_text(), "its record is out of date");
    }
}

pub(super) fn make_link(
    back: &Back,
    sandbox: &Sandbox,
    allocation: &Allocation,
) -> Result<(), ReconcileError> {
    let link = (&sandbox.id, allocation, &sandbox.spec.sysctls);
    with_link_spec(back, link, network::ensure_pod_link)?;
    limit(back, sandbox, allocation)
}

/// Limits what the pod receives and sends, if it asks for that.
fn limit(back: &Back, sandbox: &Sandbox, allocation: &Allocation) -> Result<(), ReconcileError> {
    let marker = back.paths.marker();
    match shaping(back, sandbox, allocation, &marker) {
        Some(spec) => Ok(network::ensure_shaping(&spec)?),
        None => Ok(()),
    }
}

/// The pod's limits, if it has any.
pub(super) fn shaping<'a>(
    back: &Back,
    sandbox: &Sandbox,
    allocation: &'a Allocation,
    marker: &'a str,
) -> Option<ShapingSpec<'a>> {
    // Checked by the front.
    let bandwidth = Bandwidth::of(&sandbox.spec.annotations).unwrap_or_default();
    bandwidth.is_any().then_some(ShapingSpec {
        host_name: &allocation.host_link,
        alias: marker,
        mtu: back.network.mtu,
        ingress_bps: bandwidth.ingress_bps,
        egress_bps: bandwidth.egress_bps,
    })
}

/// [`make_link`] for a link that was prepared, and is as it should be but for what has been done to
/// it since.
fn complete_link(
    back: &Back,
    sandbox: &Sandbox,
    allocation: &Allocation,
) -> Result<(), ReconcileError> {
    let link = (&sandbox.id, allocation, &sandbox.spec.sysctls);
    if with_link_spec(back, link, network::is_connected)? {
        return limit(back, sandbox, allocation);
    }
    make_link(back, sandbox, allocation)
}

/// Does something with a pod's link as it should be. `sysctls` are all of the pod's.
pub(super) fn with_link_spec<T>(
    back: &Back,
    (id, allocation, sysctls): (&SandboxId, &Allocation, &Map),
    work: impl FnOnce(&PodLinkSpec<'_>) -> Result<T, NetworkError>,
) -> Result<T, ReconcileError> {
    let netns = back.paths.sandbox(id).join("ns/net");
    let address = Ipv4Net::new(allocation.address, allocation.prefix_length)
        .map_err(|error| ReconcileError::Plan(error.to_string()))?;
    let ipv6 = allocation
        .ipv6
        .map(|given| {
            Ok((
                Ipv6Net::new(given.address, given.prefix_length)?,
                given.gateway,
            ))
        })
        .transpose()
        .map_err(|error: ipnet::PrefixLenError| ReconcileError::Plan(error.to_string()))?;
    let sysctls: Vec<_> = sysctls.clone().into_iter().collect();
    let spec = PodLinkSpec {
        netns: &netns,
        host_name: &allocation.host_link,
        pod_name: &allocation.pod_link,
        bridge: &allocation.bridge,
        address,
        gateway: allocation.gateway,
        ipv6,
        mtu: back.network.mtu,
        alias: &back.paths.marker(),
        sysctls: &sysctls,
    };
    Ok(work(&spec)?)
}

/// PID 1 of a pod that shares its PID namespace: the one process a pod may have of its own.
async fn start_init(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    let id = &sandbox.id;
    if let Some((pid, start)) = sandbox.init
        && super::processes::is_alive(pid, start)
    {
        return Ok(());
    }
    let shim = back.shim()?;
    let path = back.member_cgroup(&sandbox.spec.cgroup_parent, id.as_str())?;
    let (back_too, path_too) = (back.clone(), path.clone());
    let holder = blocking(move || {
        let holder = back_too.cgroups.prepare(&path_too, None)?;
        back_too.cgroups.mark(&path_too, &back_too.paths.marker())?;
        Ok(holder)
    })
    .await?;
    fault::point("sandbox.init_cgroup").await?;
    let (unified_dir, v1_tasks_files) = back.cgroups.entry(&path);
    let dir = back.paths.sandbox(id).join("ns");
    let plan = PodInitPlan {
        namespaces: pinned(&dir),
        cgroup: CgroupEntry {
            oom_counter: None,
            unified_dir,
            v1_tasks_files,
        },
        user: sandbox.spec.users.as_ref().map(|_| dir.join("user")),
    };
    let launched = shim.pod_init(id.as_str(), plan).await;
    super::processes::let_go(holder).await?;
    let launched = launched?;
    fault::point("sandbox.init_launched").await?;
    back.observed
        .sandbox_init(id.clone(), launched.pid, launched.start_time)
        .await?;
    let init = (launched.pid, launched.start_time);
    note(back, id, move |record| record.init = Some(init)).await;
    Ok(())
}

/// The namespaces of a sandbox that are pinned, by kind.
fn pinned(dir: &Path) -> Vec<(String, std::path::PathBuf)> {
    ["net", "ipc", "uts"]
        .into_iter()
        .map(|kind| (kind.to_owned(), dir.join(kind)))
        .filter(|(_, path)| network::is_pinned(path))
        .collect()
}

async fn tear_down(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    fault::point("sandbox.stopping").await?;
    let started_at = now_ns();
    let id = &sandbox.id;
    let mut stages = Stages::new(back.store.progress(), ObjectKey::Sandbox(id.clone()));
    stages.enter("ports");
    node_network::close_ports(back, id).await?;
    node_network::close_policy(back, sandbox).await?;
    fault::point("sandbox.ports_closed").await?;
    stages.enter("namespaces");
    let (dir, id_too) = (back.paths.sandbox(id), id.clone());
    let (back_too, sandbox_too) = (back.clone(), sandbox.clone());
    blocking(move || {
        note_here(&dir, &id_too, |record| {
            record.stopping_at = Some(started_at);
        });
        stand_in::remove(&back_too, &sandbox_too)?;
        network::remove_namespaces(&dir.join("ns"))?;
        fault::blocking_point("sandbox.namespaces_removed")?;
        sandbox_files::unmount_shm(&dir)
    })
    .await?;
    fault::point("sandbox.shm_unmounted").await?;
    let done = finished("stop_sandbox", id, started_at, stages, None);
    back.observed.sandbox_stopped(id.clone(), done).await?;
    Ok(fault::point("sandbox.stopped").await?)
}

/// One look at the init of a pod that has to go, if it has one; `false` says that it still ends. A
/// sandbox whose set-up failed may have one without having been torn down.
async fn end_init(back: &Back, sandbox: &Sandbox) -> Result<bool, ReconcileError> {
    if sandbox.spec.pid != NamespaceMode::Pod {
        return Ok(true);
    }
    let path = back.member_cgroup(&sandbox.spec.cgroup_parent, sandbox.id.as_str())?;
    let back_too = back.clone();
    if !blocking(move || super::processes::end_cgroup(&back_too.cgroups, &path)).await? {
        return Ok(false);
    }
    fault::point("sandbox.init_killed").await?;
    if let Ok(shim) = back.shim() {
        shim.forget(sandbox.id.as_str()).await?;
    }
    fault::point("sandbox.init_forgotten").await?;
    Ok(true)
}

async fn remove(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    // One that failed was never torn down.
    node_network::close_ports(back, &sandbox.id).await?;
    node_network::close_policy(back, sandbox).await?;
    let dir = back.paths.sandbox(&sandbox.id);
    blocking(move || sandbox_files::discard(&dir)).await?;
    fault::point("sandbox.files_removed").await?;
    back.observed.sandbox_removed(sandbox.id.clone()).await?;
    Ok(fault::point("sandbox.removed").await?)
}

/// Removes a pod's link; called by a cleanup task, off everybody's path.
pub(super) fn remove_link(back: &Back, host_link: &str) -> Result<(), NetworkError> {
    network::remove_pod_link(host_link, &back.paths.marker())
}
