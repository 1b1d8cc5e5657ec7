//! ListImages, and StreamImages, which gives the same in pieces: a node with very many images does
//! not fit into one message (KEP-5825).

use crate::cri::call::Deadline;
use crate::cri::pieces::pieces;
use crate::cri::{CallError, Front};
use crate::proto::cri as v1;
use crate::state::image::Image;

use super::{name_of, view};

/// All images, or the one that a filter names.
pub(in crate::cri) async fn list(
    front: Front,
    request: v1::ListImagesRequest,
    _deadline: Deadline,
) -> Result<v1::ListImagesResponse, CallError> {
    let images = filtered(&front, request.filter).await?;
    Ok(v1::ListImagesResponse {
        images: images.into_iter().map(view::item).collect(),
    })
}

/// The same, each image once, in messages that are never empty.
pub(in crate::cri) async fn in_pieces(
    front: Front,
    request: v1::StreamImagesRequest,
    _deadline: Deadline,
) -> Result<Vec<v1::StreamImagesResponse>, CallError> {
    let images = filtered(&front, request.filter).await?;
    let items = images.into_iter().map(view::item);
    Ok(pieces(items, |images| v1::StreamImagesResponse { images }))
}

async fn filtered(front: &Front, filter: Option<v1::ImageFilter>) -> Result<Vec<Image>, CallError> {
    let name = filter.and_then(|filter| filter.image).map(name_of);
    match name.filter(|name| !name.is_empty()) {
        Some(name) => Ok(front.find_image(&name).await?.into_iter().collect()),
        None => Ok(front.store.images().await?),
    }
}
