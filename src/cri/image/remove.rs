//! RemoveImage: by any of its names, the image goes with all its names. Any number of times.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::id::ObjectKey;
use crate::lifecycle::image::Desired;
use crate::proto::cri as v1;
use crate::traces;

use super::named;

/// Removes an image; one that is not there is removed. Layers a container stands on stay until it
/// is gone.
pub(in crate::cri) async fn remove(
    front: Front,
    request: v1::RemoveImageRequest,
    deadline: Deadline,
) -> Result<v1::RemoveImageResponse, CallError> {
    let name = named("image", request.image)?;
    let id = match front.find_image(&name).await? {
        Some(image) => image.id,
        // A retry finds what is on its way out, and waits for it as the first call did.
        None => match front.store.find_leaving_image(&name).await? {
            Some(id) => id,
            None => return Ok(v1::RemoveImageResponse {}),
        },
    };
    traces::about(&id);
    if front.desired.remove_image(id.clone()).await? {
        let key = ObjectKey::Image(id.clone());
        front
            .wait_for("image", key, deadline, || async {
                let left = front.store.image(&id).await?;
                let gone = left.is_none_or(|image| image.desired == Desired::Present);
                Ok(gone.then_some(()))
            })
            .await?;
    }
    Ok(v1::RemoveImageResponse {})
}
