//! An image as clients see it.

use crate::proto::cri as v1;
use crate::state::image::Image;

pub(super) fn item(image: Image) -> v1::Image {
    let user = image.spec.user.split(':').next().unwrap_or_default();
    // Kubelet decides `runAsNonRoot` by these two: a number goes into one, a name into the other.
    let uid = user
        .parse::<u32>()
        .ok()
        .map(|uid| v1::Int64Value { value: uid.into() });
    let username = if uid.is_none() {
        user.to_owned()
    } else {
        String::new()
    };
    let uid = if user.is_empty() {
        Some(v1::Int64Value { value: 0 })
    } else {
        uid
    };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags,
        repo_digests: image.digests,
        size: u64::try_from(image.size_bytes).unwrap_or(1).max(1),
        uid,
        username,
        spec: Some(v1::ImageSpec {
            image: image.id,
            annotations: image.annotations.into_iter().collect(),
            ..Default::default()
        }),
        pinned: image.pinned,
    }
}
