//! Containers, one file per verb.

pub mod create;
pub mod exec_sync;
pub mod list;
pub mod remove;
pub mod reopen_log;
mod security;
mod spec;
pub mod start;
pub mod stats;
pub mod status;
pub mod stop;
pub(in crate::cri) mod view;

use super::{CallError, Front};
use crate::id::ContainerId;
use crate::lifecycle::Impossible;
use crate::lifecycle::container::State;

impl Front {
    /// Finds a container for a session with its process; only a running one has it.
    pub(super) async fn running_container(
        &self,
        id: String,
        to: &'static str,
        because: &'static str,
    ) -> Result<ContainerId, CallError> {
        let id = self.find_container("container_id", id).await?;
        tracing::Span::current().record("id", id.as_str());
        let container = self.store.container(&id).await?;
        let found = container.map(|container| container.state);
        match found {
            Some(State::Running) => Ok(id),
            Some(state) => Err(CallError::Impossible(Impossible {
                noun: "container",
                id: id.to_string(),
                from: state.as_str(),
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
