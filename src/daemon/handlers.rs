//! What the configured OCI runtimes can do, asked of each at the start.

use std::collections::BTreeMap;

use crate::lifecycle::handler::{Features, Handlers};
use crate::reconcile::external;

/// Asks all of them. One that does not say has none of what is asked for; whether it can run a
/// container is found out when one is started.
pub(super) async fn probe(handlers: &Handlers) -> BTreeMap<String, Features> {
    let asked = handlers.iter().map(|(name, handler)| async move {
        let (features, version) =
            tokio::join!(external::features(handler), external::version(handler));
        let mut features = features.unwrap_or_else(|why| {
            let path = handler.path.display();
            tracing::warn!(handler = name, %path, why, "the runtime does not tell its features");
            Features::default()
        });
        features.version = version;
        if let Some(told) = handler.user_namespaces {
            features.user_namespaces = told;
        }
        (name.clone(), features)
    });
    let all = futures_util::future::join_all(asked).await;
    all.into_iter().collect()
}
