//! Safe wrappers over the system calls that no safe crate offers.
//!
//! The only place where `unsafe` is at home: each file opens the lint for itself, and each block
//! carries its proof. Nothing here knows what a container is.
pub mod clone;
pub mod mounts;
pub mod nsfd;
pub mod process;
pub mod reaper;
