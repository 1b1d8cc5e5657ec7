//! Images: references, registries, and layers on disk.
pub mod digest;
mod error;
mod layers;
pub mod manifest;
pub mod reference;
mod settle;
#[cfg(test)]
pub(crate) mod testing;
pub mod unpack;
