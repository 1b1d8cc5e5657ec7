//! Commands whose daemon is gone: nobody reads them or will hear how they end. Each is hung up at
//! once and killed with its children a while later, as the daemon does it when a client goes.
//!
//! A container and a pod's init outlive any daemon.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};

use super::Shim;
use super::process::Process;
use crate::runtime::plan::{EXEC_LEAF_PREFIX, ExecPlan};
use crate::shim::protocol::{ProcessId, ProcessKind};

/// How long a command has to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// The cgroup that a command has for itself, if it has one: its children end with it.
pub(super) fn leaf_of(plan: &ExecPlan) -> Option<PathBuf> {
    let dir = plan.cgroup.unified_dir.as_ref()?;
    let name = dir.file_name()?.to_str()?;
    name.starts_with(EXEC_LEAF_PREFIX).then(|| dir.clone())
}

impl Shim {
    /// The connection of the daemon that wanted them is over.
    pub(super) fn hang_up_commands(&mut self) {
        let until = Instant::now() + GRACE;
        let commands = self.processes.iter();
        let commands = commands.filter(|(_, it)| it.kind == ProcessKind::Exec && it.is_running());
        for (id, process) in commands {
            if self.orphans.contains_key(id) {
                continue;
            }
            send(process, Signal::HUP);
            self.orphans.insert(id.clone(), until);
        }
    }

    /// When the next one is to be killed.
    pub(super) fn orphans_until(&self) -> Option<Instant> {
        self.orphans.values().min().copied()
    }

    /// Kills those that have had their time.
    pub(super) fn check_orphans(&mut self) {
        if self.orphans.is_empty() {
            return;
        }
        let now = Instant::now();
        let late = self.orphans.extract_if(|_, until| *until <= now);
        let late: Vec<ProcessId> = late.map(|(id, _)| id).collect();
        for id in late {
            let process = self.processes.get(&id).filter(|it| it.is_running());
            let Some(process) = process else { continue };
            let kill = |leaf: &PathBuf| std::fs::write(leaf.join("cgroup.kill"), "1").is_ok();
            if !process.leaf.as_ref().is_some_and(kill) {
                send(process, Signal::KILL);
            }
        }
    }
}

fn send(process: &Process, signal: Signal) {
    if let Some(pidfd) = &process.pidfd {
        // One that has ended meanwhile needs no signal.
        let _ = pidfd_send_signal(pidfd, signal);
    }
}
