//! The harness: a real daemon per test, a real registry per test process, and clients that are not
//! ours.
//!
//! Nothing here knows the daemon's code except the generated types of its newest API. Whatever a
//! test makes has the test's own names (directory, bridge, subnet, cgroup), so that tests run side
//! by side, and is looked for when the test ends: what is left fails it.

pub(crate) mod certificate;
pub(crate) mod cgroup;
pub(crate) mod client;
pub(crate) mod crictl;
pub(crate) mod database;
pub(crate) mod events;
pub(crate) mod faults;
pub(crate) mod guarded;
pub(crate) mod host;
pub(crate) mod hostile;
pub(crate) mod image;
pub(crate) mod layer;
pub(crate) mod leftover;
pub(crate) mod link;
pub(crate) mod log;
pub(crate) mod names;
pub(crate) mod nft;
pub(crate) mod node;
pub(crate) mod operator;
pub(crate) mod pod;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod protojson;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod rules;
pub(crate) mod streaming;
pub(crate) mod teardown;
pub(crate) mod token;
pub(crate) mod wait;

pub(crate) use client::Cri;
pub(crate) use node::Node;
pub(crate) use pod::{Pod, container};
pub(crate) use registry::registry;
pub(crate) use wait::{eventually, in_time};

/// Whether the long forms of tests are asked for (`make soak`).
pub(crate) fn is_soak() -> bool {
    std::env::var_os("QUILT_SOAK").is_some_and(|value| value == "1")
}

/// CRI as the independent client sees it.
pub(crate) use k8s_cri::v1 as cri;
