//! Quilt, a Kubernetes node runtime.
pub mod cgroup;
pub mod network;
pub mod proto;
pub mod runtime;
pub mod sys;
