//! Quilt, a Kubernetes node runtime. The modules in the order data flows; ARCHITECTURE.md tells
//! the story.

// Front: what clients ask.

// Middle: rules and rows.
pub mod lifecycle;
pub mod state;

// Back: what is done about it.

// Node side.
pub mod runtime;

// Ground.
pub mod id;
pub mod proto;
