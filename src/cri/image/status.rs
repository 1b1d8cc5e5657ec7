//! ImageStatus: an image that is not there is an answer, not an error.

use std::collections::HashMap;

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::proto::cri as v1;

use super::{named, view};

/// The status of an image.
pub(in crate::cri) async fn status(
    front: Front,
    request: v1::ImageStatusRequest,
    _deadline: Deadline,
) -> Result<v1::ImageStatusResponse, CallError> {
    let name = named("image", request.image)?;
    let image = front.find_image(&name).await?;
    let mut info = HashMap::new();
    if request.verbose
        && let Some(image) = &image
    {
        info.insert(
            "config".into(),
            serde_json::to_string(&image.spec).unwrap_or_default(),
        );
    }
    Ok(v1::ImageStatusResponse {
        image: image.map(view::item),
        info,
    })
}
