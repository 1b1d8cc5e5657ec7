//! After the loss of the database: what records, shim, kernel and disk still know becomes rows
//! again.
//!
//! ```text
//!  records on disk ── which pods, containers, images ─┐
//!  pins, boot id ──── whether a pod is up             ├─► one transaction ─► the usual recovery
//!  shim, journal ──── who runs, who ended and how     │
//!  cgroups, /proc ─── who runs without a shim         │
//!  the damaged file ─ wishes and exits, if readable ──┘
//! ```
//!
//! Nothing is killed, made or removed here. What nobody knows is named in what is said.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::records::Records;
use super::{Back, ReconcileError, blocking, container_update, image, monitor, processes};
use crate::id::SandboxId;
use crate::lifecycle::ending;
use crate::lifecycle::record::{ContainerRecord, ImageRecord, SandboxRecord};
use crate::lifecycle::sandbox;
use crate::lifecycle::spec::{NamespaceMode, Resources, SandboxSpec, UserIds};
use crate::network;
use crate::shim::client::{Launched, ShimClient, ShimEvent};
use crate::shim::protocol::{ExitRecord, HeldProcess, LOST_EXIT_CODE};
use crate::snapshot;
use crate::state::container_facts::{Exit, Started};
use crate::state::rebuild::{Found, FoundContainer, FoundSandbox, Life};
use crate::state::{now_ns, salvage};

/// Names of what is lost that are listed in full.
const NAMED: usize = 20;

/// How the database was lost.
#[derive(Debug)]
pub struct Loss {
    /// What is wrong with the old file.
    pub why: String,
    /// Where it is now, if there was one.
    pub set_aside: Option<PathBuf>,
}

/// Fills an empty database and says loudly what came back and what did not.
///
/// # Errors
/// When the records cannot be listed or the new database cannot be written; beginning again is
/// safe.
pub async fn rebuild(
    back: &Back,
    executable: &Path,
    loss: &Loss,
) -> Result<String, ReconcileError> {
    tracing::error!(
        why = loss.why,
        set_aside = loss
            .set_aside
            .as_ref()
            .map(|path| path.display().to_string()),
        "the database is lost; rebuilding it from what kernel, shim and disk know"
    );
    let witness = match Witness::ask(back, executable).await {
        Ok(witness) => witness,
        Err(error) => {
            let error = error.full_text();
            tracing::error!(error, "the shim tells nothing; the kernel alone is asked");
            Witness::default()
        }
    };
    let salvage = match &loss.set_aside {
        Some(file) => salvage::read(file).await,
        None => salvage::Salvage::default(),
    };
    let back_too = back.clone();
    let (mut found, lost) = blocking(move || {
        let records = Records::read(&back_too.paths)?;
        Ok(bring_together(&back_too, records, &witness))
    })
    .await?;
    found.salvage = salvage;
    let summary = describe(loss, &found, &lost);
    back.observed.rebuild(found, summary.clone()).await?;
    tracing::error!(summary, "the database has been rebuilt");
    Ok(summary)
}

/// What the shim knows.
#[derive(Default)]
struct Witness {
    held: HashMap<String, HeldProcess>,
    running: HashMap<String, Launched>,
    exits: HashMap<String, ExitRecord>,
}

impl Witness {
    async fn ask(back: &Back, executable: &Path) -> Result<Self, ReconcileError> {
        let (shim, mut events) =
            ShimClient::connect_or_start(&back.paths.state, executable).await?;
        let mut witness = Self::default();
        for item in shim.list().await? {
            let id = item.id.to_string();
            // One that ends just now is told of by its exit, below.
            if item.exit.is_none()
                && let Ok(launched) = shim.handles(&id).await
            {
                witness.running.insert(id.clone(), launched);
            }
            witness.held.insert(id, item);
        }
        // Nothing is acknowledged: whoever connects next hears it all again.
        shim.ping().await?;
        while let Ok(event) = events.try_recv() {
            if let ShimEvent::Exited(record) = event {
                witness.exits.insert(record.id.to_string(), record);
            }
        }
        Ok(witness)
    }

    fn exit(&self, id: &str) -> Option<&ExitRecord> {
        let held = self.held.get(id).and_then(|item| item.exit.as_ref());
        held.or_else(|| self.exits.get(id))
    }
}

/// What could not be brought back, for people.
#[derive(Default)]
struct Lost {
    refused: Vec<String>,
    containers: Vec<String>,
    images: Vec<String>,
}

fn bring_together(back: &Back, records: Records, witness: &Witness) -> (Found, Lost) {
    let mut lost = Lost {
        refused: records.refused,
        ..Lost::default()
    };
    let (images, incomplete): (Vec<_>, Vec<_>) = records
        .images
        .into_iter()
        .partition(|image| is_whole(back, image));
    lost.images = incomplete.into_iter().map(|image| image.id).collect();
    let sandboxes: Vec<FoundSandbox> = records
        .sandboxes
        .into_iter()
        .map(|record| find_sandbox(back, record))
        .collect();
    let by_id: HashMap<SandboxId, &SandboxRecord> = sandboxes
        .iter()
        .map(|found| (found.record.id.clone(), &found.record))
        .collect();
    let mut containers = Vec::new();
    for record in records.containers {
        match by_id.get(&record.sandbox_id) {
            Some(sandbox) => containers.push(find_container(back, record, sandbox, witness)),
            None => lost.containers.push(record.id.to_string()),
        }
    }
    let found = Found {
        images,
        sandboxes,
        containers,
        salvage: salvage::Salvage::default(),
    };
    (found, lost)
}

fn is_whole(back: &Back, image: &ImageRecord) -> bool {
    image.layers.iter().all(|layer| {
        image::chain_id(&layer.chain_id).is_ok_and(|chain_id| back.images.has_layer(&chain_id))
    })
}

/// The pins that a pod has while it is up.
fn pins(spec: &SandboxSpec) -> Vec<&'static str> {
    let mut pins = Vec::new();
    if spec.network == NamespaceMode::Pod {
        pins.extend(["net", "uts"]);
    }
    if spec.ipc == NamespaceMode::Pod {
        pins.push("ipc");
    }
    if spec.users.is_some() {
        pins.push("user");
    }
    pins
}

fn find_sandbox(back: &Back, mut record: SandboxRecord) -> FoundSandbox {
    use sandbox::{Desired, State};
    if record.boot_id != back.boot_id {
        // What was up then is down, and its link is gone: the usual recovery says so.
        record.address = None;
        record.init = None;
    }
    let dir = back.paths.sandbox(&record.id).join("ns");
    let pins = pins(&record.spec);
    let held = pins.iter().filter(|pin| network::is_pinned(&dir.join(pin)));
    let (state, desired) = match (held.count(), record.ready_at, record.stopping_at) {
        (0, Some(_), Some(_)) => (State::Stopped, Desired::Stopped),
        // It was being taken down: that goes on.
        (_, Some(_), Some(_)) => (State::Ready, Desired::Stopped),
        (_, None, Some(_)) => (State::Preparing, Desired::Stopped),
        // Setting it up again finishes it.
        (_, None, None) => (State::Preparing, Desired::Ready),
        _ if record.boot_id != back.boot_id => (State::Ready, Desired::Ready),
        (count, Some(_), None) if count == pins.len() => (State::Ready, Desired::Ready),
        (_, Some(_), None) => (State::Stopped, Desired::Ready),
    };
    FoundSandbox {
        record,
        desired,
        state,
    }
}

fn find_container(
    back: &Back,
    record: ContainerRecord,
    sandbox: &SandboxRecord,
    witness: &Witness,
) -> FoundContainer {
    let upper = snapshot::locate(&back.paths.root, record.id.as_str());
    let upper = upper.map(|snapshot| snapshot.upper).unwrap_or_default();
    let life = life(back, &record, sandbox, upper.is_dir(), witness);
    FoundContainer {
        rootfs: upper.display().to_string(),
        record,
        life,
    }
}

fn life(
    back: &Back,
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    prepared: bool,
    witness: &Witness,
) -> Life {
    let id = record.id.as_str();
    let plan = back.paths.container(&record.id).join("plan.json");
    let written = std::fs::metadata(plan).and_then(|found| found.modified());
    let began = written.ok().and_then(|at| {
        let since = at.duration_since(UNIX_EPOCH).ok()?;
        i64::try_from(since.as_nanos()).ok()
    });
    let other_boot = sandbox.boot_id != back.boot_id;
    match (began, witness.exit(id), witness.running.get(id)) {
        (None, _, None) if !prepared => Life::Preparing,
        (None, None, None) => Life::Created,
        _ if other_boot => Life::Forgotten,
        (_, Some(exit), _) => {
            let began = began.map(|began| began.min(exit.at_ns));
            Life::Exited(how_it_ended(back, record, sandbox, exit), began)
        }
        (_, None, Some(launched)) => Life::Running(Started {
            pid: launched.pid,
            start: launched.start_time,
            at: if launched.started_at_ns > 0 {
                launched.started_at_ns
            } else {
                began.unwrap_or(record.created_at)
            },
            runs_as: launched.identity.as_ref().map(|who| UserIds {
                uid: who.uid,
                gid: who.gid,
                groups: who.groups.clone(),
            }),
            limits: limits_of(back, record, sandbox),
        }),
        (_, None, None) => match first_process(back, record, sandbox) {
            Some((pid, start)) => Life::Running(Started {
                pid,
                start,
                at: began.unwrap_or(record.created_at),
                runs_as: None,
                limits: limits_of(back, record, sandbox),
            }),
            None => Life::Exited(unknown(), began),
        },
    }
}

/// The limits that the kernel holds for a container that runs.
fn limits_of(back: &Back, record: &ContainerRecord, sandbox: &SandboxRecord) -> Option<Resources> {
    let parent = &sandbox.spec.cgroup_parent;
    let path = back.member_cgroup(parent, record.id.as_str()).ok()?;
    container_update::read_back(back, &path, &record.spec.resources)
}

/// The first process of a container that no shim holds: of those in its cgroup the oldest.
fn first_process(
    back: &Back,
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
) -> Option<(i32, u64)> {
    let parent = &sandbox.spec.cgroup_parent;
    let path = back.member_cgroup(parent, record.id.as_str()).ok()?;
    let inside = back.cgroups.list_processes(&path).ok()?;
    let started = inside
        .into_iter()
        .filter_map(|pid| Some((processes::start_time(pid)?, pid)));
    started.min().map(|(start, pid)| (pid, start))
}

fn how_it_ended(
    back: &Back,
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    exit: &ExitRecord,
) -> Exit {
    let parent = &sandbox.spec.cgroup_parent;
    let path = back.member_cgroup(parent, record.id.as_str()).ok();
    let limit = record.spec.resources.memory_limit_bytes;
    monitor::exit_of(exit, || {
        let seen = ending::Seen {
            code: exit.code,
            signal: exit.signal,
            oom_kills: exit.oom_kills.unwrap_or(0),
            // Whether it was told to end the lost database alone knew.
            stopped: true,
            ..ending::Seen::default()
        };
        // A cgroup that is gone no longer tells; then it was some error.
        match &path {
            Some(path) => monitor::of_cgroup(&back.cgroups, (path, limit), seen),
            None => seen,
        }
    })
}

/// The exit of a container that is not running, and that is all that is known.
fn unknown() -> Exit {
    Exit {
        code: LOST_EXIT_CODE,
        at: now_ns(),
        reason: "Unknown",
        error: Some("how it ended was known to the lost database alone".into()),
        ran: true,
    }
}

fn describe(loss: &Loss, found: &Found, lost: &Lost) -> String {
    let count = |wanted: fn(&Life) -> bool| {
        let all = found.containers.iter();
        all.filter(|container| wanted(&container.life)).count()
    };
    let mut text = format!("the database was lost: {}", loss.why);
    // Writing to a string does not fail.
    if let Some(path) = &loss.set_aside {
        let _ = write!(text, "; the old file is kept as {}", path.display());
    }
    let _ = write!(
        text,
        ". Brought back: {} pods, {} containers ({} running, {} exited), {} images, {} wishes or \
         exits read from the old file",
        found.sandboxes.len(),
        found.containers.len(),
        count(|life| matches!(life, Life::Running(_))),
        count(|life| matches!(life, Life::Exited(..))),
        found.images.len(),
        found.salvage.len(),
    );
    text.push_str(
        ". Lost: events, operations, jobs, pulls under way, and removals and stops that had been \
         asked for and not begun",
    );
    let unknown = count(|life| matches!(life, Life::Exited(exit, _) if exit.reason == "Unknown"));
    if unknown > 0 && found.salvage.is_empty() {
        let _ = write!(text, "; how {unknown} containers ended");
    }
    name(
        &mut text,
        "containers whose pod is unknown",
        &lost.containers,
    );
    name(&mut text, "images whose layers are gone", &lost.images);
    name(&mut text, "records that cannot be believed", &lost.refused);
    text
}

fn name(text: &mut String, what: &str, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let unique: HashSet<&str> = names.iter().map(String::as_str).collect();
    let mut unique: Vec<&str> = unique.into_iter().collect();
    unique.sort_unstable();
    let more = unique.len().saturating_sub(NAMED);
    unique.truncate(NAMED);
    let _ = write!(text, "; {what}: {}", unique.join(", "));
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
}
