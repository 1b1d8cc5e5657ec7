//! OCI runtimes beside our own: their names, known from the start, and what each can do, which it
//! tells later.

use std::collections::BTreeMap;

use tokio::sync::SetOnce;

use crate::lifecycle::handler::Features;

/// The configured runtimes.
#[derive(Debug, Default)]
pub struct KnownHandlers(BTreeMap<String, SetOnce<Features>>);

impl KnownHandlers {
    /// These, of which nothing is known yet.
    #[must_use]
    pub fn new<'n>(names: impl Iterator<Item = &'n String>) -> Self {
        Self(names.map(|name| (name.clone(), SetOnce::new())).collect())
    }

    /// Whether there is one of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Keeps what a runtime has told of itself.
    pub fn learn(&self, name: &str, features: Features) {
        if let Some(known) = self.0.get(name) {
            // It has told once already.
            let _ = known.set(features);
        }
    }

    /// What a runtime can do, as soon as it has told: each is asked at the start, and has some
    /// seconds. `None` is one that is not configured.
    pub async fn told(&self, name: &str) -> Option<&Features> {
        match self.0.get(name) {
            Some(known) => Some(known.wait().await),
            None => None,
        }
    }

    /// All of them; what one can do only if it has told.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Features>)> {
        let all = self.0.iter();
        all.map(|(name, features)| (name.as_str(), features.get()))
    }
}
