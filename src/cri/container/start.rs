//! StartContainer: the wish that it run, and the wait until it does.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::id::{ContainerId, ObjectKey};
use crate::lifecycle::Verdict;
use crate::lifecycle::container::{Desired, State};
use crate::proto::cri as v1;
use crate::traces;

/// Starts a container, or joins its start, or tells a caller whose answer was lost how it went.
pub(in crate::cri) async fn start(
    front: Front,
    request: v1::StartContainerRequest,
    deadline: Deadline,
) -> Result<v1::StartContainerResponse, CallError> {
    let id = front
        .find_container("container_id", request.container_id)
        .await?;
    traces::about(id.as_str());
    match front
        .desired
        .lower_container(id.clone(), Desired::Running, None)
        .await?
    {
        Verdict::Refused(impossible) => return Err(impossible.of(&id).into()),
        Verdict::Admitted | Verdict::Already => {}
    }
    let key = ObjectKey::Container(id.clone());
    let started = front
        .wait_for("container", key, deadline, || started(&front, &id))
        .await;
    if matches!(started, Ok(()) | Err(CallError::Failed(_))) {
        // Reached only while the client is there: from now on it knows, and who asks once more
        // asks for a second start.
        front.desired.start_answered(id);
    }
    started?;
    Ok(v1::StartContainerResponse {})
}

async fn started(front: &Front, id: &ContainerId) -> Result<Option<()>, CallError> {
    let container = front.store.container(id).await?;
    let container = container.ok_or_else(|| CallError::Withdrawn {
        noun: "container",
        id: id.to_string(),
    })?;
    match container.state {
        State::Running => Ok(Some(())),
        // Too quick to be seen running, or not to be started at all.
        State::Exited if container.started_at.is_some() => Ok(Some(())),
        State::Exited => Err(CallError::Failed(
            container.error.unwrap_or_else(|| "unknown".into()),
        )),
        _ => Ok(None),
    }
}
