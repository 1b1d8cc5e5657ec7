//! End-to-end tests: the real daemon, driven over its socket by clients that are not ours, against
//! real images from a real registry on loopback.
//!
//! They need root. One binary, so that linking is paid once; one module per topic; one daemon per
//! test. `cargo test --test e2e restart::` runs one topic. `CRICTL` names the
//! crictl to use, `QUILTD` another daemon than the one Cargo has just built.

mod access;
mod admin;
mod apparmor;
mod both_killed;
mod boundary;
mod cancel;
mod cancel_model;
mod cdi;
mod cni;
mod command;
mod confinement;
mod container;
mod containerd;
mod crictl;
mod daemon;
mod db;
mod doctor;
mod events;
mod exec_sync;
mod exits;
mod fault_points;
mod fields;
mod hooks;
mod image;
mod image_blobs;
mod image_commands;
mod image_store;
mod image_volume;
mod import;
mod isolation;
mod jobs;
mod kubelet_traffic;
mod limits;
mod load;
mod log;
mod logs_command;
mod metrics;
mod network;
mod node_network;
mod pod_limits;
mod pull;
mod reboot;
mod recovery;
mod restart;
mod runtimes;
mod sandbox;
mod signature;
mod snapshot;
mod stats;
mod storage;
mod streaming;
mod stuck;
mod support;
mod sweep;
mod systemd;
mod tracing;
mod unimplemented;
mod update;
mod user_namespace;
mod validation;
mod version_and_status;
