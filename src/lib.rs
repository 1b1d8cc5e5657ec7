//! Quilt, a Kubernetes node runtime.
pub mod proto;
pub mod runtime;
pub mod sys;
