//! Pod sandboxes, one file per verb.

pub mod list;
pub mod remove;
pub mod run;
mod spec;
pub(in crate::cri) mod stats;
pub mod status;
pub mod stop;
pub mod update;
pub(in crate::cri) mod view;

pub(in crate::cri) use spec::{check_config, no_target, pod_or_node, wants_user_namespace};

use super::Front;
use crate::state::sandbox::Sandbox;

impl Front {
    /// A client names this sandbox, so it is not abandoned.
    pub(super) fn claim(&self, sandbox: Option<&Sandbox>) {
        if let Some(sandbox) = sandbox.filter(|sandbox| sandbox.unclaimed) {
            self.desired.claim_sandbox(sandbox.id.clone());
        }
    }
}
