//! ReopenContainerLog: a session with the shim; no state changes.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::proto::cri as v1;

/// Makes the shim go on in a new log file, after kubelet has renamed the old one.
pub(in crate::cri) async fn reopen(
    front: Front,
    request: v1::ReopenContainerLogRequest,
    _deadline: Deadline,
) -> Result<v1::ReopenContainerLogResponse, CallError> {
    let to = "one with a reopened log";
    let because = "only a running container writes its log";
    let found = front
        .running_container(request.container_id, to, because)
        .await?;
    front
        .shim()?
        .reopen_log(found.id.as_str())
        .await
        .map_err(|e| CallError::Failed(e.to_string()))?;
    Ok(v1::ReopenContainerLogResponse {})
}
