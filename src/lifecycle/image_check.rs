//! What a check of the image store tells of one of its parts: the documents of an image, or a
//! layer.

use super::stored_as_text;

stored_as_text! {
    /// What a part is found to be.
    Verdict {
        /// As it should be.
        Whole = "whole",
        /// Not as it should be.
        Damaged = "damaged",
        /// It was not as it should be, and is.
        Repaired = "repaired",
    }
}

/// A part that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The image by which it was come to.
    pub image_id: String,
    /// The image's names, with a tag and then with a digest.
    pub names: Vec<String>,
    /// Chain id of the layer; `None` is manifest and configuration of the image.
    pub layer: Option<String>,
    /// What it was found to be.
    pub verdict: Verdict,
    /// The first differences, a line each.
    pub differences: Vec<String>,
    /// How many more there are.
    pub more: u64,
    /// Entries that were looked at.
    pub entries: u64,
    /// Bytes of content that were read.
    pub bytes_read: u64,
    /// Why it was not repaired, if that was tried.
    pub error: Option<String>,
}
