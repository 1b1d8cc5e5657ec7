//! StopPodSandbox: everything in the pod ends, its address goes back. Any number of times.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::id::ObjectKey;
use crate::lifecycle::sandbox::{Desired, State};
use crate::proto::cri as v1;
use crate::traces;

/// Stops a pod sandbox; one that is not there is stopped.
pub(in crate::cri) async fn stop(
    front: Front,
    request: v1::StopPodSandboxRequest,
    deadline: Deadline,
) -> Result<v1::StopPodSandboxResponse, CallError> {
    let id = match front
        .find_sandbox("pod_sandbox_id", request.pod_sandbox_id)
        .await
    {
        Err(CallError::NotFound { .. }) => return Ok(v1::StopPodSandboxResponse {}),
        found => found?,
    };
    traces::about(id.as_str());
    let known = front.store.sandbox(&id).await?;
    front.claim(known.as_ref());
    if known.is_some_and(|sandbox| sandbox.state != State::Stopped) {
        front
            .desired
            .lower_sandbox(id.clone(), Desired::Stopped)
            .await?;
        front
            .wait_for(
                "sandbox",
                ObjectKey::Sandbox(id.clone()),
                deadline,
                || async {
                    let state = front.store.sandbox(&id).await?.map(|sandbox| sandbox.state);
                    Ok(matches!(state, None | Some(State::Stopped)).then_some(()))
                },
            )
            .await?;
    }
    Ok(v1::StopPodSandboxResponse {})
}
