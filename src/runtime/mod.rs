//! From launch plan to exec: namespaces, rootfs, mounts, devices, capabilities, limits.
//!
//! Runs in the shim and in the child after clone. Knows no SQLite, no CRI and no tokio.
//!
//! In the order of a launch:
//! `launch` (shim) → `spawn` → `container` or `join` or `pod_init` (child), which use the rest.
mod capabilities;
mod cgroup_entry;
mod cgroup_mount;
mod channel;
mod command;
mod confine;
mod container;
mod devices;
pub mod error;
mod external;
mod hidden_paths;
pub mod hooks;
mod id_maps;
pub mod image_volume;
mod join;
pub mod launch;
mod limits;
mod mount_options;
mod mounts;
mod namespaces;
pub mod oci;
pub mod plan;
mod pod_init;
pub mod probe;
pub mod protect;
mod root;
mod rootfs;
mod scratch;
mod spawn;
mod terminal;
mod unsupported;
mod user;
mod user_namespace;

#[cfg(test)]
mod launch_tests;
