//! ImageStatus: an image that is not there is an answer, not an error.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::proto::cri as v1;
use crate::state::image::Image;

use super::{named, view};

/// The status of an image.
pub(in crate::cri) async fn status(
    front: Front,
    request: v1::ImageStatusRequest,
    _deadline: Deadline,
) -> Result<v1::ImageStatusResponse, CallError> {
    let name = named("image", request.image)?;
    let image = front.find_image(&name).await?;
    let info = match &image {
        Some(image) if request.verbose => verbose(&front, image).await?,
        _ => HashMap::new(),
    };
    Ok(v1::ImageStatusResponse {
        image: image.map(view::item),
        info,
    })
}

/// Everything known of an image, as one JSON object under `info`. `chainID` and `imageSpec` (the
/// configuration as the registry has it) are named as containerd names them.
async fn verbose(front: &Front, image: &Image) -> Result<HashMap<String, String>, CallError> {
    let origin = front.store.image_origin(&image.id).await?;
    let origin = origin.unwrap_or_default();
    let documents = front.store.image_documents(&image.id).await?;
    let layers = match &image.top_chain_id {
        Some(top) => front.store.layers_of(top).await?,
        None => Vec::new(),
    };
    let layers: Vec<Value> = layers
        .into_iter()
        .map(|layer| {
            json!({
                "chainID": layer.chain_id,
                "diffID": layer.diff_id,
                "digest": layer.digest,
                "sizeBytes": layer.size_bytes,
                "inodes": layer.inodes,
                "checkedAt": layer.checked_at,
                "damage": layer.damage,
            })
        })
        .collect();
    let config: Option<Value> = documents
        .config
        .and_then(|config| serde_json::from_slice(&config).ok());
    let info = json!({
        "chainID": image.top_chain_id,
        "imageSpec": config,
        "manifestDigest": origin.manifest_digest,
        "layers": layers,
        "pulledAs": origin.pulled_as,
        "pulledAt": origin.created_at,
        "pullDurationNs": origin.pull_ns,
        "damage": origin.damage,
    });
    Ok(HashMap::from([("info".to_owned(), info.to_string())]))
}
