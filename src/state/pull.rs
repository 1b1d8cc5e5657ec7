//! The table `pulls`, and the credentials of pulls under way, which are never stored.
//!
//! A row stands for a reference *and* the credentials it is pulled with, the latter as a
//! fingerprint that only this process can make.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::FromRow;

use super::error::during;
use super::event::Subject;
use super::operation::Finished;
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError, Store, now_ns};
use crate::id::ObjectKey;

/// What a client gave us to show to the registry (CRI `AuthConfig`).
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Secret {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Token to be exchanged for an access token.
    pub identity_token: String,
    /// Access token.
    pub registry_token: String,
    /// The host that may see all this; empty is every host that serves the image.
    pub server_address: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Parts reference and fingerprint in the key of a pull; no reference holds it.
const PART: char = '#';

/// The reference in the key of a pull.
#[must_use]
pub fn reference_of(key: &str) -> &str {
    key.split_once(PART).map_or(key, |(reference, _)| reference)
}

/// Whether the pull of this key was asked for with credentials.
#[must_use]
pub fn has_credentials(key: &str) -> bool {
    key.contains(PART)
}

/// Credentials of pulls under way, by key and the request that brought them.
#[derive(Default)]
pub struct PullSecrets {
    secrets: Mutex<HashMap<String, (i64, Secret)>>,
    /// Makes fingerprints that mean nothing outside this process.
    seed: RandomState,
}

impl PullSecrets {
    /// What a pull is known by: its reference, and if it has credentials a fingerprint of them. So
    /// only equal pulls are one, and nobody gets an answer that another's credentials have earned.
    #[must_use]
    pub fn key(&self, reference: &str, secret: &Secret) -> String {
        if *secret == Secret::default() {
            return reference.to_owned();
        }
        format!("{reference}{PART}{:016x}", self.seed.hash_one(secret))
    }

    fn put(&self, key: &str, request: i64, secret: Secret) {
        self.lock().insert(key.to_owned(), (request, secret));
    }

    /// The secret for a pull.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Secret> {
        self.lock().get(key).map(|(_, secret)| secret.clone())
    }

    /// Forgets it, unless a later request than this one has brought it again.
    pub fn remove(&self, key: &str, request: i64) {
        let mut secrets = self.lock();
        if secrets.get(key).is_some_and(|(of, _)| *of <= request) {
            secrets.remove(key);
        }
    }

    /// Number of secrets that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (i64, Secret)>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pull as the database knows it.
#[derive(Debug, Clone, FromRow)]
pub struct Pull {
    /// How often it was asked for.
    pub requested: i64,
    /// Up to which request it is answered.
    pub finished: i64,
    /// What came of it.
    pub image_id: Option<String>,
    /// Or why nothing did.
    pub error: Option<String>,
    /// `not_found`, `unauthorized`, `unavailable`, `invalid`, `other`.
    pub error_kind: Option<String>,
}

impl Store {
    /// The newest pull of a reference.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn pull(&self, reference: &str) -> Result<Option<Pull>, StateError> {
        self.read("read a pull", || {
            sqlx::query_as(
                "SELECT requested, finished, image_id, error, error_kind FROM pulls
             WHERE reference = ?",
            )
            .bind(reference)
            .fetch_optional(&self.readers)
        })
        .await
    }

    /// References whose pull is not finished, for recovery.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn unfinished_pulls(&self) -> Result<Vec<String>, StateError> {
        self.read("list pulls", || {
            sqlx::query_scalar("SELECT reference FROM pulls WHERE finished < requested")
                .fetch_all(&self.readers)
        })
        .await
    }
}

impl DesiredWriter {
    /// Asks for a pull, by the key that [`PullSecrets::key`] gives it; joins an equal one that is
    /// under way. Returns the request to wait for. The secret is put in the transaction, so a
    /// caller that goes away leaves a pull with its secret or neither.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn request_pull(
        &self,
        store: &Store,
        key: String,
        secret: Secret,
    ) -> Result<i64, StateError> {
        let secrets = Arc::clone(&store.pull_secrets);
        self.0
            .write("ask for a pull", move |tx| {
                Box::pin(async move {
                    let request: i64 = sqlx::query_scalar(
                        "INSERT INTO pulls (reference, requested, updated_at) VALUES (?1, 1, ?2)
                         ON CONFLICT (reference) DO UPDATE SET updated_at = ?2,
                             requested = finished + 1 RETURNING requested",
                    )
                    .bind(&key)
                    .bind(now_ns())
                    .fetch_one(&mut tx.connection)
                    .await
                    .map_err(during("ask for a pull"))?;
                    tx.enqueue(&ObjectKey::Pull(key.clone())).await?;
                    if has_credentials(&key) {
                        secrets.put(&key, request, secret);
                    }
                    Ok(request)
                })
            })
            .await
    }
}

impl ObservedWriter {
    /// A pull found what it names here already. `false` says that the image has gone or has lost
    /// one of these names meanwhile, and that nothing was written.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pull_known(
        &self,
        key: String,
        id: String,
        names: Vec<String>,
        done: Finished,
    ) -> Result<bool, StateError> {
        self.0
            .write("answer a pull", move |tx| {
                Box::pin(async move {
                    for name in &names {
                        let known: Option<i64> = sqlx::query_scalar(
                            "SELECT 1 FROM images i JOIN image_references r ON r.image_id = i.id
                             WHERE i.id = ? AND i.desired = 'present' AND r.reference = ?",
                        )
                        .bind(&id)
                        .bind(name)
                        .fetch_optional(&mut tx.connection)
                        .await
                        .map_err(during("find an image"))?;
                        if known.is_none() {
                            return Ok(false);
                        }
                    }
                    tx.operation(&done).await?;
                    tx.pull_answered(&key, &Ok(id)).await?;
                    Ok(true)
                })
            })
            .await
    }
}

impl Tx {
    pub(super) async fn pull_answered(
        &mut self,
        reference: &str,
        outcome: &Result<String, (&'static str, String)>,
    ) -> Result<(), StateError> {
        let (image_id, kind, error) = match outcome {
            Ok(image_id) => (Some(image_id), None, None),
            Err((kind, error)) => (None, Some(*kind), Some(error)),
        };
        sqlx::query(
            "UPDATE pulls SET finished = requested, image_id = ?, error_kind = ?, error = ?,
             finished_at = ? WHERE reference = ?",
        )
        .bind(image_id)
        .bind(kind)
        .bind(error)
        .bind(now_ns())
        .bind(reference)
        .execute(&mut self.connection)
        .await
        .map_err(during("answer a pull"))?;
        self.pull_rests(reference, outcome.is_ok()).await?;
        self.touch(ObjectKey::Pull(reference.to_owned()));
        self.let_go_of_layers(reference).await?;
        self.release_unused_layers().await
    }
}

/// The row that stands for an import under way: as with a pull, its layers are held meanwhile. No
/// reference looks like it.
pub const IMPORT: &str = "import";

impl ObservedWriter {
    /// An import begins; there is one at a time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn import_begins(&self) -> Result<(), StateError> {
        self.0
            .write("begin an import", |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO pulls (reference, requested, updated_at) VALUES (?1, 1, ?2)
                         ON CONFLICT (reference) DO UPDATE SET requested = finished + 1",
                    )
                    .bind(IMPORT)
                    .bind(now_ns())
                    .execute(&mut tx.connection)
                    .await
                    .map(drop)
                    .map_err(during("begin an import"))
                })
            })
            .await
    }

    /// The import has ended, or the daemon in which it ran.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn import_ends(&self) -> Result<(), StateError> {
        self.0
            .write("end an import", |tx| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM pulls WHERE reference = ?")
                        .bind(IMPORT)
                        .execute(&mut tx.connection)
                        .await
                        .map_err(during("end an import"))?;
                    tx.let_go_of_layers(IMPORT).await?;
                    tx.release_unused_layers().await
                })
            })
            .await
    }

    /// A pull failed: `kind` is one of the words of [`Pull::error_kind`]. The layers that it has
    /// got wait for a retry until `kept_until` (ns since 1970).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pull_failed(
        &self,
        reference: String,
        (kind, error): (&'static str, String),
        kept_until: i64,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("answer a pull", move |tx| {
                Box::pin(async move {
                    tx.operation(&done).await?;
                    let subject = Subject::Image(reference_of(&reference));
                    tx.event(subject, "pull_failed", &error).await?;
                    tx.keep_layers_for_retry(&reference, kept_until).await?;
                    tx.pull_answered(&reference, &Err((kind, error))).await
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(password: &str) -> Secret {
        Secret {
            username: "user".into(),
            password: password.into(),
            ..Default::default()
        }
    }

    #[test]
    fn only_equal_credentials_make_equal_pulls_and_none_can_be_read_from_a_key() {
        let secrets = PullSecrets::default();
        let key = |password| secrets.key("host/repo:tag", &secret(password));
        assert_eq!(key("a"), key("a"));
        assert_ne!(key("a"), key("b"));
        assert_ne!(
            key("a"),
            PullSecrets::default().key("host/repo:tag", &secret("a"))
        );
        let plain = secrets.key("host/repo:tag", &Secret::default());
        assert_eq!(plain, "host/repo:tag");
        assert!(has_credentials(&key("a")) && !has_credentials(&plain));
        assert_eq!(reference_of(&key("a")), plain);
        assert_eq!(reference_of(&plain), plain);
    }

    #[test]
    fn a_secret_that_a_later_request_brought_again_outlives_the_earlier_answer() {
        let secrets = PullSecrets::default();
        secrets.put("k", 1, secret("a"));
        secrets.put("k", 2, secret("a"));
        secrets.remove("k", 1);
        assert_eq!(secrets.get("k"), Some(secret("a")));
        secrets.remove("k", 2);
        assert_eq!((secrets.get("k"), secrets.held()), (None, 0));
    }
}
