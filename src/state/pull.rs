//! The table `pulls`, and the credentials of pulls under way, which are never stored.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use sqlx::FromRow;

use super::error::during;
use super::operation::Finished;
use super::writer::Tx;
use super::{DesiredWriter, ObservedWriter, StateError, Store, now_ns};
use crate::id::ObjectKey;

/// What a client gave us to show to the registry (CRI `AuthConfig`).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Token to be exchanged for an access token.
    pub identity_token: String,
    /// Access token.
    pub registry_token: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Credentials by reference, from the request until its pull ends.
#[derive(Default)]
pub struct PullSecrets(Mutex<HashMap<String, Secret>>);

impl PullSecrets {
    /// Keeps a secret for the pull of `reference`.
    pub fn put(&self, reference: &str, secret: Secret) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(reference.to_owned(), secret);
    }

    /// The secret for the pull of `reference`.
    #[must_use]
    pub fn get(&self, reference: &str) -> Option<Secret> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(reference)
            .cloned()
    }

    /// Forgets it.
    pub fn remove(&self, reference: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(reference);
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
    /// Asks for a reference to be pulled; joins a pull that is under way. Returns the request to
    /// wait for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn request_pull(&self, reference: String) -> Result<i64, StateError> {
        self.0
            .write("ask for a pull", move |tx| {
                Box::pin(async move {
                    let request: i64 = sqlx::query_scalar(
                        "INSERT INTO pulls (reference, requested, updated_at) VALUES (?1, 1, ?2)
                         ON CONFLICT (reference) DO UPDATE SET updated_at = ?2,
                             requested = finished + 1 RETURNING requested",
                    )
                    .bind(&reference)
                    .bind(now_ns())
                    .fetch_one(&mut tx.connection)
                    .await
                    .map_err(during("ask for a pull"))?;
                    tx.enqueue(&ObjectKey::Pull(reference)).await?;
                    Ok(request)
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
            "UPDATE pulls SET finished = requested, image_id = ?, error_kind = ?, error = ?
             WHERE reference = ?",
        )
        .bind(image_id)
        .bind(kind)
        .bind(error)
        .bind(reference)
        .execute(&mut self.connection)
        .await
        .map_err(during("answer a pull"))?;
        self.touch(ObjectKey::Pull(reference.to_owned()));
        // While a pull runs nothing is released: its layers have no image yet.
        self.release_unused_layers().await
    }
}

/// The row that stands for an import under way: as with a pull, no layer is released meanwhile. No
/// reference looks like it.
const IMPORT: &str = "import";

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
                    tx.release_unused_layers().await
                })
            })
            .await
    }

    /// A pull failed: `kind` is one of the words of [`Pull::error_kind`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pull_failed(
        &self,
        reference: String,
        kind: &'static str,
        error: String,
        done: Finished,
    ) -> Result<(), StateError> {
        self.0
            .write("answer a pull", move |tx| {
                Box::pin(async move {
                    tx.operation(&done).await?;
                    tx.pull_answered(&reference, &Err((kind, error))).await
                })
            })
            .await
    }
}
