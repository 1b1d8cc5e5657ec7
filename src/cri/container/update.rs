//! UpdateContainerResources: other limits for a container, all of them or none.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::id::ObjectKey;
use crate::lifecycle::spec::Resources;
use crate::proto::cri as v1;
use crate::state::container_update::Update;
use crate::traces;

use super::spec;

/// Changes the limits that the request sets, and leaves the others. A container that does not run
/// yet starts with them; for one that has ended only its status changes.
pub(in crate::cri) async fn update(
    front: Front,
    request: v1::UpdateContainerResourcesRequest,
    deadline: Deadline,
) -> Result<v1::UpdateContainerResourcesResponse, CallError> {
    let id = front
        .find_container("container_id", request.container_id)
        .await?;
    traces::about(id.as_str());
    let limits = request.linux.unwrap_or_default();
    let change = spec::resources("linux", limits)?;
    if change == Resources::default() {
        return Ok(v1::UpdateContainerResourcesResponse {});
    }
    let number = front.desired.update_container(id.clone(), change).await?;
    let key = ObjectKey::Container(id.clone());
    front
        .wait_for("container", key, deadline, || async {
            let container = front.store.container(&id).await?;
            let container = container.ok_or_else(|| CallError::Withdrawn {
                noun: "container",
                id: id.to_string(),
            })?;
            outcome(&container.update, number)
        })
        .await?;
    Ok(v1::UpdateContainerResourcesResponse {})
}

/// What came of an update of limits, if anything has yet.
pub(in crate::cri) fn outcome(update: &Update, number: i64) -> Result<Option<()>, CallError> {
    match &update.error {
        _ if update.done < number => Ok(None),
        Some(error) => Err(CallError::Failed(format!(
            "the limits are as before: {error}"
        ))),
        None => Ok(Some(())),
    }
}
