//! Quilt, a Kubernetes node runtime.
pub mod image;
pub mod proto;
pub mod runtime;
pub mod snapshot;
pub mod sys;
