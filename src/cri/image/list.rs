//! ListImages.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::proto::cri as v1;

use super::view;

/// All images, or the one that a filter names.
pub(in crate::cri) async fn list(
    front: Front,
    request: v1::ListImagesRequest,
    _deadline: Deadline,
) -> Result<v1::ListImagesResponse, CallError> {
    let name = request
        .filter
        .and_then(|filter| filter.image)
        .map(|spec| spec.image);
    let images = match name.filter(|name| !name.is_empty()) {
        Some(name) => front.find_image(&name).await?.into_iter().collect(),
        None => front.store.images().await?,
    };
    Ok(v1::ListImagesResponse {
        images: images.into_iter().map(view::item).collect(),
    })
}
