//! Finding an image by what kubelet and people call it.

use super::image::Image;
use super::{StateError, Store};
use crate::lifecycle::image::Desired;
use crate::lifecycle::reference::Reference;

/// What a name leads to.
#[derive(Debug, Clone)]
pub enum FoundImage {
    /// No image has it.
    None,
    /// This one.
    One(Box<Image>),
    /// It is the beginning of several ids.
    Several,
}

impl Store {
    /// Finds a wanted image: by id, by the beginning of an id, or by a reference, with the rules of
    /// `docker`'s names. A name wins over the beginning of an id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_image(&self, name: &str) -> Result<FoundImage, StateError> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_hex = !hex.is_empty() && hex.len() <= 64 && hex.bytes().all(is_digit);
        if is_hex && (hex.len() == 64 || name.starts_with("sha256:")) {
            return self.find_image_by_id(hex).await;
        }
        if let Some(known) = known_as(name)
            && let Some(image) = self.image_by_reference(&known).await?
        {
            return Ok(FoundImage::One(Box::new(image)));
        }
        // `crictl` shows ids cut short, and people type what they see.
        match is_hex {
            true => self.find_image_by_id(hex).await,
            false => Ok(FoundImage::None),
        }
    }

    /// The id of an image that is being removed, by any of its names.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_leaving_image(&self, name: &str) -> Result<Option<String>, StateError> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let id = format!("sha256:{hex}");
        self.leaving_image(&known_as(name).unwrap_or_default(), &id)
            .await
    }

    async fn find_image_by_id(&self, hex: &str) -> Result<FoundImage, StateError> {
        let mut ids = self.image_ids(&format!("sha256:{hex}")).await?;
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => {
                let image = self.image(&id).await?;
                let wanted = image.filter(|image| image.desired == Desired::Present);
                Ok(wanted.map_or(FoundImage::None, |image| FoundImage::One(Box::new(image))))
            }
            (Some(_), false) => Ok(FoundImage::Several),
            (None, _) => Ok(FoundImage::None),
        }
    }
}

/// The form in which a name is stored, if it is one.
fn known_as(name: &str) -> Option<String> {
    let reference: Reference = name.parse().ok()?;
    Some(reference.known_as())
}
