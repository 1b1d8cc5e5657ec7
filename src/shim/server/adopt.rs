//! Taking over a process of a shim that died.
//!
//! The process went on without us: its FIFOs hold what it wrote since, and it is somebody else's
//! child now. A pidfd says when it ends; how it ended is asked of the kernel (6.15 and later).

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::exits::lost;
use super::output::Output;
use super::process::{Process, start_time};
use super::requests::{Answer, read_plan_file};
use super::{Shim, Watched};
use crate::runtime::plan::LaunchPlan;
use crate::shim::log::file::Loss;
use crate::shim::protocol::{Adopt, ProcessId, Refusal, Reply};
use crate::sys::pidfd_info::pid_of;

impl Shim {
    pub(super) fn adopt(&mut self, adopt: Adopt, fds: Vec<OwnedFd>) -> Answer {
        let wanted = usize::from(adopt.pidfd_attached) + usize::from(adopt.terminal_attached);
        if fds.len() != wanted {
            let text = format!(
                "adopt came with {} descriptors instead of {wanted}",
                fds.len()
            );
            return Err(Refusal::Descriptors(text));
        }
        if let Some(process) = self.processes.get(&adopt.id) {
            let same = (process.pid, process.start_time) == (adopt.pid, adopt.start_time);
            let running = process.is_running();
            let answer = Ok((Reply::Adopted { running }, Vec::new()));
            return if same {
                answer
            } else {
                Err(Refusal::InUse(adopt.id))
            };
        }
        if self.launches.contains_key(&adopt.id) {
            return Err(Refusal::InUse(adopt.id));
        }
        let mut fds = fds.into_iter();
        let pidfd = if adopt.pidfd_attached {
            fds.next()
        } else {
            None
        };
        let pidfd = find(&adopt, pidfd);
        let output = self.adopted_output(&adopt, fds.next());
        let Adopt {
            id,
            kind,
            pid,
            start_time,
            ..
        } = adopt;
        let process = Process {
            kind,
            pid,
            start_time,
            pidfd,
            started_at_ns: 0,
            identity: None,
            exit: None,
            output,
            leaf: None,
        };
        let watched = self.watch_end(&id, &process);
        self.processes.insert(id.clone(), process);
        if !watched {
            self.process_has_ended(&id, lost());
        }
        Ok((Reply::Adopted { running: watched }, Vec::new()))
    }

    /// Its exit is wanted even when its output cannot be had any more.
    fn adopted_output(&mut self, adopt: &Adopt, terminal: Option<OwnedFd>) -> Output {
        let Some(path) = &adopt.plan_path else {
            return Output::default();
        };
        let loss = Loss {
            lines: adopt.lost_log_lines,
            bytes: adopt.lost_log_bytes,
        };
        let mut output = read_plan_file(path).and_then(|plan: LaunchPlan| {
            self.count_ooms(&adopt.id, plan.cgroup.oom_counter);
            self.reopen_output(&adopt.id, &plan.stdio, terminal)
        });
        if let Ok(output) = &mut output
            && let Some(log) = output.log_mut()
        {
            log.add_loss(loss);
        }
        output.unwrap_or_else(|refusal| {
            self.note(&format!("adopt {} without its output: {refusal}", adopt.id));
            Output::default()
        })
    }

    /// A dead process is "running" here as well, as long as it has a pidfd: that is readable at
    /// once, and tells how it ended.
    fn watch_end(&mut self, id: &ProcessId, process: &Process) -> bool {
        let Some(pidfd) = &process.pidfd else {
            return false;
        };
        let token = self.new_token();
        let data = EventData::new_u64(token);
        match epoll::add(&self.poll, pidfd, data, EventFlags::IN) {
            Ok(()) => {
                self.watched.insert(token, Watched::AdoptedEnd(id.clone()));
                true
            }
            Err(errno) => {
                self.note(&format!("watch adopted {id}: {errno}"));
                false
            }
        }
    }
}

/// The pidfd of exactly that process: the daemon's, unless it stands for another one, else one
/// opened now, unless its number has gone to another process since.
fn find(adopt: &Adopt, attached: Option<OwnedFd>) -> Option<OwnedFd> {
    let started_then = || start_time(adopt.pid).is_ok_and(|time| time == adopt.start_time);
    if let Some(pidfd) = attached {
        return match pid_of(pidfd.as_fd()) {
            Ok(pid) => (pid == adopt.pid && started_then()).then_some(pidfd),
            // Reaped: nothing to compare, but the descriptor still stands for what it did.
            Err(_) => Some(pidfd),
        };
    }
    let pid = Pid::from_raw(adopt.pid).filter(|pid| pid.as_raw_nonzero().get() > 1)?;
    // First the descriptor, then the time: were it another process by now, its time would be, too.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    started_then().then_some(pidfd)
}
