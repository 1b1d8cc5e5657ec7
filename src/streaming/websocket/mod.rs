//! WebSocket (RFC 6455) as a server: Kubernetes' channels among messages, and SPDY inside messages
//! for port-forward. Framing is a library's; what is bounded is said here.
//!
//! `channels.rs` is pure; `connection.rs` drives a connection with channels, `tunnel.rs` one that
//! carries SPDY.

pub mod channels;
mod connection;
mod tunnel;

use std::time::Duration;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

pub use connection::{ChannelWriter, Connection, serve};
pub use tunnel::tunnel;

/// The longest message, and the longest frame of one. Some clients send all they have at once.
const MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long the client may take to answer the end.
const LINGER: Duration = Duration::from_secs(5);
/// What is gathered before it is written to the socket.
const WRITE_BYTES: usize = 64 * 1024;

/// A WebSocket on a connection whose handshake is done.
async fn upgrade<I>(io: I) -> WebSocketStream<I>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(WRITE_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MESSAGE_MAX_BYTES)
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}
