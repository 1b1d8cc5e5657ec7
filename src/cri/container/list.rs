//! ListContainers and StreamContainers: a filter's conditions hold together.

use crate::cri::call::Deadline;
use crate::cri::pieces::pieces;
use crate::cri::{CallError, Front, validate};
use crate::lifecycle::container::State;
use crate::proto::cri as v1;
use crate::state::container::ContainerFilter;

use super::view;

/// Containers that clients may see, newest first.
pub(in crate::cri) async fn list(
    front: Front,
    request: v1::ListContainersRequest,
    _deadline: Deadline,
) -> Result<v1::ListContainersResponse, CallError> {
    let containers = filtered(&front, request.filter).await?;
    Ok(v1::ListContainersResponse { containers })
}

/// The same, in pieces.
pub(in crate::cri) async fn in_pieces(
    front: Front,
    request: v1::StreamContainersRequest,
    _deadline: Deadline,
) -> Result<Vec<v1::StreamContainersResponse>, CallError> {
    let containers = filtered(&front, request.filter).await?;
    Ok(pieces(containers, |containers| {
        v1::StreamContainersResponse { containers }
    }))
}

async fn filtered(
    front: &Front,
    filter: Option<v1::ContainerFilter>,
) -> Result<Vec<v1::Container>, CallError> {
    let filter = filter.unwrap_or_default();
    // An empty `state` message is a condition: CREATED is 0.
    let state = match filter.state {
        None => None,
        Some(value) => match v1::ContainerState::try_from(value.state) {
            Ok(v1::ContainerState::ContainerCreated) => Some(State::Created),
            Ok(v1::ContainerState::ContainerRunning) => Some(State::Running),
            Ok(v1::ContainerState::ContainerExited) => Some(State::Exited),
            // None of ours is ever unknown.
            Ok(v1::ContainerState::ContainerUnknown) => Some(State::Error),
            Err(_) => {
                return Err(CallError::invalid(
                    "filter.state",
                    "is not a container state",
                ));
            }
        },
    };
    let wanted = ContainerFilter {
        id_prefix: validate::id_prefix("filter.id", filter.id)?,
        sandbox_prefix: validate::id_prefix("filter.pod_sandbox_id", filter.pod_sandbox_id)?,
        state,
    };
    let containers = front.store.containers(&wanted).await?;
    Ok(containers
        .into_iter()
        .filter(|container| validate::matches(&container.spec.labels, &filter.label_selector))
        .map(view::item)
        .collect())
}
