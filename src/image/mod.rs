//! Images: from a reference a user typed to layers on disk.
//!
//! ```text
//!   reference ──► session/registry (hosts, clients, auth) ──┐
//!                                                           ├─► manifest ─► pull ─► unpack ─►
//! layers
//!   import (archive) ───────────────────────────────────────┘                       settle ──┘
//! ```
//! A driver: it knows no database, no CRI and no other driver. Everything that comes from outside
//! (names, registries, archives, layers) is hostile until its digest or its shape has been checked.

mod annotations;
mod archive;
mod auth;
mod channel;
mod check;
mod clients;
mod error;
mod hosts;
mod import;
mod layers;
pub mod manifest;
mod pull;
mod registry;
mod seal;
mod session;
mod settle;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod unpack;

use crate::lifecycle::{digest, reference};

pub use auth::Credentials;
pub use check::{LayerCheck, RetiredLayer};
pub use digest::Digest;
pub use error::ImageError;
pub use import::ImportedImage;
pub use layers::{CommittedLayer, LayerError, StagedLayer};
pub use manifest::{ImageConfigSummary, LayerDescriptor};
pub use pull::{ImageConfig, ImageDriver, ResolvedImage};
pub use reference::{Reference, ReferenceError};
pub use seal::{Compared, Depth, Seal};
pub use settle::SettleError;
pub use unpack::Limits;
