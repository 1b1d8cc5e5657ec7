//! Containers, one file per verb.

mod confinement;
pub mod create;
pub mod exec_sync;
pub mod list;
pub mod remove;
pub mod reopen_log;
mod security;
pub(in crate::cri) mod spec;
pub mod start;
pub mod stats;
pub mod status;
pub mod stop;
pub mod update;
pub(in crate::cri) mod view;

use super::{CallError, Front};
use crate::lifecycle::Impossible;
use crate::lifecycle::container::State;
use crate::state::container::Container;
use crate::traces;

impl Front {
    /// Finds a container for a session with its process; only a running one has it.
    pub(super) async fn running_container(
        &self,
        id: String,
        to: &'static str,
        because: &'static str,
    ) -> Result<Container, CallError> {
        let id = self.find_container("container_id", id).await?;
        traces::about(id.as_str());
        match self.store.container(&id).await? {
            Some(container) if container.state == State::Running => Ok(container),
            Some(container) => Err(CallError::Impossible(Impossible {
                noun: "container",
                id: id.to_string(),
                from: container.state.as_str(),
                to,
                because,
            })),
            None => Err(CallError::NotFound {
                noun: "container",
                id: id.to_string(),
            }),
        }
    }
}
