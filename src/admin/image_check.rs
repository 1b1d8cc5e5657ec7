//! The check of images: asked of the back, and told part by part.

use tokio::sync::mpsc;
use tonic::Status;

use crate::lifecycle::image_check::Part;
use crate::proto::admin as v1;

/// Parts that may wait for a slow reader.
const PARTS: usize = 16;

/// A check of images that the back is asked for.
pub struct ImageCheck {
    /// Ids or names; none is all images.
    pub images: Vec<String>,
    /// Whether the content of files is left out.
    pub quick: bool,
    /// Whether to fetch again what is broken.
    pub repair: bool,
    /// Where each part goes, or why the check could not go on. It ends when nobody listens.
    pub answers: mpsc::Sender<Result<Part, String>>,
}

impl ImageCheck {
    /// A check, and where its parts will come out.
    pub(super) fn of(
        request: v1::CheckImagesRequest,
    ) -> (Self, mpsc::Receiver<Result<Part, String>>) {
        let (answers, parts) = mpsc::channel(PARTS);
        let check = Self {
            images: request.images,
            quick: request.quick,
            repair: request.repair,
            answers,
        };
        (check, parts)
    }
}

pub(super) fn message(part: Result<Part, String>) -> Result<v1::CheckedImagePart, Status> {
    let part = part.map_err(Status::failed_precondition)?;
    Ok(v1::CheckedImagePart {
        image_id: part.image_id,
        names: part.names,
        layer: part.layer.unwrap_or_default(),
        verdict: part.verdict.as_str().to_owned(),
        differences: part.differences,
        more: part.more,
        entries: part.entries,
        bytes_read: part.bytes_read,
        error: part.error.unwrap_or_default(),
    })
}
