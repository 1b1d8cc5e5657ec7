//! Images: references, registries, and layers on disk.
pub mod digest;
pub mod reference;
pub mod unpack;
