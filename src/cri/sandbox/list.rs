//! ListPodSandbox and StreamPodSandboxes: a filter's conditions hold together.

use crate::cri::call::Deadline;
use crate::cri::pieces::pieces;
use crate::cri::{CallError, Front, validate};
use crate::proto::cri as v1;
use crate::state::sandbox::SandboxFilter;

use super::view;

/// Sandboxes that clients may see, newest first.
pub(in crate::cri) async fn list(
    front: Front,
    request: v1::ListPodSandboxRequest,
    _deadline: Deadline,
) -> Result<v1::ListPodSandboxResponse, CallError> {
    let items = filtered(&front, request.filter).await?;
    Ok(v1::ListPodSandboxResponse { items })
}

/// The same, in pieces.
pub(in crate::cri) async fn in_pieces(
    front: Front,
    request: v1::StreamPodSandboxesRequest,
    _deadline: Deadline,
) -> Result<Vec<v1::StreamPodSandboxesResponse>, CallError> {
    let items = filtered(&front, request.filter).await?;
    Ok(pieces(items, |pod_sandboxes| {
        v1::StreamPodSandboxesResponse { pod_sandboxes }
    }))
}

async fn filtered(
    front: &Front,
    filter: Option<v1::PodSandboxFilter>,
) -> Result<Vec<v1::PodSandbox>, CallError> {
    let filter = filter.unwrap_or_default();
    // An empty `state` message is a condition: READY is 0.
    let ready = filter
        .state
        .map(|state| match v1::PodSandboxState::try_from(state.state) {
            Ok(state) => Ok(state == v1::PodSandboxState::SandboxReady),
            Err(_) => Err(CallError::invalid("filter.state", "is not a sandbox state")),
        })
        .transpose()?;
    let wanted = SandboxFilter {
        id_prefix: validate::id_prefix("filter.id", filter.id)?,
        ready,
    };
    let items = front.store.sandboxes(&wanted).await?;
    Ok(items
        .into_iter()
        .filter(|sandbox| validate::matches(&sandbox.spec.labels, &filter.label_selector))
        .map(view::item)
        .collect())
}
