//! Images: references, registries, and layers on disk.
pub mod digest;
pub mod reference;
#[cfg(test)]
pub(crate) mod testing;
pub mod unpack;
