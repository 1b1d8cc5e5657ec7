//! UpdatePodSandboxResources (KEP-1287): other limits for a pod as a whole, all of them or none.

use crate::cri::call::Deadline;
use crate::cri::container::spec;
use crate::cri::container::update::outcome;
use crate::cri::{CallError, Front};
use crate::id::ObjectKey;
use crate::lifecycle::sandbox::{Desired, State};
use crate::lifecycle::spec::Resources;
use crate::proto::cri as v1;
use crate::traces;

/// Limits the pod to what its containers may use together and, on top of that, its overhead.
/// kubelet asks after it has set the same limits itself; they are set all the same, for a client
/// that has not.
pub(in crate::cri) async fn update(
    front: Front,
    request: v1::UpdatePodSandboxResourcesRequest,
    deadline: Deadline,
) -> Result<v1::UpdatePodSandboxResourcesResponse, CallError> {
    let id = front
        .find_sandbox("pod_sandbox_id", request.pod_sandbox_id)
        .await?;
    traces::about(id.as_str());
    let overhead = spec::resources("overhead", request.overhead.unwrap_or_default())?;
    let limits = spec::resources("resources", request.resources.unwrap_or_default())?;
    let change = limits.with_overhead(&overhead);
    if change == Resources::default() {
        return Ok(v1::UpdatePodSandboxResourcesResponse {});
    }
    let number = front.desired.update_sandbox(id.clone(), change).await?;
    let key = ObjectKey::Sandbox(id.clone());
    front
        .wait_for("sandbox", key, deadline, || async {
            let withdrawn = || CallError::Withdrawn {
                noun: "sandbox",
                id: id.to_string(),
            };
            let sandbox = front.store.sandbox(&id).await?.ok_or_else(withdrawn)?;
            let is_up = sandbox.desired == Desired::Ready
                && sandbox.state == State::Ready
                && !sandbox.init_ended;
            if sandbox.update.done < number && !is_up {
                // It comes down, and nobody sets limits any more.
                return Err(withdrawn());
            }
            outcome(&sandbox.update, number)
        })
        .await?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
