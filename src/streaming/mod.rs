//! Sessions: exec, attach and port-forward, over an HTTP server of their own.
//!
//! ```text
//! CRI call ──► Door ──► token in a URL ──► client ──► server.rs: token, handshake, 101
//!                                                        │
//!               spdy/ or websocket/: channels ◄──────────┘
//!                        │
//!               session/: exec, attach, port-forward ──► shim, pod
//! ```
//!
//! A session changes no state and outlives nothing: it ends with its client, with what it is about,
//! or with the daemon. One that is not read holds back what it is about, and nothing else.

mod backlog;
pub mod channel;
mod command;
mod config;
mod descriptor;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handshake;
mod hangup;
mod leaf;
mod server;
mod session;
pub mod spdy;
mod status;
mod tls;
mod tokens;
pub mod websocket;

pub(crate) use command::{Running, plan as exec_plan};
pub use config::StreamingConfig;
pub use server::{Door, Server};
pub use session::{Ask, AttachAsk, ExecAsk, PodNetwork, PortForwardAsk};
pub use tokens::TokenError;
