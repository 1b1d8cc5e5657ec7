//! RemoveContainer: it is killed if it runs, and its record goes. Any number of times.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::id::ObjectKey;
use crate::lifecycle::Verdict;
use crate::lifecycle::container::Desired;
use crate::proto::cri as v1;
use crate::state::StateError;
use crate::traces;

/// Removes a container; one that is not there is removed.
pub(in crate::cri) async fn remove(
    front: Front,
    request: v1::RemoveContainerRequest,
    deadline: Deadline,
) -> Result<v1::RemoveContainerResponse, CallError> {
    let id = match front
        .find_container("container_id", request.container_id)
        .await
    {
        Err(CallError::NotFound { .. }) => return Ok(v1::RemoveContainerResponse {}),
        found => found?,
    };
    traces::about(id.as_str());
    match front
        .desired
        .lower_container(id.clone(), Desired::Removed, None)
        .await
    {
        Err(StateError::NotFound { .. }) => return Ok(v1::RemoveContainerResponse {}),
        Ok(Verdict::Refused(impossible)) => return Err(impossible.of(&id).into()),
        Ok(Verdict::Admitted | Verdict::Already) => {}
        Err(error) => return Err(error.into()),
    }
    front
        .wait_for(
            "container",
            ObjectKey::Container(id.clone()),
            deadline,
            || async { Ok(front.store.container(&id).await?.is_none().then_some(())) },
        )
        .await?;
    Ok(v1::RemoveContainerResponse {})
}
