//! Labels and annotations, as the interface has them.

use std::collections::HashMap;

use crate::lifecycle::spec::Map;

/// A copy in the interface's own kind of map.
pub(super) fn as_sent(labels: &Map) -> HashMap<String, String> {
    let copied = labels
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    copied.collect()
}
