//! StopContainer: the stop signal, a grace, then SIGKILL. Any number of times.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::id::ObjectKey;
use crate::lifecycle::Verdict;
use crate::lifecycle::container::{Desired, State};
use crate::proto::cri as v1;
use crate::state::{StateError, now_ns};
use crate::traces;

/// Stops a container; one that is not there is stopped.
pub(in crate::cri) async fn stop(
    front: Front,
    request: v1::StopContainerRequest,
    deadline: Deadline,
) -> Result<v1::StopContainerResponse, CallError> {
    let id = match front
        .find_container("container_id", request.container_id)
        .await
    {
        Err(CallError::NotFound { .. }) => return Ok(v1::StopContainerResponse {}),
        found => found?,
    };
    traces::about(id.as_str());
    let grace_ns = request.timeout.max(0).saturating_mul(1_000_000_000);
    let stop_at = now_ns().saturating_add(grace_ns);
    match front
        .desired
        .lower_container(id.clone(), Desired::Stopped, Some(stop_at))
        .await
    {
        Err(StateError::NotFound { .. }) => return Ok(v1::StopContainerResponse {}),
        Ok(Verdict::Refused(impossible)) => return Err(impossible.of(&id).into()),
        Ok(Verdict::Admitted | Verdict::Already) => {}
        Err(error) => return Err(error.into()),
    }
    front
        .wait_for(
            "container",
            ObjectKey::Container(id.clone()),
            deadline,
            || async {
                let state = front
                    .store
                    .container(&id)
                    .await?
                    .map(|container| container.state);
                Ok(match state {
                    Some(State::Starting | State::Running) => None,
                    _ => Some(()),
                })
            },
        )
        .await?;
    Ok(v1::StopContainerResponse {})
}
