//! What a container is confined by besides namespaces and capabilities: seccomp, and what the node
//! has of security modules.
//!
//! Decides and compiles, installs nothing: the launch plan carries the result, and
//! `runtime/confine.rs` puts it on the process.

pub mod lsm;
pub mod seccomp;
