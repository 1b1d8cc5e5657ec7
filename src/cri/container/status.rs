//! ContainerStatus: one indexed read.

use std::collections::HashMap;

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::lifecycle::container::State;
use crate::proto::cri as v1;
use crate::traces;

use super::view;

/// The status of a container that clients may see.
pub(in crate::cri) async fn status(
    front: Front,
    request: v1::ContainerStatusRequest,
    _deadline: Deadline,
) -> Result<v1::ContainerStatusResponse, CallError> {
    let id = front
        .find_container("container_id", request.container_id)
        .await?;
    traces::about(id.as_str());
    let container = front.store.container(&id).await?;
    let visible = container.filter(|c| !matches!(c.state, State::Preparing | State::Error));
    let container = visible.ok_or_else(|| CallError::NotFound {
        noun: "container",
        id: id.to_string(),
    })?;
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("sandboxID".into(), container.sandbox_id.to_string());
        info.insert(
            "pid".into(),
            container.process.map_or(0, |(pid, _)| pid).to_string(),
        );
        info.insert("desired".into(), container.desired.as_str().to_owned());
        info.insert(
            "spec".into(),
            serde_json::to_string(&container.spec).unwrap_or_default(),
        );
    }
    let log_path = container.log_path.clone();
    Ok(v1::ContainerStatusResponse {
        status: Some(view::status(container, log_path)),
        info,
    })
}
