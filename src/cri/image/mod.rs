//! Images, one file per verb.

pub mod fs_info;
pub mod list;
pub mod pull;
pub mod remove;
pub mod status;
mod view;

use super::{CallError, Front, validate};
use crate::lifecycle::image::Desired;
use crate::lifecycle::reference::Reference;
use crate::proto::cri as v1;
use crate::state::image::Image;

/// Longest name of an image: host, repository, tag and digest.
const NAME_MAX: usize = 1024;

/// The name in an `ImageSpec`, which has to be there.
fn named(field: &str, spec: Option<v1::ImageSpec>) -> Result<String, CallError> {
    let spec = validate::required(field, spec)?;
    if spec.image.is_empty() {
        return Err(CallError::invalid(format!("{field}.image"), "is missing"));
    }
    if spec.image.len() > NAME_MAX {
        let why = format!("has {} bytes, more than {NAME_MAX}", spec.image.len());
        return Err(CallError::invalid(format!("{field}.image"), why));
    }
    Ok(spec.image)
}

impl Front {
    /// Finds an image as kubelet and people name it: by id, by the beginning of an id, or by a
    /// reference, with the rules of `docker`'s names.
    pub(super) async fn find_image(&self, name: &str) -> Result<Option<Image>, CallError> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_hex = hex.len() <= 64 && hex.bytes().all(is_digit);
        if is_hex && (hex.len() == 64 || name.starts_with("sha256:")) {
            return self.find_image_by_id(hex).await;
        }
        if let Ok(reference) = name.parse::<Reference>() {
            // A digest names the content; a tag beside it is for people.
            let known = match reference.digest() {
                Some(digest) => reference.with_digest(digest).to_string(),
                None => reference.to_string(),
            };
            if let Some(image) = self.store.image_by_reference(&known).await? {
                return Ok(Some(image));
            }
        }
        // `crictl` shows ids cut short, and people type what they see.
        if is_hex {
            self.find_image_by_id(hex).await
        } else {
            Ok(None)
        }
    }

    /// The id of an image that is being removed, by any of its names.
    pub(super) async fn find_leaving_image(&self, name: &str) -> Result<Option<String>, CallError> {
        let known = match name.parse::<Reference>() {
            Ok(reference) => match reference.digest() {
                Some(digest) => reference.with_digest(digest).to_string(),
                None => reference.to_string(),
            },
            Err(_) => String::new(),
        };
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let id = format!("sha256:{hex}");
        Ok(self.store.leaving_image(&known, &id).await?)
    }

    async fn find_image_by_id(&self, hex: &str) -> Result<Option<Image>, CallError> {
        let prefix = format!("sha256:{hex}");
        let mut ids = self.store.image_ids(&prefix).await?;
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => {
                let image = self.store.image(&id).await?;
                Ok(image.filter(|image| image.desired == Desired::Present))
            }
            (Some(_), false) => Err(CallError::Ambiguous {
                noun: "image",
                prefix,
            }),
            (None, _) => Ok(None),
        }
    }
}
