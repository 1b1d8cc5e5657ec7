//! Exits: written down the moment they happen.
//!
//! The shim, which is every container's parent, tells code, signal and time; it keeps each exit
//! until we say that it is in the database. A pidfd per container is the second witness: should the
//! shim be gone, the kernel itself is asked for the exit.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::processes::{Handle, Watched};
use super::{Back, ReconcileError, container, processes, sandbox_repair};
use crate::cgroup::{CgroupPath, Cgroups};
use crate::fault;
use crate::id::{ContainerId, ObjectKey, SandboxId};
use crate::lifecycle::container::{Desired, may_live};
use crate::lifecycle::ending::{self, judge};
use crate::lifecycle::sandbox;
use crate::shim::client::{Seen, ShimClient};
use crate::shim::protocol::{ExitRecord, LOST_EXIT_CODE, ProcessKind};
use crate::state::container::Container;
use crate::state::container_facts::Exit;
use crate::state::{StateError, now_ns};
use crate::sys::async_fd;
use crate::sys::pidfd_info::{self, PidfdExit};

/// How long the shim is given to tell of an exit that a pidfd has shown.
const SHIM_PATIENCE: Duration = Duration::from_secs(5);

/// Watches pidfds until the daemon ends.
pub async fn run(
    back: Back,
    mut watched: mpsc::UnboundedReceiver<Watched>,
    mut stop: watch::Receiver<bool>,
) {
    let mut watching = JoinSet::new();
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            news = watched.recv() => match news {
                Some(Watched { id, handle }) => {
                    watching.spawn(witness(back.clone(), id, handle));
                }
                None => return,
            },
            Some(_) = watching.join_next() => {}
        }
    }
}

/// Waits for one process to end and sees to it that the end is recorded.
async fn witness(back: Back, id: ContainerId, handle: Arc<Handle>) {
    if let Err(error) = ended(&handle.pidfd).await {
        tracing::warn!(container = %id, %error, "cannot watch a process");
        return;
    }
    let recorded = async {
        let subscription = back
            .store
            .wakes()
            .subscribe(ObjectKey::Container(id.clone()));
        loop {
            let woken = subscription.next();
            match back.store.container(&id).await {
                Ok(Some(container)) if may_live(container.state) => {}
                _ => return,
            }
            woken.await;
        }
    };
    tokio::pin!(recorded);
    loop {
        // While nothing can be written the shim's word, which has the exact time, only waits.
        let troubled = back.store.storage_problem().is_some();
        let patience = tokio::time::timeout(SHIM_PATIENCE, &mut recorded);
        if patience.await.is_ok() {
            return;
        }
        if troubled || back.store.storage_problem().is_some() {
            continue;
        }
        // A shim that has the process has its exit too, with the exact time, however long the queue
        // is in which it stands.
        if !shim_has(&back, &id).await {
            break;
        }
    }
    let exit = match pidfd_info::exit_status(handle.pidfd.as_fd()) {
        Ok(PidfdExit::Status(status)) => {
            let code = code_of(status);
            let signal = Some(status & 0x7f).filter(|signal| *signal != 0);
            let heard = ending::Seen {
                code,
                signal,
                ..ending::Seen::default()
            };
            let witness = match back.store.container(&id).await {
                Ok(Some(known)) => seen_of(&back, &known, heard).await,
                _ => heard,
            };
            exit_by(&witness, now_ns())
        }
        _ => unseen(),
    };
    let mut retry = Retry::default();
    while let Err(error) = back
        .observed
        .container_exited(id.clone(), exit.clone())
        .await
    {
        if !retry.pause(&id, &error.into()).await {
            return;
        }
    }
}

async fn shim_has(back: &Back, id: &ContainerId) -> bool {
    let Ok(shim) = back.shim() else { return false };
    matches!(
        shim.look(id.as_str()).await,
        Ok(Seen::Held(..) | Seen::UnderWay)
    )
}

/// The pauses between the tries of recording an exit, which is never given up while the daemon
/// lives: 100 ms doubling to 2 s.
#[derive(Default)]
pub(super) struct Retry(u32);

impl Retry {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);

    /// Waits before the next try; `false` says that there is none: the fault is not the database's,
    /// or the daemon is going down.
    pub(super) async fn pause(
        &mut self,
        id: &impl std::fmt::Display,
        error: &ReconcileError,
    ) -> bool {
        let passing = matches!(error, ReconcileError::State(error)
            if !matches!(error, StateError::Closed));
        if self.0 == 0 || !passing {
            let error = error.full_text();
            tracing::error!(%id, error, again = passing, "cannot record an exit");
        }
        if passing {
            let pause = Self::FIRST.saturating_mul(1 << self.0.min(10));
            self.0 += 1;
            tokio::time::sleep(pause.min(Self::LONGEST)).await;
        }
        passing
    }
}

/// A pidfd is readable when its process has ended (pidfd_open(2)).
async fn ended(pidfd: &OwnedFd) -> std::io::Result<()> {
    let registered = async_fd::register(pidfd.try_clone()?)?;
    registered.readable().await.map(drop)
}

/// What the kernel and the rows know of a container that has ended, besides what was heard of it.
/// We leave its cgroup until the exit is recorded, so what the kernel counts in it is there to be
/// read.
async fn seen_of(back: &Back, known: &Container, heard: ending::Seen) -> ending::Seen {
    let path = container::cgroup_path(back, known).await.ok().flatten();
    let (wanted, pod) = (known.desired, known.sandbox.0);
    let told = back.processes.get(&known.id);
    let told = told.and_then(|handle| handle.ooms_before_stop.get().copied());
    let stopped = wanted > Desired::Running || pod != sandbox::Desired::Ready;
    let witness = ending::Seen {
        oom_kills_before_stop: told.or(known.ooms_before_stop).unwrap_or(0),
        stopped,
        ..heard
    };
    match path {
        Some(path) => {
            let limit = known.spec.resources.memory_limit_bytes;
            of_cgroup(&back.cgroups, (&path, limit), witness)
        }
        None => witness,
    }
}

/// Adds what a cgroup tells that was given a limit of memory, bytes.
pub(super) fn of_cgroup(
    cgroups: &Cgroups,
    (path, limit): (&CgroupPath, i64),
    witness: ending::Seen,
) -> ending::Seen {
    // The shim has looked when it ended; since then somebody may have taken the cgroup away.
    let oom_kills = cgroups.oom_kills(path).unwrap_or(0).max(witness.oom_kills);
    // Asked for only when there is something to explain.
    let failed = witness.code != 0;
    // One that is gone says nothing of where memory ran out.
    let oom = failed && oom_kills > 0 && cgroups.exists(path);
    ending::Seen {
        oom_kills,
        exhausted: oom
            .then(|| {
                cgroups
                    .exhausted(path, u64::try_from(limit).unwrap_or(0))
                    .ok()
            })
            .flatten(),
        oomd: failed && cgroups.killed_by_oomd(path),
        ..witness
    }
}

/// The exit code of a wait status (wait(2)): 128 + the signal for who was killed.
fn code_of(status: i32) -> i32 {
    match status & 0x7f {
        0 => (status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

/// The exit of a process whose end nobody saw.
fn unseen() -> Exit {
    Exit {
        code: LOST_EXIT_CODE,
        at: now_ns(),
        reason: "ShimLost",
        error: Some("the process ended while no shim was there to see how".into()),
        ran: true,
    }
}

/// How a process ended, by what is known of it.
fn exit_by(witness: &ending::Seen, at: i64) -> Exit {
    let ending = judge(witness);
    Exit {
        code: witness.code,
        at,
        reason: ending.reason,
        error: ending.particulars,
        ran: true,
    }
}

/// How a process ended, as the shim tells it; `witness` is asked only if the shim knows.
pub(super) fn exit_of(record: &ExitRecord, witness: impl FnOnce() -> ending::Seen) -> Exit {
    if record.lost {
        return Exit {
            at: record.at_ns,
            ..unseen()
        };
    }
    exit_by(&witness(), record.at_ns)
}

/// Records an exit the shim tells of, and then says so to the shim.
pub(super) async fn exited(
    back: &Back,
    shim: &ShimClient,
    record: ExitRecord,
) -> Result<(), ReconcileError> {
    if record.kind == ProcessKind::PodInit {
        init_exited(back, &record).await?;
        return Ok(shim.acknowledge(record.sequence).await?);
    }
    fault::point("container.exit_seen").await?;
    if let Ok(id) = ContainerId::try_from(String::from(record.id.clone()))
        && let Some(known) = back.store.container(&id).await?
        && may_live(known.state)
    {
        let heard = ending::Seen {
            code: record.code,
            signal: record.signal,
            oom_kills: record.oom_kills.unwrap_or(0),
            ..ending::Seen::default()
        };
        let witness = seen_of(back, &known, heard).await;
        let exit = exit_of(&record, || witness);
        back.observed.container_exited(id.clone(), exit).await?;
        let lag = u64::try_from(now_ns() - record.at_ns).unwrap_or(0);
        back.store
            .metrics()
            .exit_lag
            .observe(Duration::from_nanos(lag));
        back.processes.remove(&id);
        fault::point("container.exited").await?;
    }
    shim.acknowledge(record.sequence).await?;
    Ok(fault::point("container.exit_acknowledged").await?)
}

/// A pod's init has ended. When the pod was to stay up, it comes down; when it was ended with its
/// pod, or an earlier attempt had started it, there is nothing to say.
async fn init_exited(back: &Back, record: &ExitRecord) -> Result<(), ReconcileError> {
    let Ok(id) = SandboxId::try_from(String::from(record.id.clone())) else {
        return Ok(());
    };
    let Some(sandbox) = back.store.sandbox(&id).await? else {
        return Ok(());
    };
    match sandbox.init {
        Some((pid, start)) if !processes::is_alive(pid, start) => {
            let how = match record.signal {
                Some(signal) => format!("killed by signal {signal}"),
                None => format!("exit code {}", record.code),
            };
            sandbox_repair::init_ended(back, id, pid, how).await
        }
        _ => Ok(()),
    }
}

/// A container whose process is gone, and that no shim has anything to say about.
pub(super) async fn lost(back: &Back, id: &ContainerId) -> Result<(), ReconcileError> {
    back.observed.container_exited(id.clone(), unseen()).await?;
    Ok(())
}
