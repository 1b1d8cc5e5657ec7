//! The annotations of a manifest, for clients that ask for them (image-spec, "Image Manifest
//! Property Descriptions").

use std::collections::BTreeMap;

use serde::Deserialize;

/// Bytes of all of them together: every list of images carries them.
const TOTAL_MAX: usize = 16 * 1024;

#[derive(Deserialize)]
struct Annotated {
    annotations: Option<BTreeMap<String, String>>,
}

/// The annotations of a manifest that has been parsed before; those that would make the whole
/// longer than 16 KiB are left out.
pub(super) fn of(manifest: &[u8]) -> BTreeMap<String, String> {
    let parsed = serde_json::from_slice::<Annotated>(manifest).ok();
    let mut left = TOTAL_MAX;
    let mut annotations = parsed
        .and_then(|parsed| parsed.annotations)
        .unwrap_or_default();
    annotations.retain(|key, value| {
        let fits = left.checked_sub(key.len() + value.len());
        left = fits.unwrap_or(left);
        fits.is_some()
    });
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_taken_as_long_as_they_are_short() {
        let long = "x".repeat(TOTAL_MAX);
        let text = format!(r#"{{"annotations": {{"a": "1", "b": "{long}", "c": "3"}}}}"#);
        let expected = [("a", "1"), ("c", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(of(text.as_bytes()), BTreeMap::from(expected));
        for none in [
            "",
            "{}",
            r#"{"annotations": null}"#,
            r#"{"annotations": {"a": 1}}"#,
        ] {
            assert!(of(none.as_bytes()).is_empty(), "{none}");
        }
    }
}
