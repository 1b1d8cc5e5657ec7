//! Telling the daemon what could not be written to logs: the totals, at most once a second for all
//! that run, and before the exit of one that has ended. A new daemon is told all of it again.

use std::time::{Duration, Instant};

use super::Shim;
use crate::shim::log::file::Loss;
use crate::shim::protocol::{FromShim, LogLoss};

/// Between two messages about processes that run.
const REST: Duration = Duration::from_secs(1);

impl Shim {
    /// When a loss of which nobody has been told is due, if there is one and a daemon.
    pub(super) fn untold_losses_until(&self) -> Option<Instant> {
        let due = !self.losses.is_empty() && self.daemon.is_some();
        due.then_some(self.losses_rest_until)
    }

    /// The daemon is a new one.
    pub(super) fn tell_losses_again(&mut self) {
        for (id, process) in &mut self.processes {
            process.output.forget_what_was_told();
            if process.output.has_untold_loss() {
                self.losses.insert(id.clone());
            }
        }
    }

    /// Tells what is due, as far as the socket takes it.
    pub(super) fn tell_losses(&mut self) {
        if self.losses.is_empty() {
            return;
        }
        let Some(daemon) = &mut self.daemon else {
            return;
        };
        let now = Instant::now();
        let may_tell_running = self.losses_rest_until <= now;
        let processes = &mut self.processes;
        self.losses.retain(|id| {
            let Some(process) = processes.get_mut(id) else {
                return false;
            };
            if daemon.is_clogged() || (process.is_running() && !may_tell_running) {
                return true;
            }
            let (Loss { lines, bytes }, why) = process.output.tell_loss();
            let id = id.clone();
            let loss = LogLoss {
                id,
                lines,
                bytes,
                why,
            };
            daemon.post(&FromShim::LogLoss(loss), Vec::new());
            // That it is gone is noticed by whoever sends next.
            let _ = daemon.flush();
            false
        });
        if may_tell_running {
            self.losses_rest_until = now + REST;
        }
    }
}
