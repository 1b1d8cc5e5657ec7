//! SPDY/3.1 as a server, in the part that Kubernetes' clients speak: streams that the client opens,
//! data both ways, windows, pings, resets and a goodbye.
//!
//! `frame.rs`, `headers.rs` and `dictionary.rs` are pure; `connection.rs` drives a connection,
//! `writer.rs` is the half of it that writes.

mod connection;
mod credit;
mod dictionary;
pub mod frame;
pub mod headers;
mod window;
mod writer;

pub use connection::{Bounds, Connection, NewStream, StreamWriter, serve};
pub(crate) use credit::Credit;

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    /// A frame of another version.
    #[error("a frame of SPDY version {0}, where only 3 is spoken")]
    Version(u16),
    /// A frame over its bound.
    #[error("a frame of kind {kind} with {length} bytes is too long")]
    TooLong {
        /// The kind of control frame; 0 is data.
        kind: u16,
        /// What its head says.
        length: usize,
    },
    /// A frame that is too short for what it says.
    #[error("a frame of kind {kind} is malformed")]
    Malformed {
        /// The kind of control frame.
        kind: u16,
    },
    /// A header block that is none.
    #[error("headers: {0}")]
    Headers(&'static str),
    /// A rule of the connection is broken.
    #[error("{0}")]
    Rule(&'static str),
}
