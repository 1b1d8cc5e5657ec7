//! Images, one file per verb.

pub mod fs_info;
pub mod list;
pub mod pull;
pub mod remove;
pub mod status;
mod view;

use super::{CallError, Front, validate};
use crate::proto::cri as v1;
use crate::state::image::Image;
use crate::state::image_lookup::FoundImage;

/// Longest name of an image: host, repository, tag and digest.
const NAME_MAX: usize = 1024;

/// The name in an `ImageSpec`, which has to be there.
fn named(field: &str, spec: Option<v1::ImageSpec>) -> Result<String, CallError> {
    let name = name_of(validate::required(field, spec)?);
    if name.is_empty() {
        return Err(CallError::invalid(format!("{field}.image"), "is missing"));
    }
    if name.len() > NAME_MAX {
        let why = format!("has {} bytes, more than {NAME_MAX}", name.len());
        return Err(CallError::invalid(format!("{field}.image"), why));
    }
    Ok(name)
}

/// Kubelet may know an image by what a pull has answered and nothing else.
fn name_of(spec: v1::ImageSpec) -> String {
    match spec.image.is_empty() {
        true => spec.image_ref,
        false => spec.image,
    }
}

impl Front {
    /// Finds an image as kubelet and people name it.
    pub(super) async fn find_image(&self, name: &str) -> Result<Option<Image>, CallError> {
        match self.store.find_image(name).await? {
            FoundImage::None => Ok(None),
            FoundImage::One(image) => Ok(Some(*image)),
            FoundImage::Several => Err(CallError::Ambiguous {
                noun: "image",
                prefix: name.to_owned(),
            }),
        }
    }
}
