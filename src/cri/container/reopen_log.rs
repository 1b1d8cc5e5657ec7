//! ReopenContainerLog: a session with the shim; no state changes.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::lifecycle::Impossible;
use crate::lifecycle::container::State;
use crate::proto::cri as v1;

/// Makes the shim go on in a new log file, after kubelet has renamed the old one.
pub(in crate::cri) async fn reopen(
    front: Front,
    request: v1::ReopenContainerLogRequest,
    _deadline: Deadline,
) -> Result<v1::ReopenContainerLogResponse, CallError> {
    let id = front
        .find_container("container_id", request.container_id)
        .await?;
    tracing::Span::current().record("id", id.as_str());
    let container = front.store.container(&id).await?;
    let container = container.ok_or_else(|| CallError::NotFound {
        noun: "container",
        id: id.to_string(),
    })?;
    if container.state != State::Running {
        return Err(CallError::Impossible(Impossible {
            noun: "container",
            id: id.to_string(),
            from: container.state.as_str(),
            to: "one with a reopened log",
            because: "only a running container writes its log",
        }));
    }
    front
        .shim()?
        .reopen_log(id.as_str())
        .await
        .map_err(|e| CallError::Failed(e.to_string()))?;
    Ok(v1::ReopenContainerLogResponse {})
}
