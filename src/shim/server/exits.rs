//! How an exit is noticed, written down and handed to the daemon.
//!
//! ```text
//! our child:  SIGCHLD ─► waitpid ────────────────────────┐
//! adopted:    pidfd readable ─► asked how ─┬─ it says ────┼─► drain output ─► journal ─► event
//!                                          └─ not reaped: ask again for a while; then "lost"
//! ```

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::Shim;
use crate::causes::with_causes;
use crate::shim::journal::ExitStatus;
use crate::shim::log::timestamp::now_ns;
use crate::shim::protocol::{LOST_EXIT_CODE, ProcessId, ProcessKind};
use crate::sys::pidfd_info::{PidfdExit, exit_status};
use crate::sys::wait::dead_child;

const REAPED_PER_ROUND: usize = 64;
/// What is read of a file of counters, which has some hundred bytes.
const COUNTER_MAX: u64 = 4096;
/// How long an adopted process may stay unreaped by its parent before its exit is called lost.
const REAPER_WAIT: Duration = Duration::from_secs(2);

impl Shim {
    /// Reaps children that are dead. They are held, or on their way to that, or orphans that came
    /// to us as subreaper, or what is left of launches that were given up.
    pub(super) fn reap_children(&mut self) {
        self.reap_again = false;
        for _ in 0..REAPED_PER_ROUND {
            let Some(pid) = dead_child() else { return };
            self.launch_may_be_over(pid);
            let Ok(Some((_, status))) = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) else {
                return;
            };
            match self.children.remove(&pid) {
                Some(id) => self.process_has_ended(&id, status_of(status.as_raw())),
                None => self.launch_is_over(pid),
            }
        }
        self.reap_again = true;
    }

    /// The pidfd of an adopted process has become readable: it is dead, perhaps not yet reaped.
    pub(super) fn adopted_has_ended(&mut self, id: ProcessId) {
        if let Some(pidfd) = self
            .processes
            .get(&id)
            .and_then(|process| process.pidfd.as_ref())
        {
            // It stays readable: from here on time is asked, not epoll.
            let _ = rustix::event::epoll::delete(&self.poll, pidfd);
        }
        self.awaited_ends.push((id, Instant::now() + REAPER_WAIT));
    }

    pub(super) fn check_awaited_ends(&mut self) {
        for (id, give_up_at) in std::mem::take(&mut self.awaited_ends) {
            let Some(process) = self
                .processes
                .get(&id)
                .filter(|process| process.is_running())
            else {
                continue;
            };
            let told = process
                .pidfd
                .as_ref()
                .map(|pidfd| exit_status(pidfd.as_fd()));
            match told {
                Some(Ok(PidfdExit::Status(status))) => {
                    self.process_has_ended(&id, status_of(status));
                }
                Some(Ok(PidfdExit::NotYet)) if Instant::now() < give_up_at => {
                    self.awaited_ends.push((id, give_up_at));
                }
                _ => self.process_has_ended(&id, lost()),
            }
        }
    }

    /// The last lines first, then the journal, then (by the loop) the daemon. What the kernel has
    /// killed in its cgroup is read before all that: the cgroup is empty now, and whoever takes it
    /// away takes the count along.
    pub(super) fn process_has_ended(&mut self, id: &ProcessId, status: ExitStatus) {
        let counter = self.oom_counters.remove(id);
        let oom_kills = counter.and_then(|file| oom_kills(&file));
        let status = ExitStatus {
            oom_kills,
            ..status
        };
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        process.output.drain(&mut self.scratch);
        self.look_after(id);
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        let (record, written) = self.journal.append(id, process.kind, status);
        process.exit = Some(record);
        if let Err(error) = written {
            self.note(&format!("exit of {id}: {}", with_causes(&error)));
        }
    }

    /// The daemon has the record: an exec is over with that, a container waits to be forgotten.
    pub(super) fn acknowledge(&mut self, sequence: u64) {
        let done = self.journal.waiting_from(sequence).next();
        let exec = done
            .filter(|record| record.sequence == sequence && record.kind == ProcessKind::Exec)
            .map(|record| record.id.clone());
        if let Err(error) = self.journal.acknowledge(sequence) {
            self.note(&with_causes(&error));
        }
        let Some(id) = exec else { return };
        let held = self
            .processes
            .get(&id)
            .and_then(|process| process.exit.as_ref());
        if held.is_some_and(|exit| exit.sequence == sequence) {
            self.processes.remove(&id);
        }
    }
}

/// The number behind `oom_kill` (a key of cgroup v2 and of v1); `None` when the cgroup is gone.
fn oom_kills(file: &Path) -> Option<u64> {
    let mut text = String::new();
    let opened = File::open(file).ok()?;
    opened.take(COUNTER_MAX).read_to_string(&mut text).ok()?;
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    count.trim().parse().ok()
}

/// Nobody knows how it ended.
pub(super) fn lost() -> ExitStatus {
    ExitStatus {
        code: LOST_EXIT_CODE,
        signal: None,
        lost: true,
        at_ns: now_ns(),
        oom_kills: None,
    }
}

/// From a wait status as in wait(2).
fn status_of(status: i32) -> ExitStatus {
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    let code = signal.map_or_else(|| libc::WEXITSTATUS(status), |signal| 128 + signal);
    ExitStatus {
        code,
        signal,
        lost: false,
        at_ns: now_ns(),
        oom_kills: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_where_there_is_a_count() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        assert_eq!(oom_kills(&file), None);
        let text = "low 0\noom 4\noom_kill 3\noom_group_kill 1\n";
        std::fs::write(&file, text).unwrap();
        assert_eq!(oom_kills(&file), Some(3));
        std::fs::write(&file, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
        assert_eq!(oom_kills(&file), Some(2));
    }

    #[test]
    fn codes_and_signals_are_told_apart() {
        let seven = status_of(7 << 8);
        assert_eq!((seven.code, seven.signal, seven.lost), (7, None, false));
        let killed = status_of(libc::SIGKILL);
        assert_eq!((killed.code, killed.signal), (137, Some(9)));
        // A core dump sets bit 7; a real-time signal has no name.
        assert_eq!(status_of(libc::SIGSEGV | 0x80).code, 139);
        assert_eq!(status_of(40).signal, Some(40));
    }
}
