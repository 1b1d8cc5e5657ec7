//! What the configured OCI runtimes can do, asked of each while calls are answered already.

use std::sync::Arc;

use crate::cri::KnownHandlers;
use crate::lifecycle::handler::{Features, Handlers};
use crate::reconcile::external;

/// Asks all of them. One that does not say has none of what is asked for; whether it can run a
/// container is found out when one is started.
pub(super) async fn probe(handlers: Handlers, known: Arc<KnownHandlers>) {
    let asked = handlers.iter().map(|(name, handler)| {
        let known = Arc::clone(&known);
        async move {
            let features = external::features(handler).await;
            let features = features.unwrap_or_else(|why| {
                let path = handler.path.display();
                let text = "the runtime does not tell its features";
                tracing::warn!(handler = name, %path, why, "{text}");
                Features::default()
            });
            known.learn(name, features);
        }
    });
    futures_util::future::join_all(asked).await;
}
