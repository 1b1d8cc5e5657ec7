//! From launch plan to exec: namespaces, rootfs, mounts, devices, capabilities, limits.
//!
//! Runs in the shim and in the child after clone. Knows no SQLite, no CRI and no tokio.
pub mod launch;
pub mod plan;
