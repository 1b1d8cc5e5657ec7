//! Sessions: exec, attach and port-forward, with crictl over both of its transports and with
//! clients that misbehave.

pub(crate) mod attach;
mod clients;
mod exec;
mod hostile;
mod port_forward;
mod server;
mod user_namespace;

/// crictl's transports.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// Bytes that are binary, and not the same twice.
fn noise(length: usize) -> Vec<u8> {
    crate::support::layer::noise(length, 6)
}
