//! RemovePodSandbox: the pod, its containers and its record go. Any number of times.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::id::ObjectKey;
use crate::lifecycle::sandbox::Desired;
use crate::proto::cri as v1;
use crate::traces;

/// Removes a pod sandbox; one that is not there is removed.
pub(in crate::cri) async fn remove(
    front: Front,
    request: v1::RemovePodSandboxRequest,
    deadline: Deadline,
) -> Result<v1::RemovePodSandboxResponse, CallError> {
    let id = match front
        .find_sandbox("pod_sandbox_id", request.pod_sandbox_id)
        .await
    {
        Err(CallError::NotFound { .. }) => return Ok(v1::RemovePodSandboxResponse {}),
        found => found?,
    };
    traces::about(id.as_str());
    if front.store.sandbox(&id).await?.is_some() {
        front
            .desired
            .lower_sandbox(id.clone(), Desired::Removed)
            .await?;
        front
            .wait_for(
                "sandbox",
                ObjectKey::Sandbox(id.clone()),
                deadline,
                || async { Ok(front.store.sandbox(&id).await?.is_none().then_some(())) },
            )
            .await?;
    }
    Ok(v1::RemovePodSandboxResponse {})
}
