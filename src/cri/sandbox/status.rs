//! PodSandboxStatus: indexed reads of the pod and its containers. kubelet's evented PLEG wants both
//! in one message, with the time they were read.

use std::collections::HashMap;

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front, events};
use crate::lifecycle::sandbox::State;
use crate::proto::cri as v1;
use crate::state::now_ns;
use crate::traces;

use super::view;

/// The status of a sandbox that clients may see.
pub(in crate::cri) async fn status(
    front: Front,
    request: v1::PodSandboxStatusRequest,
    _deadline: Deadline,
) -> Result<v1::PodSandboxStatusResponse, CallError> {
    let id = front
        .find_sandbox("pod_sandbox_id", request.pod_sandbox_id)
        .await?;
    traces::about(id.as_str());
    // Before the reads: kubelet takes statuses to be as new as this, or newer.
    let timestamp = now_ns();
    let sandbox = front.store.sandbox(&id).await?;
    front.claim(sandbox.as_ref());
    let visible = sandbox.filter(|s| !matches!(s.state, State::Preparing | State::Failed));
    let sandbox = visible.ok_or_else(|| CallError::NotFound {
        noun: "sandbox",
        id: id.to_string(),
    })?;
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("desired".into(), sandbox.desired.as_str().to_owned());
        info.insert(
            "spec".into(),
            serde_json::to_string(&sandbox.spec).unwrap_or_default(),
        );
    }
    Ok(v1::PodSandboxStatusResponse {
        status: Some(view::status(sandbox)),
        info,
        containers_statuses: events::statuses(&front, &id).await?,
        timestamp,
    })
}
