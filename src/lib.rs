//! Quilt, a Kubernetes node runtime. The modules in the order data flows; ARCHITECTURE.md tells
//! the story.

// What joins the parts.
pub mod cli;
pub mod config;
pub mod daemon;
pub mod telemetry;

// Front: what clients ask.
pub mod admin;
pub mod containerd;
pub mod cri;
pub mod streaming;

// Middle: rules and rows.
pub mod lifecycle;
pub mod state;

// Back: what is done about it.
pub mod cdi;
pub mod cgroup;
pub mod confinement;
pub mod image;
pub mod network;
pub mod reconcile;
pub mod snapshot;

// Node side.
pub mod runtime;
pub mod shim;

// Ground.

pub mod causes;
pub mod engine;
pub mod fault;
pub mod id;
pub mod metrics;
pub mod proto;
pub mod sys;
pub mod traces;
