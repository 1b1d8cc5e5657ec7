//! Images: from a reference a user typed to layers on disk.
//!
//! ```text
//!   reference ─► session, registry, blob ─┐              ┌─► channel ───┐
//!     (hosts, clients, keyring, auth)     ├─► manifest ──┤              ├─► unpack ─► settle,
//!   import (archive) ─────────────────────┘   pull       └─► download ──┘  fetch     layers
//! ```
//! A driver: it knows no database, no CRI and no other driver. Everything that comes from outside
//! (names, registries, archives, layers) is hostile until its digest or its shape has been checked.

mod annotations;
mod archive;
mod auth;
mod blob;
mod channel;
mod check;
mod clients;
mod commit;
mod download;
mod error;
mod export;
mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hosts;
mod import;
mod kept;
mod keyring;
mod layers;
pub mod manifest;
mod platform;
mod progress;
mod pull;
mod registry;
mod seal;
mod session;
mod settle;
mod signature;
mod sources;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod unpack;

use crate::lifecycle::{digest, reference};

pub use auth::{Credentials, Given};
pub use check::{LayerCheck, RetiredLayer};
pub use clients::Proxies;
pub use commit::{Below, PreparedLayer};
pub use digest::Digest;
pub use error::ImageError;
pub use export::StoredManifest;
pub use import::ImportedImage;
pub use layers::{CommittedLayer, LayerError, StagedLayer};
pub use manifest::{ImageConfigSummary, LayerDescriptor};
pub use progress::LayerProgress;
pub use pull::{ImageConfig, ImageDriver, Lookup, ResolvedImage};
pub use reference::{Reference, ReferenceError};
pub use seal::{Compared, Depth, Seal};
pub use settle::SettleError;
pub use signature::{Policy, PolicyRule};
pub use unpack::Limits;
